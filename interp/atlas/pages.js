// The pages: overview, list of features, one feature, steering; and which of them is shown.
// ----------------------------------------------------------------- overview
function overview() {
  const run = D.run, control = S.controls["shuffled explanations"].detection;
  const headline = D.evaluation && D.evaluation.headline, head = headline && (headline.add || Object.values(headline)[0]);
  const tiles = [
    tile(fixed(run.sae.fvu, 3), "variance unexplained", "Fraction of the held-out activations' variance that the autoencoder misses"),
    tile(fixed(run.sae.l0, 1), `active per ${OF_IMAGES ? "row" : "token"} (k = ${run.sae.k ?? DASH})`),
    tile(`${count(S.alive)}`, `of ${count(S.features)} features are ever active`),
    tile(count(S.scored), "features scored"),
    tile(count(S.detection.above_075), "score above 0.75", OF_IMAGES ? null : `with random negatives alone ${count(S.detection_random.above_075)}`),
    tile(count(S.detection.below_05), "score below 0.5 (chance)", OF_IMAGES ? null : `with random negatives alone ${count(S.detection_random.below_05)}`),
    tile(fixed(S.detection.mean), "mean detection score", between(S.detection.interval)),
    tile(fixed(control.mean), "mean with shuffled explanations (control)", between(control.interval)),
    tile(`${S.concepts.f1_08} / ${S.concepts.tested}`, "concepts with a feature of F1 ≥ 0.8"),
    ...(head ? [tile(percent(head.on_target.rate), "steered on target", rateTitle(head.on_target)),
      tile(percent(head.off_target.rate), "steered off target", rateTitle(head.off_target)),
      tile(percent(head.no_change.rate), "steered without change", rateTitle(head.no_change))]
      : OF_IMAGES ? [] : [tile("not run", D.steering ? "evaluation of steering" : "steering")]),
  ];
  return [
    h("h1", {}, "What this autoencoder has found"),
    OF_IMAGES ? encoderLead() : h("p", { class: "lead" }, `${count(run.tokens)} tokens of ${count(run.studies)} studies (${run.source ?? "unknown source"}, tokens kept: ${run.token_filter ?? DASH}), read at ${run.site ?? DASH} of ${run.model ?? DASH}`
      + (run.parameters ? ` (${(run.parameters / 1e6).toFixed(1)} million parameters)` : "") + "."),
    h("p", { class: "note" }, h("b", {}, "Explained and scored by: " + S.judge + ". "), judgeNote()),
    h("div", { class: "tiles" }, tiles),
    panel("Concepts and the features that detect them", h("p", { class: "soft small" },
      "For every label, the feature and threshold with the best F1 on the training studies; F1, precision and recall are measured on held-out studies. "
      + (OF_IMAGES ? "" : "Steering adds the feature's direction while the report is written; its strength was chosen on one half of the studies and is reported on the other. "
      + "Rates: on target / off target, at that strength.")), conceptTable(),
      Object.keys(S.concepts.left_out).length ? h("details", { class: "small soft" }, h("summary", {}, "Concepts that were left out"),
        Object.entries(S.concepts.left_out).map(([concept, why]) => h("div", {}, `${concept}: ${why}`))) : null),
    panel("Detection scores", scoreChart(), h("div", { class: "key" },
      h("span", {}, h("i"), "own explanation"), h("span", {}, h("i", { class: "ghost" }), "another feature's explanation (control)")),
      h("p", { class: "small soft" }, `Balanced accuracy on held-out ${THINGS}; chance is 0.5.`)),
    panel("Features and controls", controlTable()),
    D.statements ? panel("Statements and the features that detect them", h("p", { class: "soft small" },
      "It is known what every sentence of these studies states. For each statement, the feature with the best F1 on the contexts of training studies; F1, precision and recall are measured on those of held-out studies. "
      + `Over ${count(S.truth.features)} features, detection scores and true F1 have a rank correlation of ${fixed(S.truth.spearman)} (with random negatives alone ${fixed(S.truth.spearman_random)}) for the best description by up to three statements or words, `
      + `and of ${fixed(S.truth.spearman_facts)} (${fixed(S.truth.spearman_facts_random)}) for that by statements alone.`), statementTable()) : null,
    D.label ? panel("Features and raw dimensions, against the labels", h("p", { class: "soft small" },
      `MedSAE's measures over ${count(D.label.studies)} studies${OF_IMAGES ? "" : ` (tokens of: ${D.label.sections.join(", ")})`}. Kept: correlated above 0.2 with some label. Low entropy and high monosemanticity are good. Compare features with the others by rank: raw dimensions and random directions are rarely 0, which alone lowers their monosemanticity.`), labelTable()) : null,
    panel("Not scored", notScored()),
    panel("How to read this", reading()),
  ];
}
const judgeNote = () => S.judge.startsWith("offline judge")
  ? OF_IMAGES ? "It is a baseline: explanations are combinations of the studies' labels, and scoring tests those labels. It looks at no image." : "It is a baseline: explanations are rules over words and sections, and scoring tests those words, literally. It knows no synonyms and sees no images."
  : `Prompts: ${S.prompt_version}. Cost: ${short(S.cost)} US dollars.`;
