// The page of one feature.
async function feature(i) {
  const d = await details(i);
  if (!order.length) await match();
  const at = order.indexOf(i);
  const step = (by) => (at >= 0 && order[at + by] !== undefined ? "#/feature/" + order[at + by] : null);
  const mine = D.concepts.filter((row) => row.feature === i);
  return [
    h("div", { class: "crumbs" }, h("a", { href: address() }, filters.q ? `← features for “${filters.q}”` : "← all features"), h("span", { class: "right" },
      step(-1) ? h("a", { href: step(-1), id: "previous" }, "previous") : null, step(1) ? h("a", { href: step(1), id: "next" }, "next") : null)),
    h("h1", {}, h("span", { class: "soft" }, `${i}  `), name(i)),
    d.explanation ? h("p", { class: "explanation" }, d.explanation) : h("p", { class: "explanation soft" }, `No explanation: ${F.reason[i]}.`),
    mine.length ? h("p", {}, mine.map((row) => [chip(`best feature for ${row.concept}: F1 ${fixed(row.f1)}`, row.f1 >= 0.8 ? "good" : ""), fewCases(row.n_positive), " "])) : null,
    panel(null, h("dl", { class: "facts" }, facts(i, d).map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))))),
    interpretationsPanel(i, d),
    h("div", { class: "cols stack" }, histogramPanel(i, d), decilePanel(d), OF_IMAGES ? correlationPanel(d) : sectionPanel(d)),
    boxesPanel(d), contextsPanel(i, d), OF_IMAGES ? null : steeringPanels(d), logitPanel(d), OF_IMAGES || !d.label ? null : correlationPanel(d),
    familyPanel(i, d),
    h("div", { class: "cols stack" }, nearest("Nearest features by decoder direction", "Cosine", d.similar, d.similar_cosine),
      nearest("Nearest features by co-activation", "Correlation", d.coactive, d.coactive_correlation)),
  ];
}
function facts(i, d) {
  const scoreOf = (value, interval) => fixed(value) + (interval ? ` (${range(interval)})` : "");
  const negatives = Object.entries(d.by_negative || {}).filter(([, v]) => isNumber(v)).map(([kind, v]) => `${kind} ${percent(v)}`);
  return [["Detection", F.detection[i] === null ? F.reason[i] : [scoreOf(F.detection[i], d.detection_interval), h("span", { class: "few" }, ` n = ${F.n_examples[i]}`)]], ["F1", scoreOf(F.f1[i], d.f1_interval)],
    ...(OF_IMAGES ? [] : [["Against random negatives", fixed(d.detection_random)], ["Against hard negatives", fixed(d.detection_hard)],
      ["Not active and recognised as such", negatives.join(", ") || DASH]]),
    ["Precision", fixed(d.precision)], ["Recall", fixed(d.recall)], ...(OF_IMAGES ? [] : [["Fuzzing", fixed(d.fuzzing)]]), ["Control (explanation of another feature)", fixed(F.detection_shuffled[i])],
    ["Density", density(F.density[i])], ["Largest activation", short(F.max_activation[i])],
    [`Activating ${THINGS}`, `${count(d.n_contexts_train)} train, ${count(d.n_contexts_held_out)} held out`],
    ...(hasPrefixes() ? [["Matryoshka prefix", prefixText(i)]] : []),
    ...(OF_IMAGES ? [] : [["Mean position", short(d.mean_position)], ["Peak tokens", d.top_tokens.join(" · ") || DASH]]),
    ...(d.label ? [["Monosemanticity", fixed(d.label.monosemanticity, 3)]] : []),
    ["Best concept, above chance", F.concept[i] ? `${F.concept[i]} (F1 ${fixed(F.concept_f1[i])})` : DASH],
    ...(D.statements ? [["True description", d.true_description ? `${d.true_description.join(" / ")} (F1 ${fixed(d.true_f1)})` : DASH]] : [])];
}
function interpretationsPanel(i, d) {
  const own = { set: "interp", name: F.name[i], explanation: d.explanation, detection: F.detection[i], detection_interval: d.detection_interval, f1: F.f1[i], n_examples: F.n_examples[i] };
  const rows = [own, ...Object.entries(d.sets).map(([set, row]) => ({ set, ...row }))];
  if (!Object.keys(D.sets).length) return null;
  return panel("Interpretations by set", table([
    { title: "Set", value: (r) => r.set, cell: (r) => h("b", {}, r.set) },
    { title: "Explanation", wide: true, value: (r) => r.explanation, cell: (r) => [r.name ? h("div", {}, r.name) : null, h("div", { class: "soft small" }, r.explanation || DASH)] },
    { title: "Given score", num: true, hint: "That came with the set, on its own scale", value: (r) => r.score, cell: (r) => short(r.score) },
    { title: "Detection", num: true, hint: "By this project's protocol", value: (r) => r.detection, cell: (r) => [meter(r.detection, 0.75), h("span", { class: "soft small" }, r.detection_interval ? ` ${range(r.detection_interval)}` : "")] },
    { title: "F1", num: true, value: (r) => r.f1, cell: (r) => fixed(r.f1) },
    { title: "n", num: true, value: (r) => r.n_examples, cell: (r) => count(r.n_examples) },
  ], rows, 3));
}
const nearest = (title, measure, features, values) => (features.length ? panel(title, table([
  { title: "Feature", value: (r) => r.f, cell: (r) => link(r.f) },
  { title: measure, num: true, value: (r) => r.c, cell: (r) => fixed(r.c) },
  { title: "Detection", num: true, value: (r) => F.detection[r.f], cell: (r) => fixed(F.detection[r.f]) },
  { title: "Density", num: true, value: (r) => F.density[r.f], cell: (r) => density(F.density[r.f]) },
], features.map((f, n) => ({ f, c: values[n] })), 1)) : null);
function familyPanel(i, d) {
  const group = F.explanation_group[i];
  const duplicates = group === null ? [] : F.explanation_group.flatMap((other, f) => (f !== i && other === group ? [f] : []));
  const list = (features) => features.slice(0, 24).map((f) => h("div", {}, link(f), hasPrefixes() ? h("span", { class: "soft small" }, ` prefix ${F.group[f] + 1}`) : null));
  const block = (title, features) => (features.length ? [h("h3", {}, `${title} (${count(features.length)})`), list(features)] : []);
  const parts = [...block("Splits off from", d.parent === null ? [] : [d.parent]), ...block("Splits into", d.children), ...block("Near-duplicate explanations", duplicates)];
  return parts.length ? panel("Family", parts) : null;
}
function prefixText(i) {
  const prefixes = D.run.sae.prefixes, g = F.group[i];
  return `${g + 1}` + (prefixes && prefixes[g] ? ` (first ${count(prefixes[g].features)} features)` : "");
}
function histogramPanel(i, d) {
  const [first, counts] = d.histogram, edges = S.histogram_edges;
  if (!counts.length) return panel("Peak activations", h("p", { class: "soft" }, "Never active."));
  const low = (b) => (b === 0 ? 0 : edges[b - 1]), high = (b) => (b < edges.length ? edges[b] : Infinity);
  const n = counts.reduce((sum, value) => sum + value, 0);
  return panel("Peak activations", bars(counts, { labels: counts.map((_, b) => short(low(first + b))),
    titles: counts.map((value, b) => `${short(low(first + b))} to ${short(high(first + b))}: ${value} ${THINGS}`), label: "Histogram of peak activations" }),
    h("p", { class: "small soft" }, `Number of ${THINGS} by their largest activation, in half-octave bins (n = ${count(n)}).`));
}
function decilePanel(d) {
  const values = d.by_decile;
  if (!values) return panel("Detection by activation decile", h("p", { class: "soft" }, "Not scored."));
  return panel("Detection by activation decile", bars(values, { top: 1, line: 0.5, labels: values.map((_, n) => String(n + 1)),
    titles: values.map((v, n) => `decile ${n + 1}: ${v === null ? "no examples" : percent(v) + " recognised"}`), label: `Share of activating ${THINGS} recognised, by decile` }),
    h("p", { class: "small soft" }, `Share of held-out activating ${THINGS} that the explanation recognised, weakest tenth first; a tenth has a few examples each.`));
}
function sectionPanel(d) {
  const shares = Object.entries(d.sections).sort((a, b) => b[1] - a[1]);
  return panel("Where it fires", shares.length ? h("table", {}, h("tbody", {}, shares.map(([section, share]) =>
    h("tr", {}, h("td", {}, section), h("td", { class: "num" }, h("span", { class: "meter bare" }, bar(share), percent(share))))))) : h("p", { class: "soft" }, "Nowhere."));
}
function logitPanel(d) {
  if (!d.promoted) return null;
  return panel("Tokens that its direction promotes and suppresses", h("div", { class: "cols" },
    tokenBars(d.promoted, d.promoted_logit, "Promoted tokens"), tokenBars(d.suppressed, d.suppressed_logit, "Suppressed tokens")),
    h("p", { class: "small soft" }, "Change of each token's logit by a decoder row of length 1, before the final norm's division."));
}
// How its heat maps agree with the boxes of the labels that it was chosen for.
function boxesPanel(d) {
  if (!d.boxes.length) return null;
  const columns = [["touching", "Strongest patch touches a box"], ["pointing", "Its centre is in one"], ["inside", "Activation inside"], ["iou", "IoU"]];
  return panel("Heat maps against boxes", h("table", {}, h("thead", {}, h("tr", {}, h("th", {}, "Label"), columns.map(([, title]) => h("th", { class: "num" }, title)), h("th", { class: "num" }, "Images"))),
    h("tbody", {}, d.boxes.map((row) => h("tr", {}, h("td", {}, row.concept), columns.map(([name]) =>
      h("td", { class: "num" }, fixed(row[name]), h("span", { class: "soft small" }, ` random ${fixed(row.random[name])}`))), h("td", { class: "num" }, count(row.images)))))),
    h("p", { class: "small soft" }, "On images of patients who took no part in choosing the feature; random: the mean of random features on the same images."));
}
function correlationPanel(d) {
  if (!d.label) return panel("Correlation with labels", h("p", { class: "soft" }, "Stage label: not run."));
  const rows = Object.entries(d.label.correlation).filter(([, r]) => isNumber(r)).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 10);
  return panel("Correlation with labels", rows.length ? h("table", {}, h("tbody", {}, rows.map(([label, r]) =>
    h("tr", {}, h("td", {}, label), h("td", { class: "num" }, h("span", { class: "meter bare" + (r < 0 ? " bad" : "") }, bar(Math.abs(r)), fixed(r))))))) : h("p", { class: "soft" }, "It does not vary."));
}
