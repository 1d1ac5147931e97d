// The data of the page: blocks of compressed JSON, unpacked when they are needed.

const parsed = new Promise((resolve) => {
  if (document.readyState === 'loading') document.addEventListener('DOMContentLoaded', resolve, { once: true });
  else resolve();
});
const kept = new Map();
const MOST_KEPT = 12;

async function unpack(name) {
  if (typeof DecompressionStream === 'undefined') {
    throw new Error('This browser is too old to unpack the scenes. Any browser of 2023 or later can.');
  }
  // While the browser still reads the page, an element may be there in part; a whole one has something after it.
  let holder = byId(name);
  if (!holder || !holder.nextSibling) { await parsed; holder = byId(name); }
  if (!holder) throw new Error('This part is missing: the file was cut off. Write the report again.');
  const binary = atob(holder.textContent);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i += 1) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return JSON.parse(await new Response(stream).text());
}

// The latest blocks are kept, so that going to and fro is quick and memory stays small.
function block(name) {
  const found = kept.get(name) || unpack(name);
  kept.delete(name);
  kept.set(name, found);
  if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
  return found;
}

const loadScene = async (row) => (await block(`scenes-${row.block}`))[row.place];

// The exact words of the calls of a scene; null if the page was written without them.
async function loadWords(row) {
  if (!about.calls) return null;
  const words = await block(`words-${row.block}`);
  return words.scenes[row.place].map((call) => ({
    messages: call.messages.map(([role, text]) => ({ role, content: words.texts[text] })),
    completion: words.texts[call.completion],
    reasoning: call.reasoning === null ? null : words.texts[call.reasoning],
    sampling: words.texts[call.sampling],
  }));
}

let about = { sources: [], running: [], calls: true, left_out: 0 };
let rows = [];
const rowOf = new Map();