function conceptTable() {
  const steered = (row, intended) => row.steering && row.steering[intended];
  const outcome = (intended, title) => ({
    title, num: true, hint: `Steering ${intended === "added" ? "towards" : "away from"} the concept: on target / off target`,
    value: (row) => { const r = steered(row, intended); return r ? r.on_target.rate : null; },
    cell: (row) => {
      if (!D.evaluation) return h("span", { class: "soft" }, "not run");
      const r = steered(row, intended);
      if (!r || (r.on_target.n === 0 && r.off_target.n === 0)) return h("span", { class: "soft", title: "not steered, or no study to judge it on" }, DASH);
      return [rate(r.on_target), h("span", { class: "soft" }, " / "), rate(r.off_target, "soft"), h("span", { class: "soft small" }, ` at ${r.strength}`)];
    },
  });
  return table([
    { title: "Concept", value: (r) => r.concept, cell: (r) => h("b", {}, r.concept) },
    { title: "Prevalence", num: true, value: (r) => r.prevalence, cell: (r) => percent(r.prevalence) },
    { title: "Feature", num: true, value: (r) => r.feature, cell: (r) => link(r.feature, String(r.feature)) },
    { title: "F1", num: true, value: (r) => r.f1, cell: (r) => h("span", { title: `calling every study positive: ${fixed((2 * r.prevalence) / (1 + r.prevalence))}` }, meter(r.f1, 0.8)), hint: "On held-out studies" },
    { title: "Precision", num: true, value: (r) => r.precision, cell: (r) => fixed(r.precision) },
    { title: "Recall", num: true, value: (r) => r.recall, cell: (r) => fixed(r.recall) },
    { title: "Explanation", wide: true, value: (r) => F.name[r.feature], cell: (r) => h("span", { class: "small", title: F.explanation[r.feature] || "" }, F.name[r.feature] || F.reason[r.feature]) },
    { title: "Detection", num: true, value: (r) => F.detection[r.feature], cell: (r) => fixed(F.detection[r.feature]) },
    ...(OF_IMAGES ? [] : [outcome("added", "Steered in"), outcome("removed", "Steered out")]),
  ], D.concepts, 3);
}
function scoreChart() {
  const bins = (values) => { const out = Array(20).fill(0); for (const v of values) if (isNumber(v)) out[Math.min(19, Math.floor(v * 20))]++; return out; };
  const own = bins(F.detection), control = bins(F.detection_shuffled);
  return bars(own, { ghost: control, labels: own.map((_, i) => (i % 5 === 0 ? (i / 20).toFixed(2) : i === 19 ? "1.00" : "")),
    titles: own.map((n, i) => `${(i / 20).toFixed(2)} to ${((i + 1) / 20).toFixed(2)}: ${n} features, control ${control[i]}`), label: "Histogram of detection scores" });
}
function controlTable() {
  const score = (name, title, hint) => ({ title, num: true, hint, value: (r) => r[name].mean, cell: (r) => h("span", { title: between(r[name].interval) }, fixed(r[name].mean)) });
  const own = { control: "features", detection: S.detection, detection_random: S.detection_random, detection_hard: S.detection_hard, ...(S.truth ? { true_f1: S.truth.true_f1 } : {}) };
  const rows = [own, ...Object.entries(S.controls).map(([control, found]) => ({ control, ...found }))];
  return [table([
    { title: "What is scored", value: (r) => r.control, cell: (r) => (r === own ? h("b", {}, r.control) : r.control) },
    { title: "Scored", num: true, value: (r) => r.detection.scored, cell: (r) => count(r.detection.scored) },
    score("detection", "Mean"),
    ...(OF_IMAGES ? [] : [score("detection_random", "Random negatives"), score("detection_hard", "Hard negatives", "Contexts of the nearest features, and other sentences of the same studies")]),
    { title: "Above 0.75", num: true, value: (r) => r.detection.above_075, cell: (r) => (r.detection.scored ? percent(r.detection.above_075 / r.detection.scored) : DASH) },
    ...(S.truth ? [{ title: "True F1", num: true, hint: "Mean of the best descriptions by what is known of the contexts", value: (r) => r.true_f1, cell: (r) => fixed(r.true_f1) }] : []),
    { title: "Features above control", num: true, hint: "Mean of the features minus this mean", value: (r) => S.above_controls[r.control], cell: (r) => fixed(S.above_controls[r.control]) },
  ], rows, 2), h("p", { class: "small soft" }, `Raw dimensions, columns of the encoder with shuffled weights, and columns on activations of other ${OF_IMAGES ? "images" : "tokens"} are thresholded to the densities of the features, and explained and scored like them. Shuffled explanations are those of other features. Shuffled explanations and activations know nothing of the ${OF_IMAGES ? "images" : "text"}: their scores are chance. Raw dimensions and shuffled weights read what the features read.`)];
}
const statementTable = () => table([
  { title: "Statement", value: (r) => r.statement, cell: (r) => h("b", {}, r.statement) },
  { title: "Prevalence", num: true, value: (r) => r.prevalence, cell: (r) => percent(r.prevalence, 1) },
  { title: "Feature", num: true, value: (r) => r.feature, cell: (r) => link(r.feature, String(r.feature)) },
  { title: "F1", num: true, value: (r) => r.f1, cell: (r) => meter(r.f1, 0.8) },
  { title: "Precision", num: true, value: (r) => r.precision, cell: (r) => fixed(r.precision) },
  { title: "Recall", num: true, value: (r) => r.recall, cell: (r) => fixed(r.recall) },
  { title: "Name", wide: true, value: (r) => r.name, cell: (r) => h("span", { class: "small" }, r.name || F.reason[r.feature]) },
], D.statements, 3);
const labelTable = () => table([
  { title: "Neurons", value: (r) => r.basis, cell: (r) => h("b", {}, r.basis) },
  { title: "Alive", num: true, value: (r) => r.alive, cell: (r) => count(r.alive) },
  { title: "Kept", num: true, value: (r) => r.kept, cell: (r) => count(r.kept) },
  { title: "Monosemanticity", num: true, hint: "Mean, of those kept", value: (r) => r.monosemanticity_kept.mean, cell: (r) => fixed(r.monosemanticity_kept.mean, 3) },
  { title: "… by rank", num: true, hint: "Each neuron active on as many studies as some feature is", value: (r) => r.by_rank.monosemanticity_kept.mean, cell: (r) => fixed(r.by_rank.monosemanticity_kept.mean, 3) },
  { title: "Entropy", num: true, hint: "Mean, of those kept, in nats", value: (r) => r.entropy_kept.mean, cell: (r) => fixed(r.entropy_kept.mean) },
  { title: "Best r", num: true, hint: "Mean over the labels of the best neuron's correlation", value: (r) => r.mean_over_classes.r, cell: (r) => fixed(r.mean_over_classes.r) },
  { title: "Best F1", num: true, hint: "Of the same neurons", value: (r) => r.mean_over_classes.f1, cell: (r) => fixed(r.mean_over_classes.f1) },
  { title: "… by rank", num: true, hint: "Of the best neurons where each is active on as many studies as some feature is", value: (r) => r.by_rank.mean_over_classes.f1, cell: (r) => fixed(r.by_rank.mean_over_classes.f1) },
], Object.entries(D.label.bases).map(([basis, found]) => ({ basis, ...found })), 3);
const notScored = () => Object.keys(S.not_scored).length
  ? h("table", {}, h("tbody", {}, Object.entries(S.not_scored).sort((a, b) => b[1] - a[1]).map(([why, n]) =>
    h("tr", {}, h("td", {}, why), h("td", { class: "num" }, count(n))))))
  : h("p", { class: "soft" }, "Every feature was scored.");
