// One pair of answers at a time, by keyboard or mouse. What was rated is kept at once, and is there again after a
// reload. Texts only ever become text nodes.
"use strict";
const study = JSON.parse(document.getElementById("study").textContent);
const items = study.items;
const place = "matrix-graph-rating:" + study.page;
const part = (id) => document.getElementById(id);
const CHOICES = ["left", "tie", "right"];
let state = { rater: "", choices: {}, at: 0 };
let kept = true;

function recall() {
  try {
    const found = JSON.parse(localStorage.getItem(place));
    if (!found || typeof found.rater !== "string" || typeof found.choices !== "object") return;
    const choices = {};
    for (const item of items) if (CHOICES.includes(found.choices[item.id])) choices[item.id] = found.choices[item.id];
    const at = Number.isInteger(found.at) ? Math.min(Math.max(found.at, 0), items.length - 1) : 0;
    state = { rater: found.rater, choices, at };
  } catch { /* what cannot be read was not rated here */ }
}

function keep() {
  try { localStorage.setItem(place, JSON.stringify(state)); kept = true; } catch { kept = false; }
}

function done() { return Object.keys(state.choices).length; }

function show() {
  const started = state.rater !== "";
  part("begin").hidden = started;
  part("rate").hidden = !started;
  if (!started) { part("rater").focus(); return; }
  const item = items[state.at];
  const choice = state.choices[item.id];
  part("where").textContent = `Question ${state.at + 1} of ${items.length}`;
  part("question").textContent = item.question;
  part("left").textContent = item.left;
  part("right").textContent = item.right;
  part("left-box").classList.toggle("chosen", choice === "left");
  part("right-box").classList.toggle("chosen", choice === "right");
  for (const kind of CHOICES) part("choose-" + kind).setAttribute("aria-pressed", String(choice === kind));
  part("progress").max = items.length;
  part("progress").value = done();
  const all = done() === items.length;
  const count = `${done()} of ${items.length} rated.`;
  const end = all ? " All are rated: save them with S." : "";
  const lost = kept ? "" : " This browser keeps nothing: save with S before you close the page.";
  part("status").textContent = count + end + lost;
}

function move(to) {
  state.at = Math.min(Math.max(to, 0), items.length - 1);
  keep();
  show();
  window.scrollTo(0, 0);
}

function nextOpen() {
  for (let step = 1; step <= items.length; step++) {
    const at = (state.at + step) % items.length;
    if (!(items[at].id in state.choices)) return at;
  }
  return state.at;
}

function choose(kind) {
  state.choices[items[state.at].id] = kind;
  move(nextOpen());
}

function save() {
  const ratings = items.filter((item) => item.id in state.choices)
    .map((item) => ({ item: item.id, choice: state.choices[item.id] }));
  const content = { format: "matrix-graph-ratings", version: 1, page: study.page, rater: state.rater, ratings };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1) + "\n"], { type: "application/json" }));
  const name = state.rater.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40);
  link.download = `ratings-${study.page.slice(0, 8)}-${name}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  part("status").textContent = `Saved ${ratings.length} of ${items.length} as ${link.download}.`;
}

const KEYS = {
  "1": () => choose("left"), "a": () => choose("left"), "arrowleft": () => choose("left"),
  "0": () => choose("tie"), "t": () => choose("tie"), "=": () => choose("tie"),
  "2": () => choose("right"), "b": () => choose("right"), "arrowright": () => choose("right"),
  "p": () => move(state.at - 1), "backspace": () => move(state.at - 1), "n": () => move(state.at + 1),
  "s": save,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || state.rater === "") return;
  const act = KEYS[event.key.toLowerCase()];
  if (!act) return;
  event.preventDefault();
  act();
});
part("begin").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = part("rater").value.trim();
  if (!name) return;
  state.rater = name;
  keep();
  show();
  part("where").focus();
});
for (const kind of CHOICES) part("choose-" + kind).addEventListener("click", () => choose(kind));
part("previous").addEventListener("click", () => move(state.at - 1));
part("next").addEventListener("click", () => move(state.at + 1));
part("save").addEventListener("click", save);
recall();
show();
