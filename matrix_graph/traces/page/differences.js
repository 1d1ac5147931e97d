// What was taken out of a text and what was put in, word by word (Myers, "An O(ND) Difference Algorithm", 1986).

const MOST_CHANGES = 1200;

function wordsOf(text) {
  if (typeof Intl !== 'undefined' && Intl.Segmenter && text.length < 60000) {
    return Array.from(new Intl.Segmenter(undefined, { granularity: 'word' }).segment(text), (part) => part.segment);
  }
  return text.match(/\s+|[\p{L}\p{N}\p{M}_]+|[^\s]/gu) || [];
}

// A list of [kind, text]: 'same', 'out' or 'in'. Joined, what is not 'in' is the first text, what is not 'out' the second.
function differences(first, second) {
  const a = wordsOf(first), b = wordsOf(second);
  let start = 0, endA = a.length, endB = b.length;
  while (start < endA && start < endB && a[start] === b[start]) start += 1;
  while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) { endA -= 1; endB -= 1; }
  const middle = shortestEdit(a.slice(start, endA), b.slice(start, endB));
  return joined([
    ...a.slice(0, start).map((word) => ['same', word]), ...middle, ...a.slice(endA).map((word) => ['same', word]),
  ]);
}

function shortestEdit(a, b) {
  const replaced = [...a.map((word) => ['out', word]), ...b.map((word) => ['in', word])];
  if (!a.length || !b.length) return replaced;
  const most = Math.min(a.length + b.length, MOST_CHANGES);
  const reach = new Int32Array(2 * most + 3);
  const middle = most + 1;
  const history = [];
  for (let changes = 0; changes <= most; changes += 1) {
    history.push(reach.slice(middle - changes - 1, middle + changes + 2));
    for (let k = -changes; k <= changes; k += 2) {
      const down = k === -changes || (k !== changes && reach[middle + k - 1] < reach[middle + k + 1]);
      let x = down ? reach[middle + k + 1] : reach[middle + k - 1] + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x += 1;
      reach[middle + k] = x;
      if (x >= a.length && x - k >= b.length) return walkedBack(a, b, history);
    }
  }
  return replaced; // texts that have next to nothing in common are told as such, in bounded time
}

function walkedBack(a, b, history) {
  const parts = [];
  let x = a.length, y = b.length;
  for (let changes = history.length - 1; changes >= 0; changes -= 1) {
    const reach = (k) => history[changes][k + changes + 1];
    const k = x - y;
    const down = k === -changes || (k !== changes && reach(k - 1) < reach(k + 1));
    const before = down ? k + 1 : k - 1;
    const fromX = changes ? reach(before) : 0, fromY = fromX - before;
    while (x > fromX && y > (changes ? fromY : 0)) { parts.push(['same', a[x - 1]]); x -= 1; y -= 1; }
    if (changes) {
      if (down) { parts.push(['in', b[y - 1]]); y -= 1; } else { parts.push(['out', a[x - 1]]); x -= 1; }
    }
  }
  return parts.reverse();
}

// Neighbours of a kind become one, and a blank between two changes belongs to them, so that phrases stay whole.
function joined(words) {
  const runs = [];
  for (let i = 0; i < words.length;) {
    if (words[i][0] === 'same') {
      let text = '';
      while (i < words.length && words[i][0] === 'same') { text += words[i][1]; i += 1; }
      runs.push(['same', text]);
      continue;
    }
    let out = '', put = '';
    while (i < words.length) {
      const [kind, text] = words[i];
      const bridge = kind === 'same' && /^\s+$/.test(text) && i + 1 < words.length && words[i + 1][0] !== 'same';
      if (kind === 'same' && !bridge) break;
      if (kind !== 'in') out += text;
      if (kind !== 'out') put += text;
      i += 1;
    }
    if (out) runs.push(['out', out]);
    if (put) runs.push(['in', put]);
  }
  return runs;
}

function differenceText(first, second) {
  const element = make('div', { class: 'difference said', dir: 'auto' });
  for (const [kind, text] of differences(first, second)) {
    // A run of many thousand characters opens on demand, as everywhere.
    const run = text.length > LONG ? [said('span', text)] : textNodes(text);
    if (kind === 'same') element.append(...run);
    else element.append(make(kind === 'out' ? 'del' : 'ins', {}, make('span', { class: 'hidden' }, kind === 'out' ? 'taken out: ' : 'put in: '), ...run));
  }
  return element;
}