const reading = () => [
  OF_IMAGES ? h("p", {}, h("b", {}, "Detection. "), "The judge is given an explanation and held-out images: some in which the feature is active, from each tenth of them by rank, and as many inactive ones. It says of each whether the feature is active, five at a time. The score is its balanced accuracy.")
    : h("p", {}, h("b", {}, "Detection. "), "The judge sees an explanation and held-out contexts: some on which the feature fires, from each tenth of its activation range, and as many non-activating ones, half of them hard: contexts of the nearest other features, and other sentences of the same studies. It says of each whether the feature fires on it, five at a time. The score is its balanced accuracy."),
  h("p", {}, h("b", {}, "Held-out studies. "), "Explanations were made from training studies and tested on studies of other patients. " + `The ${THINGS} in this page are from the training studies.`),
  OF_IMAGES ? null : h("p", {}, h("b", {}, "Colours. "), "The stronger a token's tint, the stronger the feature there; the underlined token is the peak."),
  h("p", {}, h("b", {}, "Keys. "), h("kbd", {}, "/"), " search, ", h("kbd", {}, "↑"), " ", h("kbd", {}, "↓"), " ", h("kbd", {}, "Enter"), " in the list, ", h("kbd", {}, "j"), " ", h("kbd", {}, "k"), " next and previous feature."),
  h("p", { class: "small soft" }, `Interpreted ${D.run.finished ?? ""} on ${D.run.device ?? "unknown device"}; `
    + Object.entries(D.run.versions).filter(([k]) => ["python", "jax", "flax", "maira-jax"].includes(k)).map(([k, v]) => `${k} ${v}`).join(", ") + ". "
    + Object.entries(D.run.stages).filter(([stage, done]) => !done && !(OF_IMAGES ? ["steer", "evaluation"] : ["similar"]).includes(stage)).map(([stage]) => `Stage ${stage}: not run. `).join("")),
];

