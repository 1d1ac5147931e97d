// One scene: what was asked, what happened, what came of it, and what it took.

function factList(facts) {
  return make('dl', { class: 'facts-list' }, facts.filter(Boolean).map(([name, value]) => make('div', {}, make('dt', {}, name), make('dd', {}, value))));
}

function part(id, title, ...content) {
  return make('section', { 'aria-labelledby': `part-${id}`, class: `part ${id}` }, make('h2', { id: `part-${id}`, tabindex: '-1' }, title), ...content);
}

function heading(text) {
  const title = text.trim() ? said('h1', text, { tabindex: '-1' }, 400) : make('h1', { tabindex: '-1' }, '(no question)');
  if (text.length > 160) title.classList.add('long');
  return title;
}

const ENDED = { quiet: 'the plan was done and nobody had anything left to react to', max_rounds: 'limit of rounds', max_calls: 'limit of calls',
  max_output_tokens: 'limit of tokens', max_seconds: 'limit of time' };

function statesOf(scene) {
  const states = new Map(scene.cast ? scene.cast.objects.map((thing) => [thing.name, [thing.state, thing.state, 0]]) : []);
  // What was changed by hand after a round comes after that round's events; sorting keeps the order otherwise.
  for (const item of [...scene.events, ...scene.edits].sort((a, b) => a.round - b.round)) {
    for (const change of item.changes || [item]) {
      const [start, , changes] = states.get(change.object) || [change.before, change.before, 0];
      states.set(change.object, [start, change.after, changes + 1]);
    }
  }
  return states;
}

const keyOfId = (id) => (rowOf.has(wellFormed(id)) ? wellFormed(id) : null);

function scenePage(row, scene) {
  const order = found.includes(row) ? found : rows;
  const place = order.indexOf(row);
  const previous = order[place - 1], next = order[place + 1];
  const children = rows.filter((other) => other.parent !== null && other.parent === row.id && other !== row);
  const step = (target, text, key) => target ? make('a', { class: 'button', href: sceneLink(target.key), 'data-step': key }, text) : make('span', { class: 'button off', 'aria-hidden': 'true' }, text);
  const parts = [
    ['scene', 'What happened'], ['answers', 'Draft and answer'], ['consequences', 'Consequences'],
    scene.reflection ? ['reflection', 'Reflection'] : null, scene.check ? ['check', 'Check of the revision'] : null,
    statesOf(scene).size ? ['objects', 'Objects'] : null, ['cast', 'Cast and plan'],
    scene.failures.length ? ['failures', 'What failed on the way'] : null, ['costs', 'What it took'], ['calls', 'Calls'], ['settings', 'Settings'],
  ].filter(Boolean);
  const title = Object.fromEntries(parts);
  const body = {
    reflection: () => reflection(scene), check: () => check(scene),
    scene: () => [situation(scene), fittingPicture(scene), make('p', { class: 'ending' }, ending(scene))],
    answers: () => answers(scene), consequences: () => consequences(scene, row), objects: () => objects(scene), cast: () => castPart(scene),
    failures: () => [make('ul', {}, scene.failures.map((failure) => make('li', {}, said('b', failure.role || 'The scene', {}, 80),
      failure.round === null ? '' : `, round ${failure.round}`, `: ${trouble(failure)}. `, said('span', `${failure.error.type}: ${failure.error.message}`, {}, 1000))))],
    costs: () => [costsTable(scene)], calls: () => [scene.calls.length ? callsTable(scene, row) : make('p', { class: 'quiet' }, 'No call was made.')],
    settings: () => [settingsTable(scene)],
  };
  return make('article', { class: 'scene-page' },
    make('nav', { 'aria-label': 'Scenes', class: 'steps' }, make('a', { class: 'button', href: listHash ? `#${listHash}` : '#', 'data-step': 'up' }, '← All scenes'),
      step(previous, 'Previous', 'before'), step(next, 'Next', 'after'), pickButton(row.key)),
    heading(scene.question),
    make('p', { class: 'badges' }, badges(row)),
    scene.status === 'failed' ? make('div', { class: 'notice bad' }, make('b', {}, 'The scene failed. '),
      scene.error ? said('span', `${scene.error.type}: ${scene.error.message}`) : 'It does not say why.') : null,
    scene.cut ? make('div', { class: 'notice branch' }, make('b', {}, 'The answer was cut. '), 'It ended at its limit of tokens, so that its end is missing.') : null,
    branchNotice(row, scene, children),
    factList([
      ['Played', moment(scene.created_at)], ['Took', seconds(scene.seconds)], ['Rounds', number(roundsOf(scene).length)],
      ['Calls', number(scene.calls.length)], ['Tokens in / out', `${number(scene.usage.input_tokens)} / ${number(scene.usage.output_tokens)}`],
      scene.ended_by ? ['Play ended by', ENDED[scene.ended_by] || scene.ended_by] : null,
      about.sources.length > 1 ? ['Folder', said('span', about.sources[row.source])] : null, ['Id', said('code', scene.id, {}, 100)],
    ]),
    make('nav', { 'aria-label': 'Parts of the scene', class: 'parts' }, make('ul', {}, parts.map(([id, name]) => make('li', {}, make('a', { href: sceneLink(row.key, id) }, name))))),
    ...parts.map(([id]) => part(id, title[id], ...body[id]())));
}

