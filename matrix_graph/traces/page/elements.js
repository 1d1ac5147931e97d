// Elements and texts. Every text of a trace comes in through `said` or as a text node: nothing here parses markup.

const byId = (id) => document.getElementById(id);

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === 'onclick') element.addEventListener('click', value);
    else element.setAttribute(name, value === true ? '' : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

// What cannot be seen, or would turn the words around it about, is shown as a sign of its own.
const UNSEEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069\ufeff]|\p{Cs}/gu;

function textNodes(text) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(UNSEEN)) {
    if (match.index > from) nodes.push(text.slice(from, match.index));
    const code = match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, '0');
    nodes.push(make('span', { class: 'unseen', title: 'a character that cannot be shown' }, `U+${code}`));
    from = match.index + match[0].length;
  }
  if (from < text.length) nodes.push(text.slice(from));
  return nodes;
}

const LONG = 3000;

// A text of a trace: in its own direction, line breaks kept; a long one opens on demand.
function said(tag, text, attributes, longest = LONG) {
  const element = make(tag, { dir: 'auto', ...attributes });
  element.classList.add('said');
  if (text === '') {
    element.append(make('span', { class: 'quiet' }, '(empty)'));
  } else if (text.length <= longest * 1.2) {
    element.append(...textNodes(text));
  } else {
    const whole = () => element.replaceChildren(...textNodes(text));
    const button = make('button', { type: 'button', class: 'whole', onclick: (event) => { event.preventDefault(); whole(); } },
      `Show all ${number(text.length)} characters`);
    element.append(...textNodes(text.slice(0, longest)), '… ', button);
  }
  return element;
}

const number = (value) => value === null || value === undefined ? '–' : value.toLocaleString('en');
const count = (value, noun, many) => `${number(value)} ${value === 1 ? noun : many || `${noun}s`}`;

function seconds(value) {
  if (value === null || value === undefined) return 'unknown time';
  if (value < 60) return `${value.toFixed(1)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  return `${Math.floor(value / 3600)} h ${Math.round(value % 3600 / 60)} min`;
}

function moment(created) {
  const date = new Date(created);
  const shown = Number.isNaN(date.getTime()) ? created : `${date.toISOString().slice(0, 16).replace('T', ' ')} UTC`;
  return make('time', { datetime: created }, shown);
}

const STATUS = { finished: 'Finished', blocked: 'Blocked', failed: 'Failed' };

const badge = (kind, text) => make('span', { class: `badge ${kind}` }, text);

function badges(row) {
  return [
    badge(row.status, STATUS[row.status]),
    row.status === 'failed' ? null : badge(row.revised ? 'revised' : 'plain', row.revised ? 'Revised' : 'Draft kept'),
    row.refused ? badge('rejected', 'Revision refused') : null,
    row.cut ? badge('rejected', 'Answer cut') : null,
    row.rejected ? badge('rejected', `${number(row.rejected)} rejected`) : null,
    row.failures ? badge('failed', `${number(row.failures)} failed on the way`) : null,
    row.parent ? badge('plain', 'What-if') : null,
  ];
}

// An address cannot hold lone surrogates.
const wellFormed = (text) => text.replace(/\p{Cs}/gu, '\ufffd');

// Links: `#ID`, `#ID:part`, `#compare:ID:ID`, `#?filters`. A colon within an id is encoded, so that parts stay apart.
const sceneLink = (id, part) => `#${encodeURIComponent(id)}${part ? `:${encodeURIComponent(part)}` : ''}`;
const comparisonLink = (one, other) => `#compare:${encodeURIComponent(one)}:${encodeURIComponent(other)}`;

function decoded(part) {
  try { return decodeURIComponent(part); } catch { return part; }
}

const short = (text, longest) => text.length <= longest ? text : `${text.slice(0, longest - 1).trimEnd()}…`;

// Role colours serve the eye only; whoever reads or listens has the name.
const hue = (element, position) => { element.style.setProperty('--hue', String(Math.round(215 + position * 137.5) % 360)); return element; };