// ----------------------------------------------------------------- features
const filters = { query: "", group: "", status: "", section: "", sort: "detection", down: true };
const haystack = Array.from({ length: N }, (_, i) =>
  [F.name[i], F.explanation[i], F.top_tokens[i].join(" "), F.concept[i]].join(" ").toLowerCase());
function matching() {
  const words = filters.query.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [];
  for (let i = 0; i < N; i++) {
    if (filters.group !== "" && F.group[i] !== Number(filters.group)) continue;
    if (filters.status === "scored" && F.detection[i] === null) continue;
    if (filters.status === "not scored" && F.detection[i] !== null) continue;
    if (filters.status === "steered" && !(D.steering && D.steering.features[i])) continue;
    if (filters.section && !((F.sections[i][filters.section] || 0) >= 0.5)) continue;
    if (words.every((word) => haystack[i].includes(word) || String(i) === word)) found.push(i);
  }
  const value = F[filters.sort];
  return found.sort((a, b) => compare(value[a], value[b], filters.down) || a - b);
}
function features() {
  let rows = [], current = 0;
  const columns = [["feature", "#", false], ["name", "Explanation", false], OF_IMAGES ? ["concept", "Best label", false] : ["top_tokens", "Peak tokens", false], ["detection", "Detection", true],
    ["f1", "F1", true], ["density", "Density", true], ["max_activation", "Max", true], ["group", "Prefix", true]];
  const counter = h("span", { class: "count", role: "status" });
  const canvas = h("div", { vars: { position: "relative" } });
  const view = h("div", { class: "viewport", tabindex: "0", role: "listbox", "aria-label": "Features", on: { scroll: draw, keydown: keys } }, canvas);
  const heads = columns.map(([column, title, num]) => h("div", { class: num ? "num" : "", role: "columnheader" },
    column === "top_tokens" ? title : h("button", { type: "button", on: { click: () => sort(column, num) } }, title)));
  const pick = (label, field, options) => h("label", {}, label, h("select", { on: { change: (e) => { filters[field] = e.target.value; refresh(); } } },
    options.map(([value, text]) => h("option", { value, selected: filters[field] === value }, text))));
  const groups = [...new Set(F.group)];
  const sections = [...new Set(F.sections.flatMap((x) => Object.keys(x)))].sort();
  function sort(column, num) {
    filters.down = filters.sort === column ? !filters.down : num; filters.sort = column; refresh();
  }
  function refresh() {
    rows = matching(); current = 0;
    columns.forEach(([column], c) => column === filters.sort ? heads[c].setAttribute("aria-sort", filters.down ? "descending" : "ascending") : heads[c].removeAttribute("aria-sort"));
    counter.textContent = `${count(rows.length)} of ${count(N)} features`;
    canvas.style.setProperty("height", rows.length * ROW + "px");
    view.scrollTop = 0; draw();
  }
  function draw() {
    const first = Math.max(0, Math.floor(view.scrollTop / ROW) - 8);
    const last = Math.min(rows.length, first + Math.ceil((view.clientHeight || 800) / ROW) + 16);
    const shown = [];
    for (let at = first; at < last; at++) shown.push(line(rows[at], at));
    canvas.replaceChildren(...(rows.length ? shown : [h("p", { class: "empty" }, "No feature matches. Try fewer words or another filter.")]));
  }
  const line = (i, at) => h("a", { class: "row" + (at === current ? " current" : ""), href: "#/feature/" + i, tabindex: "-1", role: "option",
    "aria-selected": at === current ? "true" : "false", vars: { transform: `translateY(${at * ROW}px)` } },
    h("span", { class: "id" }, String(i)),
    h("span", { class: "name", title: F.explanation[i] || "" }, name(i), h("span", { class: "sub" }, F.reason[i] || (F.concept[i] ? `best concept: ${F.concept[i]} (F1 ${fixed(F.concept_f1[i])})` : ""))),
    h("span", { class: "soft small" }, OF_IMAGES ? F.concept[i] : F.top_tokens[i].slice(0, 5).join(" · ")),
    h("span", { class: "num" }, meter(F.detection[i], 0.75)), h("span", { class: "num" }, fixed(F.f1[i])),
    h("span", { class: "num" }, density(F.density[i])), h("span", { class: "num" }, short(F.max_activation[i])), h("span", { class: "num" }, String(F.group[i] + 1)));
  function keys(event) {
    const move = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -N, End: N }[event.key];
    if (event.key === "Enter" && rows.length) location.hash = "#/feature/" + rows[current];
    if (!move || !rows.length) return;
    event.preventDefault();
    current = Math.max(0, Math.min(rows.length - 1, current + move));
    if (current * ROW < view.scrollTop) view.scrollTop = current * ROW;
    if ((current + 1) * ROW > view.scrollTop + view.clientHeight) view.scrollTop = (current + 1) * ROW - view.clientHeight;
    draw();
  }
  refreshList = refresh;
  requestAnimationFrame(refresh);
  return [
    h("h1", {}, "Features"),
    h("div", { class: "filters" },
      pick("Show", "status", [["", "all"], ["scored", "scored"], ["not scored", "not scored"], ...(D.steering ? [["steered", "steered"]] : [])]),
      OF_IMAGES ? null : pick("Mostly in", "section", [["", "any section"], ...sections.map((x) => [x, x])]),
      pick("Matryoshka prefix", "group", [["", "any"], ...groups.map((g) => [String(g), String(g + 1)])]),
      counter),
    h("section", { class: "panel list" }, h("div", { class: "head", role: "row" }, heads), view),
  ];
}
let refreshList = null;

