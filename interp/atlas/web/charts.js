// Charts.
const CHART_WIDTH = 460;
// Texts below an axis, moved where they would leave the chart, without those that would overlap the one before.
function ticks(svg, places, texts, y) {
  let free = -Infinity;
  texts.forEach((text, i) => {
    const half = (text.length * 6.4) / 2; // of 11-pixel type
    const x = Math.min(Math.max(places[i], half), CHART_WIDTH - half);
    if (!text || x - half < free) return;
    free = x + half + 6;
    svg.append(s("text", { x, y, "text-anchor": "middle" }, text));
  });
}
function bars(values, { labels = [], titles = [], ghost = null, line = null, top = 0, height = 130, label = "" }) {
  const W = CHART_WIDTH, H = height, base = H - 20, left = 4;
  const highest = top || Math.max(1e-12, ...values.map((v) => v || 0), ...(ghost || [0]));
  const step = (W - 2 * left) / values.length, y = (v) => base - (base - 8) * Math.min(1, (v || 0) / highest);
  const svg = s("svg", { viewBox: `0 0 ${W} ${H}`, class: "chart", role: "img", "aria-label": label });
  values.forEach((v, i) => {
    const x = left + i * step;
    svg.append(s("rect", { class: "barfill", x: x + step * 0.08, y: y(v), width: step * 0.84, height: Math.max(0, base - y(v)) },
      s("title", {}, titles[i] || "")));
    if (ghost && ghost[i]) svg.append(s("rect", { class: "ghost", x: x + step * 0.08, y: y(ghost[i]), width: step * 0.84, height: base - y(ghost[i]) }));
  });
  ticks(svg, values.map((_, i) => left + (i + 0.5) * step), values.map((_, i) => labels[i] || ""), H - 5);
  svg.append(s("line", { class: "axis", x1: 0, x2: W, y1: base, y2: base }));
  if (line !== null) svg.append(s("line", { class: "chance", x1: 0, x2: W, y1: y(line), y2: y(line) }, s("title", {}, "chance")));
  return svg;
}
const KEY = [["on", "on target"], ["off", "off target"], ["none", "no change"]];
const key = () => h("div", { class: "key" }, KEY.map(([kind, text]) => h("span", {}, h("i", { class: kind }), text)));
function curves(rows, label) {
  const W = CHART_WIDTH, H = 190, left = 42, right = 20, base = H - 22;
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
      for (const r of points) svg.append(s("line", { class: `range ${kind}`, x1: x(r.strength), x2: x(r.strength), y1: y(intervalOf(r[name])[0]), y2: y(intervalOf(r[name])[1]) }),
        s("circle", { class: kind, cx: x(r.strength), cy: y(r[name].rate), r: 2.5 },
        s("title", {}, `${name.replace("_", " ")} at ${r.strength}: ${rateTitle(r[name])}`)));
    }
  }
  const marks = [...new Set([low, 0, high, ...sorted.map((r) => r.strength)])].sort((a, b) => a - b);
  ticks(svg, marks.map(x), marks.map((v) => (v > 0 ? "+" : "") + v), H - 6);
  return svg;
}
// Tokens with a number each: bars from the middle, to the right above 0 and to the left below.
function tokenBars(tokens, values, label) {
  const largest = Math.max(...values.map(Math.abs)) || 1;
  return h("table", { class: "tokenbars", "aria-label": label }, h("tbody", {}, tokens.map((token, n) => h("tr", {},
    h("td", {}, h("code", {}, token.trim() || "␣")),
    h("td", { class: "num" }, h("span", { class: "meter bare" + (values[n] < 0 ? " bad" : "") }, bar(Math.abs(values[n]) / largest), fixed(values[n], 2)))))));
}
