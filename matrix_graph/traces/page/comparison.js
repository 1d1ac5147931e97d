// Two scenes side by side, and where they part.

const sameEvent = (a, b) => JSON.stringify(a) === JSON.stringify(b);

// How many actions, from the beginning, are the same in both.
function shared(first, second) {
  let place = 0;
  while (place < first.events.length && place < second.events.length && sameEvent(first.events[place], second.events[place])) place += 1;
  return place;
}

function comparisonPage(pair) {
  const [first, second] = pair.map(({ scene }) => scene);
  const branch = second.parent && second.parent.id === first.id ? second.parent : first.parent && first.parent.id === second.id ? first.parent : null;
  const both = shared(first, second);
  const names = pair.map(({ scene }, place) => (branch ? (scene.parent === branch ? 'B: what if' : 'A: as it was') : `${'AB'[place]}`));
  return make('article', { class: 'comparison' },
    make('nav', { 'aria-label': 'Scenes', class: 'steps' }, make('a', { class: 'button', href: listHash ? `#${listHash}` : '#', 'data-step': 'up' }, '← All scenes'),
      make('a', { class: 'button', href: comparisonLink(pair[1].row.key, pair[0].row.key) }, 'Swap sides')),
    make('h1', { tabindex: '-1' }, 'Two scenes side by side'),
    branch ? make('p', { class: 'notice branch' }, make('b', {}, 'What if: '), said('span', branch.change, {}, 600), ` (round ${branch.round})`) : null,
    part('glance', 'At a glance', glance(pair, names)),
    part('scene', 'What happened', ...sideBySide(first, second, both, names)),
    part('answers', 'Answers', ...comparedAnswers(first, second, names)),
    part('objects', 'Objects at the end', comparedObjects(first, second, names)));
}

function glance(pair, names) {
  const fact = (name, value) => {
    const cells = pair.map(value);
    return make('tr', {}, make('th', { scope: 'row' }, name), cells.map((cell) => make('td', {}, cell)));
  };
  return scrolling('At a glance', make('table', { class: 'grid two' }, make('thead', {}, make('tr', {}, make('td', {}), pair.map(({ row }, place) =>
    make('th', { scope: 'col' }, make('a', { href: sceneLink(row.key) }, names[place]))))), make('tbody', {},
    fact('Question', ({ scene }) => said('span', scene.question, {}, 300)),
    fact('Outcome', ({ row }) => make('span', { class: 'badges' }, badges(row))),
    fact('Rounds', ({ scene }) => number(roundsOf(scene).length)),
    fact('Actions, rejected', ({ row }) => `${number(row.actions)}, ${number(row.rejected)}`),
    fact('Calls', ({ scene }) => number(scene.calls.length)),
    fact('Tokens in / out', ({ scene }) => `${number(scene.usage.input_tokens)} / ${number(scene.usage.output_tokens)}`),
    fact('Id', ({ scene }) => said('code', scene.id, {}, 80)))));
}

function sideBySide(first, second, both, names) {
  const people = Array.from(new Set([...peopleOf(first), ...peopleOf(second)]));
  const rounds = Array.from(new Set([...roundsOf(first), ...roundsOf(second)])).sort((a, b) => a - b);
  const lastRound = [first, second].map((scene) => Math.max(0, ...roundsOf(scene)));
  const list = make('ol', { class: 'pairs' });
  const all = Math.max(first.events.length, second.events.length);
  const told = both === all ? 'The same from beginning to end.' : both
    ? `The same for ${count(both, 'action')}, then they part.` : 'They differ from the first action on.';
  let marked = both === all;
  for (const round of rounds) {
    const at = (scene) => scene.events.map((event, place) => [event, place]).filter(([event]) => event.round === round);
    const left = at(first), right = at(second);
    const rows_ = make('ol', {});
    for (let i = 0; i < Math.max(left.length, right.length); i += 1) {
      const [one, other] = [left[i], right[i]];
      const same = one && other && one[1] < both && other[1] < both;
      if (!same && !marked) {
        marked = true;
        rows_.append(make('li', { class: 'parting' }, make('p', { id: 'parting', tabindex: '-1' }, 'Here they part')));
      }
      rows_.append(same ? make('li', { class: 'same' }, make('div', { class: 'side' }, make('p', { class: 'label' }, 'The same in both'), compared(one[0], people)))
        : make('li', { class: 'pair' }, [one, other].map((item, side) => make('div', { class: item ? 'side' : 'side nothing' }, make('p', { class: 'label' }, names[side]),
          item ? compared(item[0], people) : make('p', { class: 'quiet' }, round > lastRound[side] ? 'The scene has ended.' : 'Nothing more in this round.')))));
    }
    for (const [side, scene] of [first, second].entries()) {
      for (const failure of failuresIn(scene, round)) rows_.append(make('li', {}, make('div', { class: 'side' }, make('p', { class: 'label' }, names[side]), said('b', failure.role || 'The scene', {}, 80), failureCard(failure))));
    }
    for (const [side, scene] of [first, second].entries()) {
      const other = side ? first : second;
      for (const edit of editsAfter(scene, round)) {
        const inBoth = other.edits.some((one) => sameEvent(one, edit));
        if (inBoth && side) continue;
        rows_.append(make('li', {}, make('div', { class: 'side' }, make('p', { class: 'label' }, inBoth ? 'The same in both' : names[side]), editCard(edit))));
      }
    }
    list.append(make('li', {}, make('h3', { class: 'band' }, make('span', {}, `Round ${round}`)), rows_));
  }
  return [make('p', { class: 'told' }, told), list];
}

function compared(event, people) {
  const box = hue(make('div', { class: 'compared' }, said('p', event.role, { class: 'who' }), eventCard(event)), people.indexOf(event.role));
  const note = seenBy(event);
  box.append(note ? make('p', { class: 'note' }, note)
    : make('p', { class: 'note' }, 'Seen by ', ...event.observers.flatMap((name, i) => [i ? ', ' : '', said('span', name, {}, 80)])), ...event.changes.map(changeLine));
  return box;
}

function comparedAnswers(first, second, names) {
  if (first.answer === null && second.answer === null) return [make('p', { class: 'quiet' }, 'Neither has an answer.')];
  if (first.answer === second.answer) return [make('p', { class: 'quiet' }, 'The same in both.'), said('div', first.answer, { class: 'prose' })];
  return comparedTexts(first.answer || '', second.answer || '', [`From ${names[0]} to ${names[1]}`, names[0], names[1]]);
}

function comparedObjects(first, second, names) {
  const [one, other] = [statesOf(first), statesOf(second)];
  const things = Array.from(new Set([...one.keys(), ...other.keys()]));
  if (!things.length) return make('p', { class: 'quiet' }, 'None.');
  const end = (states, name) => states.has(name) ? said('td', states.get(name)[1], {}, 600) : make('td', { class: 'quiet' }, 'not there');
  return scrolling('Objects', make('table', { class: 'grid' }, make('thead', {}, make('tr', {}, ['Object', ...names, ''].map((name, i) => i === 3 ? make('td') : make('th', { scope: 'col' }, name)))),
    make('tbody', {}, things.map((name) => {
      const differs = !one.has(name) || !other.has(name) || one.get(name)[1] !== other.get(name)[1];
      return make('tr', { class: differs ? 'differs' : null }, said('th', name, { scope: 'row' }, 200), end(one, name), end(other, name), make('td', {}, differs ? badge('revised', 'differs') : ''));
    }))));
}