// ------------------------------------------------------------------ feature
function feature(i) {
  const order = matching(), at = order.indexOf(i);
  const step = (by) => (at >= 0 && order[at + by] !== undefined ? "#/feature/" + order[at + by] : null);
  const mine = D.concepts.filter((row) => row.feature === i);
  const scoreOf = (value, interval) => fixed(value) + (interval ? ` (${fixed(interval[0])}–${fixed(interval[1])})` : "");
  const negatives = Object.entries(F.by_negative[i] || {}).filter(([, v]) => isNumber(v)).map(([kind, v]) => `${kind} ${percent(v)}`);
  const facts = [["Detection", F.detection[i] === null ? F.reason[i] : scoreOf(F.detection[i], F.detection_interval[i])], ["F1", scoreOf(F.f1[i], F.f1_interval[i])],
    ...(OF_IMAGES ? [] : [["Against random negatives", fixed(F.detection_random[i])], ["Against hard negatives", fixed(F.detection_hard[i])],
      ["Non-activating contexts recognised", negatives.join(", ") || DASH]]),
    ["Precision", fixed(F.precision[i])], ["Recall", fixed(F.recall[i])], ...(OF_IMAGES ? [] : [["Fuzzing", fixed(F.fuzzing[i])]]), ["Control (explanation of another feature)", fixed(F.detection_shuffled[i])],
    ["Density", density(F.density[i])], ["Largest activation", short(F.max_activation[i])],
    [`Activating ${THINGS}`, `${count(F.n_contexts_train[i])} train, ${count(F.n_contexts_held_out[i])} held out`],
    ["Matryoshka prefix", prefixText(i)],
    ...(OF_IMAGES ? [] : [["Mean position", short(F.mean_position[i])], ["Peak tokens", F.top_tokens[i].join(" · ") || DASH]]),
    ...(F.promoted[i] ? [["Promotes", F.promoted[i].join(" · ")], ["Suppresses", F.suppressed[i].join(" · ")]] : []),
    ...(D.label ? [["Monosemanticity", fixed(D.label.monosemanticity[i], 3)]] : []),
    ["Best concept", F.concept[i] ? `${F.concept[i]} (F1 ${fixed(F.concept_f1[i])})` : DASH],
    ...(D.statements ? [["True description", F.true_description[i] ? `${F.true_description[i].join(" / ")} (F1 ${fixed(F.true_f1[i])})` : DASH]] : [])];
  return [
    h("div", { class: "crumbs" }, h("a", { href: "#/features" }, "← all features"), h("span", { class: "right" },
      step(-1) ? h("a", { href: step(-1), id: "previous" }, "previous") : null, step(1) ? h("a", { href: step(1), id: "next" }, "next") : null)),
    h("h1", {}, h("span", { class: "soft" }, `${i}  `), name(i)),
    F.explanation[i] ? h("p", { class: "explanation" }, F.explanation[i]) : h("p", { class: "explanation soft" }, `No explanation: ${F.reason[i]}.`),
    mine.length ? h("p", {}, mine.map((row) => [chip(`best feature for ${row.concept}: F1 ${fixed(row.f1)}`, row.f1 >= 0.8 ? "good" : ""), " "])) : null,
    panel(null, h("dl", { class: "facts" }, facts.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))))),
    h("div", { class: "cols stack" }, histogramPanel(i), decilePanel(i), OF_IMAGES ? correlationPanel(i) : sectionPanel(i)),
    OF_IMAGES ? gallery(i) : [contextsPanel(i), steeringPanel(i)],
    familyPanel(i),
    h("div", { class: "cols stack" }, nearest("Nearest features by decoder direction", "Cosine", F.similar[i], F.similar_cosine[i]),
      nearest("Nearest features by co-activation", "Correlation", F.coactive[i], F.coactive_correlation[i])),
  ];
}
const nearest = (title, measure, features, values) => (features.length ? panel(title, table([
  { title: "Feature", value: (r) => r.f, cell: (r) => link(r.f) },
  { title: measure, num: true, value: (r) => r.c, cell: (r) => fixed(r.c) },
  { title: "Detection", num: true, value: (r) => F.detection[r.f], cell: (r) => fixed(F.detection[r.f]) },
  { title: "Density", num: true, value: (r) => F.density[r.f], cell: (r) => density(F.density[r.f]) },
], features.map((f, n) => ({ f, c: values[n] })), 1)) : null);
function familyPanel(i) {
  const duplicates = F.explanation_group[i] === null ? [] : F.feature.filter((f) => f !== i && F.explanation_group[f] === F.explanation_group[i]);
  const list = (features) => features.slice(0, 24).map((f) => h("div", {}, link(f), h("span", { class: "soft small" }, ` prefix ${F.group[f] + 1}`)));
  const block = (title, features) => (features.length ? [h("h3", {}, `${title} (${count(features.length)})`), list(features)] : []);
  const parts = [...block("Splits off from", F.parent[i] === null ? [] : [F.parent[i]]), ...block("Splits into", F.children[i]), ...block("Near-duplicate explanations", duplicates)];
  return parts.length ? panel("Family", parts) : null;
}
function prefixText(i) {
  const prefixes = D.run.sae.prefixes, g = F.group[i];
  return `${g + 1}` + (prefixes && prefixes[g] ? ` (first ${count(prefixes[g].features)} features)` : "");
}
function histogramPanel(i) {
  const [first, counts] = F.histogram[i], edges = S.histogram_edges;
  if (!counts.length) return panel("Peak activations", h("p", { class: "soft" }, "Never active."));
  const low = (b) => (b === 0 ? 0 : edges[b - 1]), high = (b) => (b < edges.length ? edges[b] : Infinity);
  return panel("Peak activations", bars(counts, { labels: counts.map((_, n) => (counts.length < 8 || n % 2 === 0 ? short(low(first + n)) : "")),
    titles: counts.map((n, b) => `${short(low(first + b))} to ${short(high(first + b))}: ${n} ${THINGS}`), label: "Histogram of peak activations" }),
    h("p", { class: "small soft" }, `Number of ${THINGS} by their largest activation, in half-octave bins.`));
}
function decilePanel(i) {
  const values = F.by_decile[i];
  if (!values) return panel("Detection by activation decile", h("p", { class: "soft" }, "Not scored."));
  return panel("Detection by activation decile", bars(values, { top: 1, line: 0.5, labels: values.map((_, n) => String(n + 1)),
    titles: values.map((v, n) => `decile ${n + 1}: ${v === null ? "no examples" : percent(v) + " recognised"}`), label: `Share of activating ${THINGS} recognised, by decile` }),
    h("p", { class: "small soft" }, `Share of held-out activating ${THINGS} that the explanation recognised, weakest tenth first.`));
}
function sectionPanel(i) {
  const shares = Object.entries(F.sections[i]).sort((a, b) => b[1] - a[1]);
  return panel("Where it fires", shares.length ? h("table", {}, h("tbody", {}, shares.map(([section, share]) =>
    h("tr", {}, h("td", {}, section), h("td", { class: "num" }, h("span", { class: "meter bare" }, bar(share), percent(share))))))) : h("p", { class: "soft" }, "Nowhere."));
}
function contextsPanel(i) {
  const contexts = D.exemplars.contexts[i];
  if (!contexts) return panel("Contexts", h("p", { class: "soft" }, F.density[i] ? "Left out of this page to keep it small: see interp/exemplars.parquet." : "It was never active."));
  const of = (kind) => contexts.filter((c) => c[0] === kind);
  const block = (title, rows) => (rows.length ? [h("h3", {}, title), rows.map((row) => context(row, i))] : []);
  return panel("Contexts", block("Strongest", of("top")),
    block("From each tenth of the activation range, strongest first", of("decile").sort((a, b) => b[1] - a[1])), 
    block("Non-activating, drawn at random", of("random")), block("Non-activating, of the nearest features", of("nearest")),
    block("Non-activating, of studies in which it is active elsewhere", of("same study")));
}
function context([kind, decile, section, study, tokens, percents], i) {
  const peak = percents.length ? percents.indexOf(Math.max(...percents)) : -1;
  const value = (n) => short((percents[n] / 100) * F.max_activation[i]);
  const spans = tokens.map((t, n) => {
    const text = D.exemplars.tokens[t], word = text.trimStart(); // the space before a word is not tinted
    return [n && word !== text ? " " : null, percents[n] ? h("span", { class: "tok" + (n === peak ? " peak" : ""), vars: { "--a": percents[n] },
      title: `${value(n)} (${percents[n]} % of the largest)` }, word || "␣") : word];
  });
  return h("div", { class: "context" }, h("span", { class: "value soft" }, peak >= 0 ? value(peak) : DASH),
    h("span", { class: "where", title: `${study}` + (decile >= 0 ? `, decile ${decile + 1}` : "") }, section, decile >= 0 ? ` · ${decile + 1}` : ""),
    h("span", { class: "text" }, spans));
}

