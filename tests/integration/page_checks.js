// What is wrong with the page for people who cannot see it well, or at all; an empty list if nothing is.
() => {
  const wrong = [];
  const shown = (element) => element.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true }) && element.getClientRects().length > 0;
  const tell = (what, element) => wrong.push(`${what}: <${element.tagName.toLowerCase()} class="${element.className}"> ${(element.textContent || '').trim().slice(0, 50)}`);
  const all = Array.from(document.body.querySelectorAll('*')).filter((element) => !element.closest('script, noscript') && shown(element));
  const hiddenText = (element) => element.closest('.hidden, .skip') !== null;

  // Contrast: WCAG 2.2, 1.4.3.
  const parsed = (color) => { const n = color.match(/[\d.]+/g).map(Number); return color.startsWith('color(srgb') ? [n[0] * 255, n[1] * 255, n[2] * 255, n[3] ?? 1] : [n[0], n[1], n[2], n[3] ?? 1]; };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const ground = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(parsed(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((under, layer) => over(layer, under), [255, 255, 255, 1]);
  };
  const light = (color) => {
    const [r, g, b] = color.slice(0, 3).map((v) => { const c = v / 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  for (const element of all) {
    const text = Array.from(element.childNodes).some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (!text || hiddenText(element) || element.closest('option')) continue;
    const style = getComputedStyle(element);
    const under = ground(element);
    const [a, b] = [light(over(parsed(style.color), under)), light(under)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) tell(`contrast ${ratio.toFixed(2)}`, element);
  }

  // Names, and what refers to what.
  const named = (element) => (element.getAttribute('aria-label') || (element.labels && element.labels[0] && element.labels[0].textContent) || element.textContent || '').trim();
  for (const element of all.filter((one) => one.matches('a[href], button, input, select, summary, [role=region], nav, aside, section'))) {
    const by = element.getAttribute('aria-labelledby');
    const name = by ? (document.getElementById(by) || { textContent: '' }).textContent.trim() : named(element);
    if (!name) tell('no name', element);
  }
  for (const element of document.querySelectorAll('[aria-controls], [aria-labelledby], [aria-describedby], label[for]')) {
    for (const attribute of ['aria-controls', 'aria-labelledby', 'aria-describedby', 'for']) {
      const id = element.getAttribute(attribute);
      if (id && !document.getElementById(id)) tell(`${attribute} leads nowhere`, element);
    }
  }
  const ids = Array.from(document.querySelectorAll('[id]'), (element) => element.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) wrong.push(`id twice: ${id}`);
  for (const element of document.querySelectorAll('[tabindex]')) if (Number(element.getAttribute('tabindex')) > 0) tell('tabindex', element);

  // Structure: one h1, no level left out, landmarks, lists of items, tables with heads.
  const heads = all.filter((element) => element.matches('h1, h2, h3, h4'));
  if (heads.filter((element) => element.matches('h1')).length !== 1) wrong.push('not one h1');
  let level = 0;
  for (const head of heads) {
    const here = Number(head.tagName[1]);
    if (here > level + 1) tell('heading level left out', head);
    level = here;
  }
  if (!document.documentElement.lang || !document.title || !document.querySelector('main')) wrong.push('no language, title or main');
  for (const list of all.filter((element) => element.matches('ol, ul'))) {
    if (Array.from(list.children).some((child) => child.tagName !== 'LI')) tell('list with other children', list);
  }
  for (const table of all.filter((element) => element.matches('table'))) {
    if (!table.querySelector('th')) tell('table without heads', table);
    if (Array.from(table.querySelectorAll('th')).some((head) => !head.hasAttribute('scope'))) tell('head without scope', table);
  }

  // Targets: WCAG 2.2, 2.5.8, links within sentences left out. What scrolls can be reached by keyboard.
  for (const element of all.filter((one) => one.matches('button, select, input, a.button, a.row, summary'))) {
    const box = (element.matches('input') && element.closest('label') ? element.closest('label') : element).getBoundingClientRect();
    if (box.width < 24 || box.height < 23.5) tell(`target of ${Math.round(box.width)} x ${Math.round(box.height)}`, element);
  }
  for (const element of all) {
    const style = getComputedStyle(element);
    const scrolls = /auto|scroll/.test(style.overflowX) && element.scrollWidth > element.clientWidth + 1;
    if (scrolls && element.tabIndex < 0 && element !== document.body && !element.querySelector('a, button')) tell('scrolls, but not by keyboard', element);
  }
  return Array.from(new Set(wrong)).slice(0, 20);
}
