// What all pages are built of: elements, numbers, tables and charts.
const D = JSON.parse(document.getElementById("data").textContent);
const F = D.features, S = D.summary, N = F.feature.length;
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
const rateTitle = (r) => (r && isNumber(r.rate) ? `${percent(r.rate)}, 95 % interval ${percent(r.low)} to ${percent(r.high)}, n = ${r.n}` : "no case");
const rate = (r, kind) => h("span", { title: rateTitle(r), class: kind || "" }, r && isNumber(r.rate) ? percent(r.rate) : DASH);

// ------------------------------------------------------------------- pieces
const bar = (x) => h("i", { "aria-hidden": "true" }, h("b", { vars: { width: Math.round(100 * Math.max(0, Math.min(1, x))) + "%" } }));
const meter = (x, good) => isNumber(x) ? h("span", { class: "meter" + (x >= good ? " good" : "") }, bar(x), fixed(x)) : h("span", { class: "soft" }, DASH);
const name = (i) => F.name[i] || (F.density[i] ? "not explained" : "never active");
const link = (i, text) => h("a", { href: "#/feature/" + i, title: F.explanation[i] || "" }, text || `${i} ${name(i)}`);
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

// ------------------------------------------------------------------- charts
function bars(values, { labels = [], titles = [], ghost = null, line = null, top = 0, height = 130, label = "" }) {
  const W = 460, H = height, base = H - 20, left = 4;
  const highest = top || Math.max(1e-12, ...values.map((v) => v || 0), ...(ghost || [0]));
  const step = (W - 2 * left) / values.length, y = (v) => base - (base - 8) * Math.min(1, (v || 0) / highest);
  const svg = s("svg", { viewBox: `0 0 ${W} ${H}`, class: "chart", role: "img", "aria-label": label });
  values.forEach((v, i) => {
    const x = left + i * step;
    svg.append(s("rect", { class: "barfill", x: x + step * 0.08, y: y(v), width: step * 0.84, height: Math.max(0, base - y(v)) },
      s("title", {}, titles[i] || "")));
    if (ghost && ghost[i]) svg.append(s("rect", { class: "ghost", x: x + step * 0.08, y: y(ghost[i]), width: step * 0.84, height: base - y(ghost[i]) }));
    if (labels[i]) svg.append(s("text", { x: x + step / 2, y: H - 5, "text-anchor": "middle" }, labels[i]));
  });
  svg.append(s("line", { class: "axis", x1: 0, x2: W, y1: base, y2: base }));
  if (line !== null) svg.append(s("line", { class: "chance", x1: 0, x2: W, y1: y(line), y2: y(line) }, s("title", {}, "chance")));
  return svg;
}
const KEY = [["on", "on target"], ["off", "off target"], ["none", "no change"]];
const key = () => h("div", { class: "key" }, KEY.map(([kind, text]) => h("span", {}, h("i", { class: kind }), text)));
function curves(rows, label) {
  const W = 460, H = 190, left = 42, right = 20, base = H - 22;
  const sorted = [...rows].sort((a, b) => a.strength - b.strength);
  const low = Math.min(0, ...sorted.map((r) => r.strength)), high = Math.max(0, ...sorted.map((r) => r.strength));
  const x = (v) => left + ((W - left - right) * (v - low)) / (high - low || 1), y = (v) => base - (base - 10) * v;
  const svg = s("svg", { viewBox: `0 0 ${W} ${H}`, class: "chart", role: "img", "aria-label": label });
  for (const v of [0, 0.5, 1]) {
    svg.append(s("line", { class: "axis", x1: left, x2: W - right, y1: y(v), y2: y(v) }),
      s("text", { x: left - 5, y: y(v) + 4, "text-anchor": "end" }, percent(v)));
  }
  svg.append(s("line", { class: "axis", x1: x(0), x2: x(0), y1: 10, y2: base }));
  for (const [kind, name] of [["on", "on_target"], ["off", "off_target"], ["none", "no_change"]]) {
    // Nothing is measured at strength 0, so the line is broken there.
    for (const side of [sorted.filter((r) => r.strength < 0), sorted.filter((r) => r.strength > 0)]) {
      const points = side.filter((r) => isNumber(r[name].rate));
      svg.append(s("polyline", { class: kind, points: points.map((r) => `${x(r.strength)},${y(r[name].rate)}`).join(" ") }));
      for (const r of points) svg.append(s("circle", { class: kind, cx: x(r.strength), cy: y(r[name].rate), r: 2.5 },
        s("title", {}, `${name.replace("_", " ")} at ${r.strength}: ${rateTitle(r[name])}`)));
    }
  }
  for (const v of new Set([low, 0, high, ...sorted.map((r) => r.strength)])) {
    svg.append(s("text", { x: x(v), y: H - 6, "text-anchor": "middle" }, (v > 0 ? "+" : "") + v));
  }
  return svg;
}
