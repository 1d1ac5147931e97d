// The scene as a picture: one lane a role, time downward, a band a round, a line from each action to those who saw it.
// It is a table, so that who listens hears rounds, roles and cells; on a narrow page the same stands as a list.

const NARROW = matchMedia('(max-width: 780px)');
const ACTION_LENGTH = 700;

// Everybody, the ego first; also who acts or observes without being cast, since traces may come from elsewhere.
function peopleOf(scene) {
  const names = scene.cast ? [scene.cast.ego, ...scene.cast.roles.map((role) => role.name)] : [];
  for (const event of scene.events) names.push(event.role, ...event.observers);
  return Array.from(new Set(names));
}

function roundsOf(scene) {
  const numbers = new Set(scene.events.map((event) => event.round));
  for (const failure of scene.failures) if (failure.round !== null) numbers.add(failure.round);
  for (const edit of scene.edits) numbers.add(edit.round);
  return Array.from(numbers).sort((a, b) => a - b);
}

const failuresIn = (scene, round) => scene.failures.filter((failure) => failure.round === round);
const editsAfter = (scene, round) => scene.edits.filter((edit) => edit.round === round);
const editCard = (edit) => make('div', { class: 'card by-hand' }, make('p', { class: 'verdict' }, 'Changed by hand after this round'), changeLine(edit));
const TROUBLE = { act: 'Stays silent', judge: 'Could not be judged' };
const trouble = (failure) => TROUBLE[failure.purpose] || `${failure.purpose} failed`;

function changeLine(change) {
  return make('p', { class: 'change' }, said('b', change.object, {}, 200), ': ',
    make('span', { class: 'hidden' }, 'from '), said('span', change.before, { class: 'before' }, 300),
    make('span', { 'aria-hidden': 'true' }, ' → '), make('span', { class: 'hidden' }, 'to '), said('span', change.after, { class: 'after' }, 300));
}

function eventCard(event) {
  if (!event.plausible) {
    return make('div', { class: 'card no' },
      make('p', { class: 'verdict' }, make('span', { 'aria-hidden': 'true' }, '✗ '), 'Rejected'),
      said('s', event.action, { class: 'action' }, ACTION_LENGTH),
      make('p', { class: 'reason' }, make('b', {}, 'Why: '), said('span', event.reason || 'no reason given', {}, ACTION_LENGTH)));
  }
  const reason = event.reason.trim() ? make('details', { class: 'why' }, make('summary', {}, 'Why plausible'), said('p', event.reason, {}, ACTION_LENGTH)) : null;
  const consequence = event.consequence === null ? null
    : make('p', { class: 'consequence' }, make('b', {}, 'Consequence: '), said('span', event.consequence, {}, ACTION_LENGTH));
  return make('div', { class: 'card yes' }, said('p', event.action, { class: 'action' }, ACTION_LENGTH), seenLine(event), consequence, hurtLine(event), reason);
}

// What observers are told, where it is not the action itself.
function seenLine(event) {
  if (!event.observers.length || !event.seen || event.seen === event.action || event.seen === `${event.role}: ${event.action}`) return null;
  return make('p', { class: 'seen' }, make('b', {}, 'They see: '), said('span', event.seen, {}, ACTION_LENGTH));
}

function hurtLine(event) {
  return event.hurt.length ? make('p', { class: 'hurt' }, make('b', {}, 'Hurt: '), ...event.hurt.flatMap((name, i) => [i ? ', ' : '', said('span', name, {}, 80)])) : null;
}

function failureCard(failure) {
  return make('div', { class: 'card trouble' }, make('p', { class: 'verdict' }, trouble(failure)),
    said('p', `${failure.error.type}: ${failure.error.message}`, { class: 'reason' }, ACTION_LENGTH));
}

function seenBy(event) {
  if (!event.plausible) return 'Reaches nobody.';
  return event.observers.length ? null : 'Nobody sees it.';
}

function picture(scene) {
  const people = peopleOf(scene);
  if (!people.length) return make('p', { class: 'quiet' }, 'Nobody came on stage.');
  return NARROW.matches ? timeline(scene, people) : lanes(scene, people);
}

// Drawn anew when the page becomes narrow or wide.
function fittingPicture(scene) {
  const holder = make('div', { class: 'picture' }, picture(scene));
  const fit = () => {
    if (holder.isConnected) holder.replaceChildren(picture(scene));
    else NARROW.removeEventListener('change', fit);
  };
  NARROW.addEventListener('change', fit);
  return holder;
}