function pickButton(key) {
  const button = make('button', { type: 'button', 'data-pick': key });
  const show = () => {
    const other = picked.find((one) => one !== key);
    const ready = other && picked.includes(key);
    button.textContent = ready ? 'Compare the 2 picked' : picked.includes(key) ? 'Picked: pick another' : other ? 'Compare with the picked one' : 'Pick to compare';
    button.setAttribute('aria-pressed', String(picked.includes(key)));
  };
  button.addEventListener('click', () => {
    const other = picked.find((one) => one !== key);
    if (other) { location.hash = comparisonLink(other, key); return; }
    togglePicked(key);
    show();
  });
  show();
  return button;
}

function branchNotice(row, scene, children) {
  const lines = [];
  if (scene.parent) {
    const parent = keyOfId(scene.parent.id);
    lines.push(make('p', {}, make('b', {}, 'What if: '), said('span', scene.parent.change, {}, 600), ` (round ${scene.parent.round} of `,
      parent ? make('a', { href: sceneLink(parent) }, 'the scene it branches from') : make('span', {}, 'a scene that is not on this page: ', said('code', scene.parent.id, {}, 100)), ') ',
      parent ? make('a', { class: 'button', href: comparisonLink(parent, row.key) }, 'Compare side by side') : null));
  }
  if (children.length) {
    lines.push(make('p', {}, `${count(children.length, 'what-if branches', 'what-ifs branch')} off here: `,
      ...children.slice(0, 20).flatMap((child, i) => [i ? ', ' : '', make('a', { href: comparisonLink(row.key, child.key) }, `compare with ${short(child.id, 12)}`)])));
  }
  return lines.length ? make('div', { class: 'notice branch' }, lines) : null;
}

function ending(scene) {
  if (scene.status === 'failed') return 'The scene could not go on.';
  const refused = scene.check && !scene.check.passed ? ' The revision did not pass its check.' : '';
  return `${scene.status === 'blocked' ? 'The plan was blocked.' : 'The scene came to its end.'}${refused} The answer is ${scene.revised ? 'revised' : 'the draft, unchanged'}.`;
}

function answers(scene) {
  if (scene.draft === null) return [make('p', { class: 'quiet' }, 'There was no draft yet.')];
  if (scene.status === 'failed') return [make('h3', {}, 'Draft'), said('div', scene.draft, { class: 'prose' }), make('p', { class: 'quiet' }, 'No answer: the scene failed, so that nothing is known for or against the draft.')];
  if (!scene.revised) return [make('p', { class: 'quiet' }, 'Unchanged: the draft is the answer.'), said('div', scene.draft, { class: 'prose' })];
  return comparedTexts(scene.draft, scene.answer || '', ['Changes', 'Draft', 'Answer']);
}

// Two texts as their differences, or each by itself.
function comparedTexts(first, second, names) {
  const shown = make('div', { class: 'prose' });
  const views = [() => [differenceText(first, second)], () => [said('div', first)], () => [said('div', second)]];
  const buttons = names.map((name, place) => make('button', { type: 'button', onclick: () => show(place) }, name));
  const show = (place) => {
    shown.replaceChildren(...views[place]());
    buttons.forEach((button, other) => button.setAttribute('aria-pressed', String(other === place)));
  };
  show(0);
  return [make('div', { class: 'choice', role: 'group', 'aria-label': 'Show' }, buttons), shown];
}

const STANCE = { helps: 'The draft helps. In the scene the asker does what it says.',
  declines: 'The draft declines. In the scene the asker does it all the same, as a what-if.' };
const VERDICT = { keep: 'Nothing speaks against the draft.', improve: 'The draft should help in a better way.',
  kinder: 'The draft should decline more kindly.', help: 'The draft should help.' };
const EFFECT = { helped: 'finished', harmed: 'failed', 'left without help': 'blocked', none: 'plain' };

