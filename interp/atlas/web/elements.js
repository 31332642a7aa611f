// What all pages are built of: elements, numbers and tables.
const D = JSON.parse(document.getElementById("data").textContent);
const S = D.summary;
let F = null, N = 0; // the list of features by column, and how many there are
const main = document.getElementById("main");
const searchBox = document.getElementById("search");
const ROW = 46;

// ------------------------------------------------------------------ elements
const SVG = "http://www.w3.org/2000/svg"; // a name, not an address that is fetched
function fill(element, props, kids) {
  for (const [name, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else if (name === "vars") for (const [key, item] of Object.entries(value)) element.style.setProperty(key, item);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const kid of kids.flat(Infinity)) if (kid !== null && kid !== undefined && kid !== false) element.append(kid);
  return element;
}
const h = (tag, props, ...kids) => fill(document.createElement(tag), props, kids);
const s = (tag, props, ...kids) => fill(document.createElementNS(SVG, tag), props, kids);

// ------------------------------------------------------------------- numbers
const DASH = "–";
const isNumber = (x) => typeof x === "number" && isFinite(x);
const fixed = (x, digits = 2) => (isNumber(x) ? x.toFixed(digits) : DASH);
const count = (x) => (isNumber(x) ? x.toLocaleString("en") : DASH);
const short = (x) => (isNumber(x) ? String(Number(x.toPrecision(3))) : DASH);
const percent = (x, digits = 0) => (isNumber(x) ? (100 * x).toFixed(digits) + " %" : DASH);
const density = (x) => (isNumber(x) ? (x === 0 ? "0" : x < 0.001 ? (100 * x).toPrecision(2) + " %" : (100 * x).toFixed(2) + " %") : DASH);
const between = (interval) => (interval ? `95 % interval ${fixed(interval[0])} to ${fixed(interval[1])}` : "");
const FEW = 30; // cases below which a rate is shown with its number of cases
// Resamples of studies that all agree have no width: there, and of few cases, the interval is that of the share.
const intervalOf = (r) => (r.n < FEW || r.low === r.high ? wilson(r.rate, r.n) : [r.low, r.high]);
const rateTitle = (r) => (r && isNumber(r.rate) ? `${percent(r.rate)}, 95 % interval ${intervalOf(r).map((x) => percent(x)).join(" to ")}, n = ${r.n}` : "no case");
const rate = (r, kind) => h("span", { title: rateTitle(r), class: kind || "" }, r && isNumber(r.rate) ? percent(r.rate) : DASH);
const fewCases = (n) => (isNumber(n) && n > 0 && n < FEW ? h("span", { class: "few" }, ` n = ${n}`) : null);
// A 95 % interval of a share of n cases (Wilson 1927).
function wilson(share, n) {
  if (!isNumber(share) || !(n > 0)) return null;
  const z = 1.96, middle = (share + (z * z) / (2 * n)) / (1 + (z * z) / n);
  const half = (z / (1 + (z * z) / n)) * Math.sqrt((share * (1 - share)) / n + (z * z) / (4 * n * n));
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}
const range = (interval) => (interval ? `${fixed(interval[0])}–${fixed(interval[1])}` : "");

// ------------------------------------------------------------------- pieces
const bar = (x) => h("i", { "aria-hidden": "true" }, h("b", { vars: { width: Math.round(100 * Math.max(0, Math.min(1, x))) + "%" } }));
const meter = (x, good) => isNumber(x) ? h("span", { class: "meter" + (x >= good ? " good" : "") }, bar(x), fixed(x)) : h("span", { class: "soft" }, DASH);
const name = (i) => F.name[i] || (F.density[i] ? "not explained" : "never active");
// Concepts that a feature detects well, of a feature the best one: its explanation may say little, as of images.
const detected = new Map(D.concepts.filter((row) => row.f1 >= 0.8).sort((a, b) => a.f1 - b.f1).map((row) => [row.feature, row.concept]));
const titled = (i) => `${i} ${name(i)}` + (detected.has(i) ? ` (${detected.get(i)})` : "");
const link = (i, text) => h("a", { href: "#/feature/" + i, title: name(i) }, text || titled(i));
const tile = (value, label, title) => h("div", { class: "tile", title }, h("b", {}, value), h("span", {}, label));
const chip = (text, kind) => h("span", { class: "chip " + (kind || "") }, text);
const panel = (title, ...kids) => h("section", { class: "panel" }, title ? h("h2", {}, title) : null, ...kids);

// Columns: {title, value(row) to sort by, cell(row), num, wide, hint}.
function table(columns, rows, sortBy, down = true) {
  const body = h("tbody");
  const heads = columns.map((column, c) =>
    h("th", { scope: "col", class: column.num ? "num" : "", title: column.hint },
      h("button", { type: "button", on: { click: () => sort(c, c === sortBy ? !down : Boolean(column.num)) } }, column.title)));
  function sort(c, falling) {
    sortBy = c; down = falling;
    heads.forEach((head, i) => (i === c ? head.setAttribute("aria-sort", falling ? "descending" : "ascending") : head.removeAttribute("aria-sort")));
    const sorted = [...rows].sort((a, b) => compare(columns[c].value(a), columns[c].value(b), falling));
    body.replaceChildren(...sorted.map((row) => h("tr", {}, columns.map((column) =>
      h("td", { class: (column.num ? "num " : "") + (column.wide ? "wide" : "") }, column.cell(row))))));
  }
  sort(sortBy, down);
  return h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, heads)), body));
}
function compare(a, b, falling) {
  const missing = (x) => x === null || x === undefined || x === "" || Number.isNaN(x);
  if (missing(a) || missing(b)) return missing(a) - missing(b); // missing values are last either way
  const order = a < b ? -1 : a > b ? 1 : 0;
  return falling ? -order : order;
}

