// The calls of a scene: what each took, and on demand its exact messages.

const PURPOSE = { draft: 'Draft', cast: 'Cast', act: 'Act', judge: 'Judge', recap: 'Recap', reflect: 'Reflect', revise: 'Revise', check: 'Check',
  feedback: 'Feedback', observe: 'Observe' };
const AUTHOR = { runnable: 'by a program', human: 'by a human', what_if: 'by hand' };
const isCut = (call) => call.cut.length > 0 || call.finish_reason === 'length';
const scrolling = (label, table) => make('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': label }, table);

function costsTable(scene) {
  const sums = new Map();
  for (const call of scene.calls) {
    const sum = sums.get(call.purpose) || { calls: 0, unusable: 0, cut: 0, input: 0, output: 0, seconds: 0 };
    sum.calls += 1;
    sum.unusable += call.error ? 1 : 0;
    sum.cut += isCut(call) ? 1 : 0;
    sum.input += call.input;
    sum.output += call.output;
    sum.seconds += call.seconds || 0;
    sums.set(call.purpose, sum);
  }
  const line = (tag, name, sum) => make('tr', {}, make('th', { scope: 'row' }, name),
    [sum.calls, sum.unusable, sum.cut, sum.input, sum.output].map((value) => make('td', { class: 'n' }, number(value))), make('td', { class: 'n' }, seconds(sum.seconds)));
  const all = { calls: scene.calls.length, unusable: scene.calls.filter((call) => call.error).length, cut: scene.calls.filter(isCut).length,
    input: scene.usage.input_tokens, output: scene.usage.output_tokens, seconds: scene.seconds };
  return scrolling('What it took', make('table', { class: 'grid' }, make('caption', { class: 'quiet' }, 'Calls run side by side, so that the scene takes less time than its calls together.'),
    make('thead', {}, make('tr', {}, ['For', 'Calls', 'Unusable', 'Cut', 'Tokens in', 'Tokens out', 'Time'].map((name, i) => make('th', { scope: 'col', class: i ? 'n' : null }, name)))),
    make('tbody', {}, Array.from(sums, ([purpose, sum]) => line('td', PURPOSE[purpose] || purpose, sum))),
    make('tfoot', {}, line('td', 'The scene', all))));
}

function callsTable(scene, row) {
  const body = make('tbody');
  scene.calls.forEach((call, place) => {
    const panel = `call-${place}`;
    const open = make('button', { type: 'button', 'aria-expanded': 'false', 'aria-controls': panel, 'aria-label': `Messages of call ${place + 1}` }, 'Messages');
    const inside = make('td', { colspan: 8 });
    const more = make('tr', { id: panel, class: 'messages', hidden: true }, inside);
    open.addEventListener('click', async () => {
      more.hidden = !more.hidden;
      open.setAttribute('aria-expanded', String(!more.hidden));
      if (more.hidden || inside.firstChild) return;
      inside.append(make('p', { class: 'quiet' }, 'Unpacking …'));
      try {
        const words = await loadWords(row);
        inside.replaceChildren(exactMessages(words[place]));
      } catch (error) {
        inside.replaceChildren(make('p', { class: 'notice bad' }, error.message));
      }
    });
    body.append(make('tr', { class: call.error ? 'unusable' : null }, make('th', { scope: 'row', class: 'n' }, number(place + 1)), make('td', {}, PURPOSE[call.purpose] || call.purpose,
      call.author !== 'model' ? [' ', badge('blocked', AUTHOR[call.author] || call.author)] : null, call.taken_over ? [' ', badge('plain', 'from the parent')] : null),
      call.role === null ? make('td', { class: 'quiet' }, '–') : said('td', call.role, {}, 80), make('td', { class: 'n' }, number(call.round)),
      make('td', { class: 'n' }, `${number(call.input)} / ${number(call.output)}`), make('td', { class: 'n' }, seconds(call.seconds)),
      make('td', {}, call.error ? badge('failed', 'Unusable') : said('span', call.finish_reason || 'not told', {}, 60),
        isCut(call) ? [' ', badge('rejected', 'Cut')] : null, call.cut.length ? [' ', said('span', call.cut.join(', '), { class: 'quiet small' }, 200)] : null),
      make('td', {}, about.calls ? open : null)));
    if (call.error) {
      body.append(make('tr', { class: 'unusable' }, make('td', { colspan: 8 }, said('p', `${call.error.type}: ${call.error.message}`, { class: 'reason' }, 1000))));
    }
    body.append(more);
  });
  return scrolling('Calls', make('table', { class: 'grid' }, make('caption', { class: 'hidden' }, 'Every model call in the order in which they were made'),
    make('thead', {}, make('tr', {}, [['No.', 'n'], ['For'], ['Role'], ['Round', 'n'], ['Tokens in / out', 'n'], ['Time', 'n'], ['End']].map(([name, kind]) =>
      make('th', { scope: 'col', class: kind }, name)), make('th', { scope: 'col' }, make('span', { class: 'hidden' }, 'Messages')))), body));
}

function exactMessages(words) {
  const last = words.messages.length - 1;
  // What stood in earlier calls is folded up: the last message is what is new.
  const list = make('ol', { class: 'chat' }, words.messages.map((message, place) => make('li', { class: message.role },
    make('details', { open: place === last }, make('summary', {}, make('b', {}, message.role), ' ', make('span', { class: 'peek', dir: 'auto' }, ...textNodes(short(message.content.trim(), 120)))),
      said('pre', message.content)))),
  words.reasoning === null ? null : make('li', { class: 'assistant' }, make('details', {}, make('summary', {}, make('b', {}, 'reasoning')), said('pre', words.reasoning))),
  make('li', { class: 'completion' }, make('details', { open: true }, make('summary', {}, make('b', {}, 'completion')), said('pre', words.completion))));
  return make('div', { class: 'exact' }, list, make('details', {}, make('summary', {}, make('b', {}, 'sampling')), said('pre', words.sampling)));
}
