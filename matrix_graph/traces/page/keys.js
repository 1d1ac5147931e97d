// What keys do. None of them does anything while somebody types, but Esc; none with Ctrl, Alt or Meta.

function setUpKeys() {
  const help = byId('keys');
  byId('help').addEventListener('click', () => help.showModal());
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing || help.open) return;
    const target = event.target;
    const typing = target.matches('input:not([type=checkbox]), textarea, select');
    const inList = !byId('list-view').hidden;
    const act = (typing ? TYPING : inList ? IN_LIST : IN_SCENE)[event.key] || (typing ? null : ANYWHERE[event.key]);
    if (act && act(event) !== false) event.preventDefault();
  });
}

const placeOf = (element) => rowLinks().indexOf(element.closest ? element.closest('#scenes > li')?.querySelector('a.row') : null);
const follow = (step) => { const link = byId('detail').querySelector(`a[data-step="${step}"]`); if (link) link.click(); return Boolean(link); };

const TYPING = {
  Escape: (event) => {
    if (event.target.id !== 'q') return false;
    if (event.target.value) { event.target.value = ''; filtersChanged(); } else event.target.blur();
    return true;
  },
  ArrowDown: (event) => { if (event.target.id !== 'q') return false; focusRow(0); return true; },
};
const IN_LIST = {
  ArrowDown: (event) => { focusRow(placeOf(event.target) + 1); return true; },
  ArrowUp: (event) => {
    const place = placeOf(event.target);
    if (place > 0) focusRow(place - 1); else byId('q').focus();
    return true;
  },
  c: (event) => { const place = placeOf(event.target); if (place >= 0) togglePicked(found[place].key); return place >= 0; },
  Escape: () => { if (byId('clear').hidden) return false; byId('clear').click(); return true; },
};
const IN_SCENE = {
  // Within what scrolls sideways the arrows scroll.
  ArrowLeft: (event) => (event.target.closest('.scroll, .many') ? false : follow('before')),
  ArrowRight: (event) => (event.target.closest('.scroll, .many') ? false : follow('after')),
  Escape: () => follow('up'),
  c: () => { const button = byId('detail').querySelector('[data-pick]'); if (button) button.click(); return Boolean(button); },
};
const ANYWHERE = {
  '/': () => { if (byId('list-view').hidden) searchWanted = follow('up'); else search(); return true; },
  '?': () => { byId('keys').showModal(); return true; },
};