function situation(scene) {
  const cast = scene.cast;
  if (!cast || !(cast.situation || cast.stance)) return null;
  return make('div', { class: 'situation' }, cast.situation ? said('p', cast.situation, {}, 1000) : null,
    cast.stance ? make('p', { class: 'quiet' }, STANCE[cast.stance] || cast.stance) : null);
}

function reflection(scene) {
  const { people, lesson, verdict } = scene.reflection;
  const table = people.length ? scrolling('What became of the people', make('table', { class: 'grid' }, make('thead', {}, make('tr', {}, ['Person', 'Effect', 'How'].map((name) => make('th', { scope: 'col' }, name)))),
    make('tbody', {}, people.map((person) => make('tr', {}, said('th', person.name, { scope: 'row' }, 200), make('td', {}, badge(EFFECT[person.effect] || 'plain', person.effect)), said('td', person.how, {}, 600)))))) : null;
  return [table, lesson ? said('p', lesson, { class: 'lesson' }, 2000) : null, make('p', {}, make('b', {}, VERDICT[verdict] || verdict))].filter(Boolean);
}

function check(scene) {
  const { passed, why, harm, stance, repeats_deed: repeats, preferred, proposed } = scene.check;
  const facts = factList([
    ['In the scene the deed did', harm ? 'harm' : 'no harm'],
    stance === null ? null : ['The revision', stance],
    repeats === null ? null : ['Still helps to do what did harm', repeats ? 'yes' : 'no'],
    preferred.length ? ['Preferred, draft shown first and second', preferred.join(', ')] : null,
  ]);
  const refused = passed ? [] : [make('h3', {}, 'Proposed, and not taken'), ...(scene.draft === null ? [said('div', proposed, { class: 'prose' })]
    : comparedTexts(scene.draft, proposed, ['Changes', 'Draft', 'Proposed']))];
  return [make('p', {}, badge(passed ? 'finished' : 'failed', passed ? 'Passed' : 'Not passed'), ' ', said('span', why, {}, 1000)), facts, ...refused];
}

function consequences(scene, row) {
  const items = scene.events.map((event, place) => [event, place]).filter(([event]) => event.consequence !== null);
  if (!items.length) return [make('p', { class: 'quiet' }, 'None.')];
  return [make('ol', { class: 'plain-list' }, items.map(([event, place]) => make('li', {}, said('span', event.consequence, {}, 1000), ' ',
    make('a', { class: 'from', href: sceneLink(row.key, `event-${place}`) }, `round ${event.round}, `, said('span', event.role, {}, 80)))))];
}

function objects(scene) {
  return [scrolling('Objects', make('table', { class: 'grid' }, make('thead', {}, make('tr', {}, ['Object', 'At the start', 'At the end', 'Changes'].map((name, i) => make('th', { scope: 'col', class: i === 3 ? 'n' : null }, name)))),
    make('tbody', {}, Array.from(statesOf(scene), ([name, [start, end, changes]]) => make('tr', {}, said('th', name, { scope: 'row' }, 200), said('td', start, {}, 600), said('td', end, {}, 600), make('td', { class: 'n' }, number(changes)))))))];
}

function castPart(scene) {
  if (!scene.cast) return [make('p', { class: 'quiet' }, 'The scene was not cast.')];
  const known = scene.cast.roles.some((role) => role.who);
  const table = scrolling('Cast', make('table', { class: 'grid' }, make('thead', {}, make('tr', {}, ['Role', known ? 'Who' : null, 'Traits', 'Goal'].filter(Boolean).map((name) => make('th', { scope: 'col' }, name)))),
    make('tbody', {}, scene.cast.roles.map((role) => make('tr', {}, make('th', { scope: 'row' }, said('span', role.name), role.name === scene.cast.ego ? [' ', badge('plain', 'asks')] : null),
      known ? said('td', role.who, {}, 600) : null, said('td', role.traits, {}, 600), said('td', role.goal, {}, 600))))));
  const plan = scene.cast.plan.length ? [make('h3', {}, 'Plan'), make('ol', { class: 'plan' }, scene.cast.plan.map((step) => said('li', step, {}, 1000)))] : [];
  return [table, ...plan];
}

function settingsTable(scene) {
  const settings = Object.entries(scene.settings);
  if (!settings.length) return make('p', { class: 'quiet' }, 'None were recorded.');
  return scrolling('Settings', make('table', { class: 'grid' }, make('tbody', {}, settings.map(([name, value]) => make('tr', {}, said('th', name, { scope: 'row' }, 100), make('td', {}, said('code', value, {}, 2000)))))));
}