// ----------------------------------------------------------------- steering
function steeringPanel(i) {
  if (!D.steering) return panel("Steering", h("p", { class: "soft" }, "Stage not run."));
  const entry = D.steering.features[i];
  if (!entry) return panel("Steering", h("p", { class: "soft" }, "This feature was not steered."));
  const title = "Steering" + (entry.concept ? ` (concept: ${entry.concept})` : "");
  const unit = { max_activation: "times the feature's largest activation", residual_norm: "times the residual norm" }[entry.unit] || entry.unit;
  return panel(title,
    h("p", { class: "soft small" }, `Strength in ${unit}. The first studies in which the concept could be added or removed, not the best ones; `
      + (D.evaluation ? "at the strength that was best on half of the studies." : "at the largest strength. Evaluation: not run.")),
    entry.rates.length ? [curves(entry.rates, "Rates by strength"), key()] : null,
    entry.examples.map(pair));
}
function pair(example) {
  const o = example.outcome, [before, after] = diff(example.original, example.steered);
  return h("article", { class: "pair" }, h("header", {}, chip(example.intended === "added" ? "towards" : "away"), `strength ${example.strength}`, h("span", {}, example.study_id),
    o && o.eligible ? (o.on_target ? chip("on target", "good") : chip("missed", "warn")) : null, o && o.off_target ? chip("off target", "bad") : null,
    o && o.no_change ? chip("no change") : null, o && o.degenerate ? chip("degenerate: " + o.degenerate, "bad") : null,
    o ? h("span", {}, [...o.added.map((x) => "+ " + x), ...o.removed.map((x) => "− " + x), ...o.changed].join("; ")) : null),
    h("div", { class: "sides" }, h("div", {}, h("h4", {}, "Original"), h("div", { class: "text" }, before)), h("div", {}, h("h4", {}, "Steered"), h("div", { class: "text" }, after))));
}
// Longest common subsequence of words.
function diff(original, steered) {
  const a = original.split(/\s+/).filter(Boolean), b = steered.split(/\s+/).filter(Boolean);
  const best = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) for (let j = b.length - 1; j >= 0; j--)
    best[i][j] = a[i] === b[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
  const before = [], after = [];
  for (let i = 0, j = 0; i < a.length || j < b.length;) {
    if (i < a.length && j < b.length && a[i] === b[j]) { before.push(a[i++], " "); after.push(b[j++], " "); }
    else if (i < a.length && (j >= b.length || best[i + 1][j] >= best[i][j + 1])) before.push(h("del", {}, a[i++]), " ");
    else after.push(h("ins", {}, b[j++]), " ");
  }
  return [before, after];
}
const METHODS = { add: "SAE feature added", add_several: "several SAE features added", clamp: "SAE feature clamped", class_means: "class-conditional means", ablate: "SAE feature ablated", project: "feature direction projected out", difference_of_means: "difference of means", probe: "linear probe", random: "random direction", prompt: "sentence in the prompt" };
function steering() {
  const title = h("h1", {}, "Steering");
  if (!D.steering) return [title, h("p", { class: "lead" }, "Stage steer: not run.")];
  if (!D.evaluation) return [title, h("p", { class: "lead" }, "Stage evaluation: not run. The pages of the steered features show example reports."), steeredList()];
  const methods = Object.entries(D.evaluation.headline).map(([method, rates]) => ({ method, ...rates }));
  const column = (name, title) => ({ title, num: true, value: (r) => r[name].rate, cell: (r) => [rate(r[name]), h("span", { class: "soft small" }, isNumber(r[name].rate) ? ` ${(100 * r[name].low).toFixed(0)}–${percent(r[name].high)}` : "")] });
  const rates = [column("on_target", "On target"), column("off_target", "Off target"), column("no_change", "No change"), column("degenerate", "Degenerate")];
  return [title,
    h("p", { class: "lead" }, `${count(D.evaluation.studies)} held-out studies. On target: the concept was added (or removed) as intended. Off target: another finding changed. `
      + "For each concept the strength was chosen on one half of the studies and is reported on the other; intervals are 95 %, over studies."),
    panel("By method", table([{ title: "Method", value: (r) => r.method, cell: (r) => METHODS[r.method] || r.method }, ...rates], methods, 1)),
    h("div", { class: "cols stack" }, methods.map(({ method }) => panel(`${METHODS[method] || method}: rates by strength`,
      curves(D.evaluation.curves.filter((row) => row.method === method), `Rates by strength for ${method}`), key()))),
    panel("By concept, at the best strength", table([
      { title: "Concept", value: (r) => r.concept, cell: (r) => h("b", {}, r.concept) },
      { title: "Method", value: (r) => r.method, cell: (r) => METHODS[r.method] || r.method },
      { title: "Feature", num: true, value: (r) => (r.method === "add" ? r.feature : null), cell: (r) => (r.method === "add" && isNumber(r.feature) ? link(r.feature, String(r.feature)) : DASH) },
      { title: "Intended", value: (r) => r.intended, cell: (r) => r.intended },
      { title: "Strength", num: true, value: (r) => r.strength, cell: (r) => r.strength }, ...rates,
    ], D.evaluation.best, 0, false))];
}
const steeredList = () => panel("Steered features", Object.entries(D.steering.features).map(([i, entry]) =>
  h("p", {}, link(Number(i)), entry.concept ? h("span", { class: "soft" }, ` (${entry.concept})`) : null)));

