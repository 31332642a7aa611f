// The list of features: searched, filtered and sorted; what is chosen is in the address.
const DEFAULTS = { q: "", in: "everything", show: "", section: "", prefix: "", sort: "detection", order: "down" };
const filters = { ...DEFAULTS };
const SORTABLE = ["feature", "name", "concept", "detection", "f1", "density", "max_activation", "group"];
const queryWords = () => filters.q.toLowerCase().split(/\s+/).filter(Boolean);
let haystack = null, wordFeatures = new Map(), order = [], byContext = new Set();
const hasPrefixes = () => F.group.some((group) => group > 0);
const steeredIn = (i) => Object.values(F.steered).some((features) => features.includes(i));
function buildHaystack() {
  haystack = Array.from({ length: N }, (_, i) =>
    [F.name[i], F.top_tokens[i].join(" "), F.concept[i], ...Object.values(F.sets).map((names) => names[i])].join(" ").toLowerCase());
}
function address() {
  const chosen = new URLSearchParams(Object.entries(filters).filter(([field, value]) => value !== DEFAULTS[field]));
  return "#/features" + (chosen.size ? "?" + chosen : "");
}
function takeAddress(query) {
  Object.assign(filters, DEFAULTS);
  for (const [field, value] of query) if (field in DEFAULTS) filters[field] = value;
  if (!SORTABLE.includes(filters.sort)) filters.sort = DEFAULTS.sort;
  if (document.activeElement !== searchBox) searchBox.value = filters.q;
}
// The features in whose contexts a word begins with `start`; the words are in chunks by the alphabet.
async function featuresWithWord(start) {
  if (wordFeatures.has(start)) return wordFeatures.get(start);
  const found = new Set();
  let n = D.words.findLastIndex((word) => word <= start);
  for (n = Math.max(n, 0); n < D.words.length && (D.words[n] <= start || D.words[n].startsWith(start)); n++) {
    for (const [word, steps] of Object.entries(await chunk("words-" + n))) {
      if (!word.startsWith(start)) continue;
      let feature = 0;
      for (const step of steps) found.add((feature += step));
    }
  }
  wordFeatures.set(start, found);
  return found;
}
const plain = (word) => word.replace(/^[^\p{L}\p{N}]+|[^\p{L}\p{N}]+$/gu, "");
// Fills `order` with the features that match, sorted.
async function match() {
  const words = queryWords(), inNames = filters.in !== "contexts", inContexts = filters.in !== "names" && D.words.length > 0;
  const sets = await Promise.all(words.map((word) => (inContexts && plain(word) ? featuresWithWord(plain(word)) : new Set())));
  if (!haystack) buildHaystack();
  const found = [];
  for (let i = 0; i < N; i++) {
    if (filters.prefix !== "" && F.group[i] !== Number(filters.prefix)) continue;
    if (filters.show === "scored" && F.detection[i] === null) continue;
    if (filters.show === "not scored" && F.detection[i] !== null) continue;
    if (filters.show === "steered" && !steeredIn(i)) continue;
    if (filters.section && F.section[i] !== filters.section) continue;
    if (words.every((word, n) => (inNames && (haystack[i].includes(word) || String(i) === word)) || sets[n].has(i))) found.push(i);
  }
  const value = filters.sort === "feature" ? null : F[filters.sort], down = filters.order === "down";
  // With words, features that are named by them come before those that only have them in their contexts.
  byContext = new Set(words.length && inNames ? found.filter((i) => !words.every((word) => haystack[i].includes(word) || String(i) === word)) : []);
  order = found.sort((a, b) => byContext.has(a) - byContext.has(b) || (value ? compare(value[a], value[b], down) || a - b : down ? b - a : a - b));
}
// Concepts and statements that the words name, with the features that detect them.
function namedConcepts() {
  const words = queryWords();
  if (!words.length) return null;
  const named = (rows, field, title) => rows.filter((row) => words.every((word) => row[field].toLowerCase().includes(word)))
    .sort((a, b) => b.f1 - a.f1).slice(0, 8).map((row) => [h("a", { class: "chip " + (row.f1 >= 0.8 ? "good" : ""), href: "#/feature/" + row.feature, title }, `${row[field]} → ${row.feature} (F1 ${fixed(row.f1)})`), " "]);
  const found = [...named(D.concepts, "concept", "concept and the feature that detects it"), ...named(D.statements || [], "statement", "statement and the feature that detects it")];
  return found.length ? h("p", { class: "concepts" }, h("span", { class: "soft small" }, "Concepts: "), found) : null;
}
function subtitle(i) {
  if (byContext.has(i)) return "the words are in its contexts";
  const others = Object.entries(F.sets).filter(([, names]) => names[i]).map(([set, names]) => `${set}: ${names[i]}`);
  return others.length ? others.join(" · ") : F.reason[i] || (F.concept[i] ? `best concept: ${F.concept[i]} (F1 ${fixed(F.concept_f1[i])})` : "");
}
let refreshList = null;
function features() {
  let current = 0, asked = 0;
  const prefixes = hasPrefixes();
  const columns = [["feature", "#", false], ["name", "Explanation", false], OF_IMAGES ? ["concept", "Best label", false] : ["top_tokens", "Peak tokens", false], ["detection", "Detection", true],
    ["f1", "F1", true], ["density", "Density", true], ["max_activation", "Max", true], ...(prefixes ? [["group", "Prefix", true]] : [])];
  const counter = h("span", { class: "count", role: "status" }), concepts = h("div", {});
  const canvas = h("div", { vars: { position: "relative" } });
  const view = h("div", { class: "viewport", tabindex: "0", role: "listbox", "aria-label": "Features", on: { scroll: draw, keydown: keys } }, canvas);
  const heads = columns.map(([column, title, num]) => h("div", { class: num ? "num" : "", role: "columnheader" },
    column === "top_tokens" ? title : h("button", { type: "button", on: { click: () => sort(column, num) } }, title)));
  const pick = (label, field, options) => h("label", {}, label, h("select", { "aria-label": label, on: { change: (e) => { filters[field] = e.target.value; refresh(); } } },
    options.map(([value, text]) => h("option", { value, selected: filters[field] === value }, text))));
  function sort(column, num) {
    filters.order = filters.sort === column ? (filters.order === "down" ? "up" : "down") : num ? "down" : "up";
    filters.sort = column;
    refresh();
  }
  async function refresh() {
    const mine = ++asked;
    history.replaceState(null, "", address());
    await match();
    if (mine !== asked) return;
    current = 0;
    columns.forEach(([column], c) => column === filters.sort ? heads[c].setAttribute("aria-sort", filters.order === "down" ? "descending" : "ascending") : heads[c].removeAttribute("aria-sort"));
    counter.textContent = `${count(order.length)} of ${count(N)} features`;
    concepts.replaceChildren(namedConcepts() || "");
    canvas.style.setProperty("height", order.length * ROW + "px");
    view.scrollTop = 0; draw();
  }
  function draw() {
    const first = Math.max(0, Math.floor(view.scrollTop / ROW) - 8);
    const last = Math.min(order.length, first + Math.ceil((view.clientHeight || 800) / ROW) + 16);
    const shown = [];
    for (let at = first; at < last; at++) shown.push(line(order[at], at));
    canvas.replaceChildren(...(order.length ? shown : [h("p", { class: "empty" }, "No feature matches. Try fewer words or another filter.")]));
  }
  const line = (i, at) => h("a", { class: "row" + (at === current ? " current" : "") + (prefixes ? "" : " unprefixed"), href: "#/feature/" + i, tabindex: "-1", role: "option",
    "aria-selected": at === current ? "true" : "false", vars: { transform: `translateY(${at * ROW}px)` } },
    h("span", { class: "id" }, String(i)),
    h("span", { class: "name", title: name(i) }, name(i), h("span", { class: "sub" }, subtitle(i))),
    h("span", { class: "soft small" }, OF_IMAGES ? F.concept[i] : F.top_tokens[i].join(" · ")),
    h("span", { class: "num", title: isNumber(F.n_examples[i]) ? `n = ${F.n_examples[i]} examples` : "" }, meter(F.detection[i], 0.75)), h("span", { class: "num" }, fixed(F.f1[i])),
    h("span", { class: "num" }, density(F.density[i])), h("span", { class: "num" }, short(F.max_activation[i])), prefixes ? h("span", { class: "num" }, String(F.group[i] + 1)) : null);
  function keys(event) {
    const move = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -N, End: N }[event.key];
    if (event.key === "Enter" && order.length) location.hash = "#/feature/" + order[current];
    if (!move || !order.length) return;
    event.preventDefault();
    current = Math.max(0, Math.min(order.length - 1, current + move));
    if (current * ROW < view.scrollTop) view.scrollTop = current * ROW;
    if ((current + 1) * ROW > view.scrollTop + view.clientHeight) view.scrollTop = (current + 1) * ROW - view.clientHeight;
    draw();
  }
  refreshList = refresh;
  requestAnimationFrame(refresh);
  const sections = [...new Set(F.section)].filter(Boolean).sort(), groups = [...new Set(F.group)];
  return [
    h("h1", {}, "Features"),
    h("div", { class: "filters" },
      D.words.length ? pick("Search in", "in", [["everything", "names and contexts"], ["names", "names, tokens, concepts"], ["contexts", "contexts"]]) : null,
      pick("Show", "show", [["", "all"], ["scored", "scored"], ["not scored", "not scored"], ...(D.sweeps.length ? [["steered", "steered"]] : [])]),
      OF_IMAGES ? null : pick("Mostly in", "section", [["", "any section"], ...sections.map((x) => [x, x])]),
      prefixes ? pick("Matryoshka prefix", "prefix", [["", "any"], ...groups.map((g) => [String(g), String(g + 1)])]) : null,
      counter),
    concepts,
    h("section", { class: "panel list" }, h("div", { class: "head" + (prefixes ? "" : " unprefixed"), role: "row" }, heads), view),
  ];
}
