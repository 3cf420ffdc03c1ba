// Keyboard and search. All text is set as text, never as markup; all addresses are built from
// the file names in features.js. Every page works without this script.
"use strict";

const root = document.documentElement.dataset.root;
const box = document.getElementById("search");
const matches = document.getElementById("matches");
const dialog = document.getElementById("keys");
const LIMIT = 60;

// Search: what a query means, as a list of {text, note, address}.

function featureEntry(layer, feature) {
  const name = String(feature).padStart(4, "0");
  const top = zfscale.classes[layer.top[feature]];
  return {
    text: `${layer.name} ${feature}`,
    note: [top, layer.scan].filter(Boolean).join(" · "),
    address: `${root}${layer.folder}features/${layer.slug}/${name}.html`,
  };
}

function layerEntry(layer) {
  const count = layer.top.length;
  return {
    text: layer.name,
    note: [count === 1 ? "1 feature" : `${count} features`, layer.scan].filter(Boolean).join(" · "),
    address: `${root}${layer.folder}layers/${layer.slug}.html`,
  };
}

const chapterEntry = ({ name, address }) => ({ text: name, note: "", address: `${root}${address}` });

// Layers that a word may mean: the exact one alone, else those that begin with it, else hold it.
function layersLike(word) {
  const lower = zfscale.layers.map((layer) => layer.name.toLowerCase());
  const tests = [(name) => name === word, (name) => name.startsWith(word), (name) => name.includes(word)];
  for (const test of tests) {
    const hits = zfscale.layers.filter((_, index) => test(lower[index]));
    if (hits.length) return hits;
  }
  return [];
}

function byNumber(query) {
  const match = /^(.*?)[\s/]*(\d+)$/.exec(query);
  if (!match) return [];
  const feature = Number(match[2]);
  const word = match[1].trim();
  const layers = word ? layersLike(word) : zfscale.layers;
  return layers.filter((layer) => feature < layer.top.length).map((layer) => featureEntry(layer, feature));
}

function byClass(query) {
  const labels = Object.keys(zfscale.classes).filter((label) =>
    zfscale.classes[label].toLowerCase().includes(query));
  const wanted = new Set(labels.map(Number));
  const entries = [];
  for (const layer of zfscale.layers.toReversed()) {
    layer.top.forEach((label, feature) => {
      if (label !== null && wanted.has(label)) entries.push(featureEntry(layer, feature));
    });
  }
  return entries;
}

function search(text) {
  const query = text.trim().toLowerCase();
  if (!query) return [];
  const exact = zfscale.layers.filter((layer) => layer.name.toLowerCase() === query);
  const layers = layersLike(query).filter((layer) => !exact.includes(layer));
  const chapters = zfscale.chapters.filter(({ name }) => name.toLowerCase().startsWith(query)).map(chapterEntry);
  const all = [...exact.map(layerEntry), ...chapters, ...byNumber(query), ...layers.map(layerEntry), ...byClass(query)];
  const addresses = new Set();
  const isNew = ({ address }) => !addresses.has(address) && addresses.add(address);
  return all.filter(isNew).slice(0, LIMIT);
}

// The list below the search box.

let chosen = 0;

function item(entry, index) {
  const row = document.createElement("li");
  row.id = `match-${index}`;
  row.role = "option";
  const link = document.createElement("a");
  link.href = entry.address;
  link.tabIndex = -1;
  const name = document.createElement("bdi");
  name.textContent = entry.text;
  const note = document.createElement("span");
  note.textContent = entry.note;
  link.append(name, note);
  row.append(link);
  return row;
}

function show() {
  const entries = search(box.value);
  matches.replaceChildren(...entries.map(item));
  if (!entries.length && box.value.trim()) {
    const none = document.createElement("li");
    none.className = "none";
    none.textContent = "Nothing found. Try a layer, a number or a class.";
    matches.append(none);
  }
  matches.hidden = !box.value.trim();
  box.setAttribute("aria-expanded", String(!matches.hidden));
  choose(0);
}

function choose(index) {
  const rows = matches.querySelectorAll("[role=option]");
  chosen = Math.max(0, Math.min(index, rows.length - 1));
  rows.forEach((row, at) => row.setAttribute("aria-selected", String(at === chosen)));
  if (!rows.length) return box.removeAttribute("aria-activedescendant");
  box.setAttribute("aria-activedescendant", rows[chosen].id);
  rows[chosen].scrollIntoView({ block: "nearest" });
}

function close() {
  matches.hidden = true;
  box.setAttribute("aria-expanded", "false");
}

box.addEventListener("input", show);
box.addEventListener("focus", show);
box.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown") choose(chosen + 1);
  else if (event.key === "ArrowUp") choose(chosen - 1);
  else if (event.key === "Enter") matches.querySelectorAll("[role=option] a")[chosen]?.click();
  else if (event.key === "Escape") { close(); box.blur(); }
  else return;
  event.preventDefault();
});
document.addEventListener("pointerdown", (event) => {
  if (!event.target.closest(".search")) close();
});

// Keys. On a page of one feature they follow its links, elsewhere they move through the cells.

function step(by) {
  const link = document.querySelector(by > 0 ? "a[rel=next]" : "a[rel=prev]");
  if (link) return link.click();
  const cells = [...document.querySelectorAll(".features a, .row a")];
  const focused = document.activeElement.closest(".features a, .row a");
  const start = focused ?? document.querySelector(".features li:target a");
  const at = start ? cells.indexOf(start) + by : 0;
  cells[Math.max(0, Math.min(at, cells.length - 1))]?.focus();
}

const follow = (selector) => () => document.querySelector(selector)?.click();

const actions = {
  j: () => step(1),
  ArrowRight: () => step(1),
  k: () => step(-1),
  ArrowLeft: () => step(-1),
  "[": follow("#previous-layer"),
  "]": follow("#next-layer"),
  u: follow("a[rel=up]"),
  "/": () => box.focus(),
  "?": () => dialog.showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
  if (event.target.matches("input, textarea, select") || !Object.hasOwn(actions, event.key)) return;
  event.preventDefault();
  actions[event.key]();
});

const help = document.getElementById("help");
help.addEventListener("click", () => dialog.showModal());
box.disabled = help.disabled = false;