function lanes(scene, people) {
  const things = scene.failures.some((failure) => failure.round !== null && !people.includes(failure.role)) || Boolean(scene.cast && scene.cast.objects.length) || scene.edits.length > 0 || scene.events.some((event) => event.changes.length);
  const columns = people.length + (things ? 1 : 0);
  const profile = new Map(scene.cast ? scene.cast.roles.map((role) => [role.name, role]) : []);
  const head = make('tr', {}, people.map((name, place) => hue(make('th', { scope: 'col', class: 'lane' },
    make('span', { class: 'who' }, said('span', name), scene.cast && name === scene.cast.ego ? badge('plain', 'asks') : null)), place)),
  things ? make('th', { scope: 'col', class: 'things' }, 'Objects') : null);
  const start = make('tr', { class: 'start' }, people.map((name, place) => {
    const role = profile.get(name);
    return hue(make('td', { class: 'lane' }, role ? make('div', { class: 'profile' },
      role.who ? make('p', {}, make('b', {}, said('span', role.who, {}, 200))) : null,
      role.traits ? said('p', role.traits, {}, 200) : null,
      role.goal ? make('p', {}, make('b', {}, 'Wants: '), said('span', role.goal, {}, 200)) : null) : null), place);
  }), things ? make('td', { class: 'things' }, scene.cast && scene.cast.objects.map((thing) =>
    make('p', { class: 'state' }, said('b', thing.name, {}, 200), ': ', said('span', thing.state, {}, 300)))) : null);
  const table = make('table', { class: 'lanes' }, make('caption', { class: 'hidden' },
    'A column a role, a row an action. The cell of the role that acts holds the action; those who see it have a mark.'),
  make('thead', {}, head), make('tbody', {}, start));
  for (const round of roundsOf(scene)) {
    const band = make('tbody', {}, make('tr', { class: 'band' }, make('th', { scope: 'rowgroup', colspan: columns }, make('span', {}, `Round ${round}`))));
    scene.events.forEach((event, place) => { if (event.round === round) band.append(actionRow(event, place, people, things)); });
    for (const failure of failuresIn(scene, round)) {
      band.append(make('tr', { class: 'event' }, people.map((name, place) => hue(make('td', { class: 'lane' },
        name === failure.role ? failureCard(failure) : null), place)),
      things ? make('td', { class: 'things' }, people.includes(failure.role) ? null : [said('b', failure.role || 'The scene', {}, 80), failureCard(failure)]) : null));
    }
    const edits = editsAfter(scene, round);
    if (edits.length) band.append(make('tr', { class: 'event' }, people.map((name, place) => hue(make('td', { class: 'lane' }), place)), make('td', { class: 'things' }, edits.map(editCard))));
    table.append(band);
  }
  table.style.setProperty('--lanes', String(people.length));
  const many = people.length > 6;
  return make('div', many ? { class: 'stage many', tabindex: '0', role: 'region', 'aria-label': 'The scene, lane by lane' } : { class: 'stage' }, table);
}

function actionRow(event, number, people, things) {
  const actor = people.indexOf(event.role);
  const observers = event.plausible ? event.observers.map((name) => people.indexOf(name)) : [];
  const first = Math.min(actor, ...observers), last = Math.max(actor, ...observers);
  const cells = people.map((name, place) => {
    const sees = observers.includes(place);
    const cell = hue(make('td', { class: 'lane' }), place);
    // The line runs from the middle of the actor's lane to the middle of the outermost observer's.
    if (place > first && place <= last) cell.classList.add('wire-left');
    if (place >= first && place < last) cell.classList.add('wire-right');
    if (place === actor) {
      cell.classList.add('actor');
      const note = seenBy(event);
      cell.append(eventCard(event), note ? make('p', { class: 'note' }, note) : '');
    } else if (sees) {
      cell.classList.add('sees');
      cell.append(make('p', { class: 'eye' }, make('span', { 'aria-hidden': 'true' }, place > actor ? '▶' : '◀'), make('span', { class: 'word' }, 'sees it')));
    }
    return cell;
  });
  return make('tr', { class: event.plausible ? 'event' : 'event rejected', id: `event-${number}`, tabindex: '-1' }, cells,
    things ? make('td', { class: 'things' }, event.changes.map(changeLine)) : null);
}

function timeline(scene, people) {
  const list = make('ol', { class: 'timeline' });
  for (const round of roundsOf(scene)) {
    const events = make('ol', {});
    scene.events.forEach((event, place) => { if (event.round === round) events.append(timelineEvent(event, place, people)); });
    for (const failure of failuresIn(scene, round)) {
      events.append(hue(make('li', {}, said('p', failure.role || 'The scene', { class: 'who' }), failureCard(failure)), people.indexOf(failure.role)));
    }
    events.append(...editsAfter(scene, round).map((edit) => make('li', {}, editCard(edit))));
    list.append(make('li', {}, make('h3', { class: 'band' }, make('span', {}, `Round ${round}`)), events));
  }
  return list.children.length ? list : make('p', { class: 'quiet' }, 'Nothing happened.');
}

function timelineEvent(event, place, people) {
  const item = hue(make('li', { id: `event-${place}`, tabindex: '-1' }, said('p', event.role, { class: 'who' }), eventCard(event)), people.indexOf(event.role));
  const note = seenBy(event);
  if (note) item.append(make('p', { class: 'note' }, note));
  else {
    const names = event.observers.map((name, i) => [i ? ', ' : '', hue(said('span', name, { class: 'name' }), people.indexOf(name))]);
    item.append(make('p', { class: 'note' }, make('span', { 'aria-hidden': 'true' }, '▶ '), 'Seen by ', ...names.flat()));
  }
  item.append(...event.changes.map(changeLine));
  return item;
}