// ------------------------------------------------------------------ routing
function show() {
  const [, page = "", argument = ""] = location.hash.split("/");
  const i = Number(argument);
  refreshList = null;
  const id = decodeURIComponent(argument), pictured = page === "study" && OF_IMAGES && Object.hasOwn(D.pictures, id);
  const known = page === "feature" && argument !== "" && Number.isInteger(i) && i >= 0 && i < N;
  const parts = known ? feature(i) : pictured ? study(id) : page === "features" ? features() : page === "steering" ? steering() : overview();
  main.replaceChildren(...parts.flat(Infinity).filter((part) => part));
  const tab = known || pictured ? "features" : page === "features" || page === "steering" ? page : "overview";
  for (const item of document.querySelectorAll("nav a")) item.dataset.page === tab ? item.setAttribute("aria-current", "page") : item.removeAttribute("aria-current");
  if (document.activeElement !== searchBox) window.scrollTo(0, 0);
}
let typing = 0;
function search() {
  filters.query = searchBox.value;
  if (refreshList) refreshList(); else location.hash = "#/features";
}
searchBox.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(search, 80); // one search for a word, not one for each letter
});
searchBox.form.addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typing);
  filters.query = searchBox.value;
  const found = matching();
  if (found.length) location.hash = "#/feature/" + found[0];
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && event.target === searchBox) return searchBox.blur();
  if (["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName)) return;
  const target = { j: "next", k: "previous" }[event.key];
  if (event.key === "/") { event.preventDefault(); searchBox.focus(); searchBox.select(); }
  else if (target && document.getElementById(target)) location.hash = document.getElementById(target).getAttribute("href");
});
const root = document.documentElement, dark = window.matchMedia("(prefers-color-scheme: dark)");
root.dataset.theme = dark.matches ? "dark" : "light";
dark.addEventListener("change", (event) => { root.dataset.theme = event.matches ? "dark" : "light"; });
document.getElementById("theme").addEventListener("click", () => { root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark"; });
window.addEventListener("hashchange", show);
show();
