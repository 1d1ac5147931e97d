// The list of scenes: filters, order and rows. A change of the filters draws one screenful; the rest comes as it is scrolled to.

const AT_ONCE = 40;
let searched = null;
let found = [];
let drawn = 0;
let picked = [];
let listHash = '';
const CHECKS = ['rejected', 'failures', 'branches'];
const CHOICES = ['status', 'answer', 'source', 'sort'];

const ORDERS = {
  written: ['As written', null],
  newest: ['Newest first', (a, b) => (a.created < b.created ? 1 : a.created > b.created ? -1 : 0)],
  question: ['Question, A to Z', (a, b) => COLLATE(a.question, b.question)],
  rejected: ['Most rejected actions', (a, b) => b.rejected - a.rejected],
  rounds: ['Most rounds', (a, b) => b.rounds - a.rounds],
  calls: ['Most calls', (a, b) => b.calls - a.calls],
  tokens: ['Most tokens', (a, b) => b.input + b.output - a.input - a.output],
  slowest: ['Slowest', (a, b) => (b.seconds || 0) - (a.seconds || 0)],
};
const COLLATE = new Intl.Collator(undefined, { numeric: true }).compare;
const TESTS = {
  status: (row, value) => row.status === value,
  answer: (row, value) => row.status !== 'failed' && row.revised === (value === 'revised'),
  source: (row, value) => row.source === Number(value),
  rejected: (row) => row.rejected > 0,
  failures: (row) => row.failures > 0 || row.status === 'failed',
  branches: (row) => row.parent !== null,
};

const folded = (text) => text.normalize('NFKC').toLowerCase();
const terms = (query) => Array.from(folded(query).matchAll(/[“”"]([^“”"]+)[“”"]?|([^\s“”"]+)/g), (match) => (match[1] || match[2]).trim()).filter(Boolean);

function setUpList() {
  const tally = (test) => rows.reduce((sum, row) => sum + (test(row) ? 1 : 0), 0);
  const fill = (id, options) => byId(id).replaceChildren(...options.map(([value, text]) => make('option', { value }, text)));
  const counted = (name, value, text) => [value, `${text} (${number(tally((row) => TESTS[name](row, value)))})`];
  fill('status', [['', `All (${number(rows.length)})`], ...Object.entries(STATUS).map(([value, text]) => counted('status', value, text))]);
  fill('answer', [['', 'Any'], counted('answer', 'revised', 'Revised'), counted('answer', 'kept', 'Draft kept')]);
  fill('source', [['', 'All'], ...about.sources.map((name, place) => counted('source', String(place), name))]);
  fill('sort', Object.entries(ORDERS).map(([value, [text]]) => [value, text]));
  byId('source-field').hidden = about.sources.length < 2;
  for (const id of CHECKS) byId(id).nextElementSibling.append(` (${number(tally(TESTS[id]))})`);
  const tokens = rows.reduce((sum, row) => sum + row.input + row.output, 0);
  const calls = rows.reduce((sum, row) => sum + row.calls, 0);
  byId('overview').textContent = rows.length
    ? `${count(rows.length, 'scene')}, ${count(calls, 'model call')}, ${count(tokens, 'token')}.` : '';
  const notices = [];
  if (!rows.length) notices.push(about.running.length ? 'No scene has ended yet.' : 'There are no scenes here yet.');
  if (about.running.length) notices.push('A run was still going on when this page was written; write it again for later scenes.');
  if (about.left_out) notices.push(`${count(about.left_out, 'scene')} written before these ${about.left_out === 1 ? 'is' : 'are'} left out.`);
  if (!about.calls) notices.push('The exact messages of the calls are left out.');
  byId('notices').replaceChildren(...notices.map((text) => make('p', { class: 'notice' }, text)));
  byId('filters').hidden = byId('found').hidden = !rows.length;

  byId('filters').addEventListener('input', filtersChanged);
  byId('filters').addEventListener('submit', (event) => { event.preventDefault(); openFirst(); });
  byId('clear').addEventListener('click', () => { setFilters(new URLSearchParams()); filtersChanged(); byId('q').focus(); });
  byId('more').addEventListener('click', () => { const next = drawn; drawMore(); focusRow(next); });
  new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting)) drawMore(); }, { rootMargin: '800px' })
    .observe(byId('more-line'));
}

async function loadSearched() {
  // Some milliseconds at a time, so that the page answers meanwhile.
  const texts = await unpack('searched');
  for (let i = 0; i < texts.length; i += 200) {
    for (let j = i; j < Math.min(i + 200, texts.length); j += 1) texts[j] = folded(texts[j]);
    await new Promise((resolve) => { setTimeout(resolve); });
  }
  searched = texts;
  if (byId('q').value.trim()) applyFilters();
}

