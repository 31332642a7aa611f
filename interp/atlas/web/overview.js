// The first view: figures of the run, concepts, controls.
function overview() {
  const run = D.run, control = S.controls["shuffled explanations"].detection;
  const first = D.sweeps.find((sweep) => sweep.rates), headline = first && first.rates.headline, head = headline && (headline.add || Object.values(headline)[0]);
  const tiles = [
    tile(fixed(run.sae.fvu, 3), "variance unexplained", "Fraction of the held-out activations' variance that the autoencoder misses"),
    tile(fixed(run.sae.l0, 1), `active per ${OF_IMAGES ? "row" : "token"}${run.sae.k ? ` (k = ${run.sae.k})` : ""}`),
    tile(`${count(S.alive)}`, `of ${count(S.features)} features are ever active`),
    tile(count(S.scored), "features scored"),
    tile(count(S.detection.above_075), "score above 0.75", OF_IMAGES ? null : `with random negatives alone ${count(S.detection_random.above_075)}`),
    tile(count(S.detection.below_05), "score below 0.5 (chance)", OF_IMAGES ? null : `with random negatives alone ${count(S.detection_random.below_05)}`),
    tile([fixed(S.detection.mean), fewCases(S.detection.scored)], `mean detection score (${range(S.detection.interval)})`, between(S.detection.interval)),
    tile(fixed(control.mean), `mean with shuffled explanations (control; ${range(control.interval)})`, between(control.interval)),
    tile(`${S.concepts.f1_08} / ${S.concepts.tested}`, "concepts with a feature of F1 ≥ 0.8"),
    ...(head ? [tile([rate(head.on_target), fewCases(head.on_target.n)], "steered on target" + (D.sweeps.length > 1 ? `, sweep ${first.name}` : ""), rateTitle(head.on_target)),
      tile(rate(head.off_target), "steered off target", rateTitle(head.off_target)),
      tile(rate(head.no_change), "steered without change", rateTitle(head.no_change))]
      : OF_IMAGES ? [] : [first ? tile(DASH, `steered on target: ${noRate(first)}`) : tile("not run", D.sweeps.length ? "evaluation of steering" : "steering")]),
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
      + "Another feature may have been steered than the one that detects the concept best on the training studies: then its number stands with the rates. "
      + "Rates: on target / off target, at that strength.")), conceptTable(),
      Object.keys(S.concepts.left_out).length ? h("details", { class: "small soft" }, h("summary", {}, "Concepts that were left out"),
        Object.entries(S.concepts.left_out).map(([concept, why]) => h("div", {}, `${concept}: ${why}`))) : null),
    setsPanel(),
    panel("Detection scores", scoreChart(), h("div", { class: "key" },
      h("span", {}, h("i"), "own explanation"), h("span", {}, h("i", { class: "ghost" }), "another feature's explanation (control)")),
      h("p", { class: "small soft" }, `Balanced accuracy on held-out ${THINGS}; chance is 0.5.`)),
    D.advantage ? panel("Features against controls, by every measure", h("p", { class: "soft small" },
      "With 95 % intervals. Features are compared with random directions below."), advantageTable(), D.advantage.sentences.map((text) => h("div", { class: "small" }, text))) : null,
    panel("Features and controls", controlTable()),
    S.coverage ? panel("Concepts found by features and by controls", h("p", { class: "soft small" },
      "For every concept, the neuron and threshold with the best F1 on the training studies, measured on held-out ones; found: F1 of 0.8 or more. Controls may use any threshold, raw dimensions and principal components either sign."), coverageTable()) : null,
    D.statements ? panel("Statements and the features that detect them", h("p", { class: "soft small" },
      "It is known what every sentence of these studies states. For each statement, the feature with the best F1 on the contexts of training studies; F1, precision and recall are measured on those of held-out studies. "
      + `Over ${count(S.truth.features)} features, detection scores and true F1 have a rank correlation of ${fixed(S.truth.spearman)} (with random negatives alone ${fixed(S.truth.spearman_random)}) for the best description by up to three statements or words, `
      + `and of ${fixed(S.truth.spearman_facts)} (${fixed(S.truth.spearman_facts_random)}) for that by statements alone.`), statementTable()) : null,
    localizePanel(),
    D.label ? panel("Features and controls, against the labels", h("p", { class: "soft small" },
      `MedSAE's measures over ${count(D.label.studies)} studies${OF_IMAGES ? "" : ` (tokens of: ${D.label.sections.join(", ")})`}. Kept: correlated above 0.2 with some label. Low entropy and high monosemanticity are good. Compare features with the others by rank: controls are rarely 0, which alone lowers their monosemanticity.`), labelTable()) : null,
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
      if (!row.steering) return h("span", { class: "soft" }, "not run");
      const r = steered(row, intended);
      if (!r || (r.on_target.n === 0 && r.off_target.n === 0)) return h("span", { class: "soft", title: "not steered, or no study to judge it on" }, DASH);
      return [rate(r.on_target), h("span", { class: "soft" }, " / "), rate(r.off_target, "soft"), h("div", { class: "soft small" }, r.feature === row.feature ? null : [link(r.feature, `feature ${r.feature}`), " "], `at ${r.strength}`, fewCases(r.on_target.n))];
    },
  });
  return table([
    { title: "Concept", value: (r) => r.concept, cell: (r) => h("b", {}, r.concept) },
    { title: "Positive", num: true, hint: "Held-out studies with the concept, and their share", value: (r) => r.n_positive, cell: (r) => [`n = ${count(r.n_positive)}`, h("div", { class: "soft small" }, percent(r.prevalence))] },
    { title: "Feature", num: true, value: (r) => r.feature, cell: (r) => link(r.feature, String(r.feature)) },
    { title: "F1", num: true, value: (r) => r.f1, cell: (r) => h("span", { title: `calling every study positive: ${fixed((2 * r.prevalence) / (1 + r.prevalence))}` }, meter(r.f1, 0.8)), hint: "On held-out studies" },
    { title: "Precision", num: true, value: (r) => r.precision, cell: (r) => shareOf(r.precision, (r.recall * r.n_positive) / r.precision) },
    { title: "Recall", num: true, value: (r) => r.recall, cell: (r) => shareOf(r.recall, r.n_positive) },
    { title: "Explanation", wide: true, value: (r) => F.name[r.feature], cell: (r) => h("span", { class: "small" }, F.name[r.feature] || F.reason[r.feature]) },
    { title: "Detection", num: true, value: (r) => F.detection[r.feature], cell: (r) => fixed(F.detection[r.feature]) },
    ...(OF_IMAGES ? [] : [outcome("added", "Steered in"), outcome("removed", "Steered out")]),
  ], D.concepts, 3);
}
// A share with its 95 % interval, written out where there are few cases.
function shareOf(share, n) {
  const interval = wilson(share, Math.round(n));
  return h("span", { title: interval ? `${between(interval)}, n = ${Math.round(n)}` : "" }, fixed(share), interval && n < FEW ? h("div", { class: "few" }, range(interval)) : null);
}
function setsPanel() {
  const rows = [{ set: "interp (this run's own)", explained: F.name.filter(Boolean).length, scored: S.scored, mean: S.detection.mean }, ...Object.entries(D.sets).map(([set, row]) => ({ set, ...row }))];
  return rows.length < 2 ? null : panel("Sets of interpretations", table([
    { title: "Set", value: (r) => r.set, cell: (r) => h("b", {}, r.set) },
    { title: "Explained", num: true, value: (r) => r.explained, cell: (r) => count(r.explained) },
    { title: "Scored", num: true, hint: "By this project's protocol", value: (r) => r.scored, cell: (r) => count(r.scored) },
    { title: "Mean detection", num: true, value: (r) => r.mean, cell: (r) => fixed(r.mean) },
    { title: "Agreement", num: true, hint: "Of its explanations with this run's own: mean cosine of their weighted words, and in brackets that of different features", value: (r) => r.agreement, cell: (r) => (isNumber(r.agreement) ? `${fixed(r.agreement)} (${fixed(r.agreement_shuffled)})` : "") },
    { title: "Rank correlation", num: true, hint: "Of its detection scores with this run's own, over the features that both explain", value: (r) => r.spearman, cell: (r) => (isNumber(r.spearman) ? fixed(r.spearman) : "") },
  ], rows, 0, false), h("p", { class: "soft small" }, "The page of each feature shows all of them side by side."));
}
function localizePanel() {
  const found = D.localize;
  if (!found) return null;
  const share = (name, title, hint) => ({ title, num: true, hint, value: (r) => r[name], cell: (r) => percent(r[name]) });
  return panel("Where concepts are read and written", h("p", {}, found.recommendation), table([
    { title: "Site", value: (r) => r.depth, cell: (r) => (r.site === found.site && r.section === found.section ? h("b", {}, r.site) : r.site) },
    { title: "Tokens", value: (r) => r.section, cell: (r) => r.section },
    { title: "Read", num: true, hint: "Mean AUROC of a probe on held-out studies", value: (r) => r.read_auroc, cell: (r) => meter(r.read_auroc, 0.9) },
    { title: "Written", num: true, hint: "Reports on target with the difference of means added", value: (r) => r.write_on_target, cell: (r) => [meter(r.write_on_target, 0.8), fewCases(r.n)] },
    share("write_off_target", "Off target"), share("write_no_change", "No change"),
    share("ablate_lost", "Lost without the tokens", "Reports that lose their concept when all these tokens are their mean"),
    share("ablate_patches_lost", "Lost without its patches", "The same for the patches that touch the finding alone"),
  ], found.points, 0, false), h("p", { class: "soft small" }, `Over ${found.concepts.join(", ")}.`));
}
function scoreChart() {
  const bins = (values) => { const out = Array(20).fill(0); for (const v of values) if (isNumber(v)) out[Math.min(19, Math.floor(v * 20))]++; return out; };
  const own = bins(F.detection), control = bins(F.detection_shuffled);
  return bars(own, { ghost: control, labels: own.map((_, i) => (i % 2 === 0 ? (i / 20).toFixed(2) : "")),
    titles: own.map((n, i) => `${(i / 20).toFixed(2)} to ${((i + 1) / 20).toFixed(2)}: ${n} features, control ${control[i]}`), label: "Histogram of detection scores" });
}
function controlTable() {
  const above = (r) => (S.above_controls[r.control] || { detection: { difference: null, interval: null } }).detection;
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
    { title: "Features above control", num: true, hint: "Mean of the features minus this mean", value: (r) => above(r).difference, cell: (r) => h("span", { title: between(above(r).interval) }, fixed(above(r).difference)) },
  ], rows, 2), h("p", { class: "small soft" }, `Raw dimensions, principal components, random directions, columns of the encoder with shuffled weights, and columns on activations of other ${OF_IMAGES ? "images" : "tokens"} are thresholded to the densities of the features, and explained and scored like them. Shuffled explanations are those of other features. Shuffled explanations and activations know nothing of the ${OF_IMAGES ? "images" : "text"}: their scores are chance. The others read what the features read.`)];
}
const advantageTable = () => {
  const [head, ...rows] = D.advantage.rows;
  return table(head.map((title, i) => ({ title: i ? title : "Measure", num: i > 0, value: (r) => r[i], cell: (r) => r[i] })), rows, 0, false);
};
// How well single neurons of every basis find the labelled concepts.
function coverageTable() {
  const rows = Object.entries(S.coverage.bases).map(([basis, found]) => ({ basis, ...found, gained: S.coverage.differences[`features minus ${basis}`] }));
  const figure = (name, title, digits) => ({ title, num: true, value: (r) => r[name], cell: (r) => h("span", { title: between(r[`${name}_interval`]) }, fixed(r[name], digits)) });
  const gain = (name, title, digits) => ({ title, num: true, value: (r) => r.gained && r.gained[name].difference,
    cell: (r) => (r.gained ? h("span", { title: between(r.gained[name].interval) }, fixed(r.gained[name].difference, digits)) : DASH) });
  return table([
    { title: "Basis", value: (r) => r.basis, cell: (r) => (r.gained ? r.basis : h("b", {}, r.basis)) },
    { title: "Neurons", num: true, value: (r) => r.neurons, cell: (r) => count(r.neurons) },
    figure("found", `Concepts found, of ${S.coverage.concepts}`, 0), gain("found", "Features find more", 0),
    figure("f1", "Mean F1", 2), gain("f1", "Features' is higher by", 2),
  ], rows, 2);
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
  { title: "Measured", num: true, hint: "Active on at least two studies", value: (r) => r.alive, cell: (r) => count(r.alive) },
  { title: "Kept", num: true, value: (r) => r.kept, cell: (r) => count(r.kept) },
  { title: "Monosemanticity of kept", num: true, hint: "Mean; that of all is in the table of every measure", value: (r) => r.monosemanticity_kept.mean, cell: (r) => fixed(r.monosemanticity_kept.mean, 3) },
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
  D.shows_studies ? h("p", {}, h("b", {}, "Studies. "), OF_IMAGES ? "The page of a study shows its image, the features that are strongest in it, and where they are if rows are patches." : "The page of a study shows its images and texts, shaded by any feature, and the features that are strongest in each sentence.", D.deidentified ? " Studies are numbered, and dates, times, long numbers and physicians' names are masked; other words of the texts are as they were written." : "") : h("p", {}, h("b", {}, "Studies. "), "This atlas was written without contexts, reports and images."),
  h("p", {}, h("b", {}, "Links. "), "The address of every page, searches included, leads back to it. Figures for a publication are in the folder figures, if matplotlib was installed."),
  h("p", {}, h("b", {}, "Keys. "), h("kbd", {}, "/"), " search, ", h("kbd", {}, "↑"), " ", h("kbd", {}, "↓"), " ", h("kbd", {}, "Enter"), " in the list, ", h("kbd", {}, "j"), " ", h("kbd", {}, "k"), " next and previous feature."),
  h("p", { class: "small soft" }, `Interpreted ${D.run.finished ?? ""} on ${D.run.device ?? "unknown device"}; `
    + Object.entries(D.run.versions).filter(([k]) => ["python", "jax", "flax", "maira-jax"].includes(k)).map(([k, v]) => `${k} ${v}`).join(", ") + ". "
    + Object.entries(D.run.stages).filter(([stage, done]) => !done && !(OF_IMAGES ? [] : ["similar"]).includes(stage)).map(([stage]) => `Stage ${stage}: not run. `).join("")),
];

