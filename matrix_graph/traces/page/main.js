// What the address asks for is shown: the list, a scene, or two scenes.

let shownKey = null;
let lastRow = null;
let turn = 0;
let searchWanted = false; // once the list is there

async function route() {
  turn += 1;
  const mine = turn;
  const hash = location.hash.slice(1);
  if (hash === '' || hash.startsWith('?')) { showList(hash); return; }
  const parts = hash.split(':').map(decoded);
  try {
    if (parts.length === 3 && parts[0] === 'compare') {
      const pair = await Promise.all(parts.slice(1).map(async (key) => ({ row: rowFor(key), scene: await loadScene(rowFor(key)) })));
      if (mine === turn) showDetail(hash, () => comparisonPage(pair), 'Two scenes side by side');
    } else {
      const row = rowFor(parts[0]);
      lastRow = row.key;
      if (shownKey !== row.key) {
        const scene = await loadScene(row);
        if (mine !== turn) return;
        showDetail(row.key, () => scenePage(row, scene), row.question.trim() || 'Scene');
      }
      if (parts[1]) goTo(parts[1]);
    }
  } catch (error) {
    if (mine === turn) showDetail(null, () => make('div', {}, make('h1', { tabindex: '-1' }, 'This cannot be shown'), make('p', { class: 'notice bad' }, error.message), make('p', {}, make('a', { class: 'button', href: '#', 'data-step': 'up' }, '← All scenes'))), 'Scenes');
  }
}

function rowFor(key) {
  const row = rowOf.get(key);
  if (!row) throw new Error(`There is no scene with the id “${short(key, 80)}” on this page.`);
  return row;
}

function showDetail(key, draw, title) {
  shownKey = key;
  byId('detail').replaceChildren(draw());
  byId('list-view').hidden = true;
  byId('detail').hidden = false;
  byId('picked').hidden = true;
  document.title = short(title.replace(/\s+/g, ' '), 80);
  scrollTo(0, 0);
  byId('detail').querySelector('h1').focus({ preventScroll: true });
}

function showList(hash) {
  const back = shownKey !== null || !byId('detail').hidden;
  shownKey = null;
  byId('detail').hidden = true;
  byId('detail').replaceChildren();
  byId('list-view').hidden = false;
  document.title = 'Scenes';
  if (hash !== listHash || !drawn) {
    listHash = hash;
    setFilters(new URLSearchParams(hash.slice(1)));
    applyFilters();
  }
  drawPicked();
  for (const item of byId('scenes').children) item.querySelector('.pick input').checked = picked.includes(item.dataset.key);
  const place = back ? found.findIndex((row) => row.key === lastRow) : -1;
  if (searchWanted) search();
  else if (place >= 0) focusRow(place);
  else if (back) byId('list-title').focus();
}

function search() {
  searchWanted = false;
  byId('q').focus();
  byId('q').select();
}

function goTo(part) {
  const target = byId(/^event-\d+$/.test(part) ? part : `part-${part}`);
  if (!target) return;
  target.scrollIntoView();
  target.focus({ preventScroll: true });
}

function setUpTheme() {
  const button = byId('theme');
  const choices = ['auto', 'light', 'dark'];
  let chosen = 'auto';
  try { chosen = localStorage.getItem('matrix-graph-theme') || 'auto'; } catch { /* a page from a file may not remember */ }
  const show = () => {
    if (!choices.includes(chosen)) chosen = 'auto';
    if (chosen === 'auto') document.documentElement.removeAttribute('data-theme');
    else document.documentElement.setAttribute('data-theme', chosen);
    button.textContent = `Theme: ${chosen}`;
  };
  button.addEventListener('click', () => {
    chosen = choices[(choices.indexOf(chosen) + 1) % choices.length];
    show();
    try { localStorage.setItem('matrix-graph-theme', chosen); } catch { /* as above */ }
  });
  show();
}

async function start() {
  setUpTheme();
  setUpKeys();
  byId('skip').addEventListener('click', (event) => {
    event.preventDefault();
    (byId('list-view').hidden ? byId('detail').querySelector('h1') : byId('list-title')).focus();
  });
  byId('home').addEventListener('click', () => { if (!byId('list-view').hidden) { setFilters(new URLSearchParams()); filtersChanged(); } });
  try {
    about = await unpack('about');
    rows = await unpack('rows');
  } catch (error) {
    byId('main').append(make('p', { class: 'notice bad' }, error.message));
    return;
  }
  rows.forEach((row, place) => {
    row.number = place;
    // An id that several folders have gets a number, so that each scene has a link of its own.
    const id = wellFormed(row.id);
    row.key = id;
    for (let again = 2; rowOf.has(row.key); again += 1) row.key = `${id}~${again}`;
    rowOf.set(row.key, row);
  });
  setUpList();
  addEventListener('hashchange', route);
  await route();
  document.documentElement.setAttribute('data-ready', 'list');
  try {
    await loadSearched();
  } catch (error) {
    byId('notices').append(make('p', { class: 'notice bad' }, `The search does not work. ${error.message}`));
  }
  document.documentElement.setAttribute('data-ready', 'search');
}

start();