function filtersChanged() {
  const parameters = new URLSearchParams();
  for (const id of ['q', ...CHOICES]) if (byId(id).value && !(id === 'sort' && byId(id).value === 'written')) parameters.set(id, byId(id).value);
  for (const id of CHECKS) if (byId(id).checked) parameters.set(id, '1');
  const query = parameters.toString();
  // A page shown inside another may not touch the history; then the filters work without a link of their own.
  try { history.replaceState(null, '', query ? `#?${query}` : '#'); } catch { /* no link, nothing else */ }
  listHash = query ? `?${query}` : '';
  applyFilters();
}

function setFilters(parameters) {
  byId('q').value = parameters.get('q') || '';
  for (const id of CHOICES) {
    const select = byId(id), wanted = parameters.get(id);
    select.value = wanted !== null && Array.from(select.options).some((option) => option.value === wanted) ? wanted : select.options[0].value;
  }
  for (const id of CHECKS) byId(id).checked = parameters.get(id) === '1';
}

function applyFilters() {
  const wanted = terms(byId('q').value);
  const tests = [];
  for (const id of ['status', 'answer', 'source']) {
    const value = byId(id).value;
    if (value) tests.push((row) => TESTS[id](row, value));
  }
  for (const id of CHECKS) if (byId(id).checked) tests.push(TESTS[id]);
  if (wanted.length && searched) tests.push((row) => { const text = searched[row.number]; return wanted.every((term) => text.includes(term)); });
  const order = ORDERS[byId('sort').value][1];
  found = rows.filter((row) => tests.every((test) => test(row)));
  if (order) found.sort(order);
  drawn = 0;
  byId('scenes').replaceChildren();
  drawMore();
  const waiting = wanted.length && !searched ? ' The texts are still being unpacked.' : '';
  byId('found').textContent = (found.length === rows.length ? `All ${count(rows.length, 'scene')}` : found.length
    ? `${number(found.length)} of ${count(rows.length, 'scene')}` : 'No scene fits. Take away a filter or a word.') + waiting;
  byId('clear').hidden = !(wanted.length || tests.length);
}

function drawMore() {
  const next = found.slice(drawn, drawn + AT_ONCE);
  byId('scenes').append(...next.map((row, place) => listItem(row, drawn + place)));
  drawn += next.length;
  byId('more-line').hidden = drawn >= found.length;
}

function listItem(row, place) {
  const pick = make('input', { type: 'checkbox', 'aria-label': `Compare: ${short(row.question, 80)}` });
  pick.checked = picked.includes(row.key);
  pick.addEventListener('change', () => togglePicked(row.key));
  const facts = [count(row.people, 'person', 'people'), count(row.rounds, 'round'), count(row.actions, 'action'),
    count(row.calls, 'call'), count(row.input + row.output, 'token'), seconds(row.seconds)];
  return make('li', { 'data-key': row.key, 'aria-setsize': found.length, 'aria-posinset': place + 1 },
    make('a', { href: sceneLink(row.key), class: 'row' },
      make('span', { class: 'question', dir: 'auto' }, ...(row.question.trim() ? textNodes(row.question) : ['(no question)'])),
      make('span', { class: 'badges' }, badges(row)),
      make('span', { class: 'facts' }, facts.join(' · '))),
    make('label', { class: 'pick' }, pick, make('span', { 'aria-hidden': 'true' }, 'Compare')));
}

function togglePicked(key) {
  picked = picked.includes(key) ? picked.filter((other) => other !== key) : [...picked, key].slice(-2);
  for (const item of byId('scenes').children) item.querySelector('.pick input').checked = picked.includes(item.dataset.key);
  drawPicked();
}

function drawPicked() {
  const bar = byId('picked');
  bar.hidden = !picked.length;
  const clear = make('button', { type: 'button', onclick: () => { for (const key of [...picked]) togglePicked(key); } }, 'Clear');
  bar.replaceChildren(picked.length === 2
    ? make('a', { class: 'button', href: comparisonLink(...picked) }, 'Compare the 2 scenes')
    : make('span', {}, '1 scene picked; pick another to compare.'), clear);
}

const rowLinks = () => Array.from(byId('scenes').querySelectorAll('a.row'));

function focusRow(place) {
  while (place >= drawn && drawn < found.length) drawMore();
  const link = rowLinks()[place];
  if (link) { link.focus(); link.scrollIntoView({ block: 'nearest' }); }
}

function openFirst() {
  if (found.length) location.hash = sceneLink(found[0].key);
}
