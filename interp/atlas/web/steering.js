// Steering: reports before and after, rates of methods and strengths, for every sweep.
function steeringPanels(d) {
  if (!D.sweeps.length) return panel("Steering", h("p", { class: "soft" }, "Stage steer: not run."));
  const entries = Object.entries(d.steering), scored = Object.entries(d.selection).map(([sweep, rows]) => selectionPanel(sweep, rows));
  if (!entries.length) return [panel("Steering", h("p", { class: "soft" }, "This feature was not steered.")), scored];
  return [entries.map(([sweep, entry]) => steeringPanel(sweep, entry)), scored];
}
// How rules of selection scored a feature, and whether their scores say what steering does.
function selectionPanel(sweep, rows) {
  const { rates } = D.sweeps.find((other) => other.name === sweep), of = (r) => (rates && rates.selection[r.rule]) || {};
  return panel("Selection for steering" + (D.sweeps.length > 1 ? `, sweep ${sweep}` : ""), table([
    { title: "Concept", value: (r) => r.concept, cell: (r) => h("b", {}, r.concept) },
    { title: "Rule", value: (r) => r.rule, cell: (r) => [r.rule, " ", r.chosen ? chip("chosen", "good") : null] },
    { title: "Score", num: true, value: (r) => r.score, cell: (r) => short(r.score) },
    { title: "Rank", num: true, hint: "Among the candidates for the concept", value: (r) => r.rank, cell: (r) => `${r.rank} of ${r.of}` },
    { title: "Goes with steering", num: true, hint: "Rank correlation of the rule's scores with the share on target minus the share off target, over all features that were steered for a concept", value: (r) => of(r).spearman,
      cell: (r) => [fixed(of(r).spearman), h("span", { class: "soft small" }, isNumber(of(r).spearman) ? ` ${fixed(of(r).low)} to ${fixed(of(r).high)}, n = ${of(r).n}` : "")] },
  ], rows, 0, false));
}
function steeringPanel(sweep, entry) {
  const evaluated = D.sweeps.find((other) => other.name === sweep).rates;
  const title = "Steering" + (D.sweeps.length > 1 ? `, sweep ${sweep}` : "") + (entry.concept ? ` (concept: ${entry.concept})` : "");
  const unit = { max_activation: "times the feature's largest activation", residual_norm: "times the residual norm" }[entry.unit] || entry.unit;
  return panel(title,
    h("p", { class: "soft small" }, `Strength in ${unit}. The first studies in which the concept could be added or removed, not the best ones; `
      + (evaluated ? "at the strength that was best on half of the studies." : "at the largest strength. Evaluation: not run.")),
    entry.rates.length ? [curves(entry.rates, "Rates by strength"), key(), casesOf(entry.rates)] : null,
    entry.examples.map(pair));
}
function casesOf(rows) {
  const n = [...new Set(rows.map((r) => r.on_target.n))].sort((a, b) => a - b);
  return h("p", { class: "soft small" }, `Vertical lines are 95 % intervals. On target: n = ${n.length > 1 ? `${n[0]} to ${n[n.length - 1]}` : n[0]} reports for each strength.`);
}
function pair(example) {
  const o = example.outcome, [before, after] = diff(example.original, example.steered);
  return h("article", { class: "pair" }, h("header", {}, chip(example.intended === "added" ? "towards" : "away"), `strength ${example.strength}`, studyLink(example.study_id),
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
// What each method does, for the legend.
const METHODS = {
  add: ["SAE feature added", "the feature's decoder direction, times the strength, is added at every edited token"],
  add_several: ["several SAE features added", "the decoder directions of all features that detect the concept about as well are added together, each weighted by its largest activation"],
  combination: ["SAE features combined", "features that the user names are boosted and suppressed together"],
  clamp: ["SAE feature clamped", "the feature's activation is set to a value, whether it is active or not"],
  class_means: ["class-conditional means", "features are set to their mean activation in studies with the concept, or without it"],
  ablate: ["SAE feature ablated", "the feature's own contribution is removed"],
  project: ["feature direction projected out", "the component along the decoder direction is removed"],
  difference_of_means: ["difference of means", "a baseline without an autoencoder: mean of studies with the concept minus mean of those without"],
  reft_r1: ["ReFT-r1", "a baseline without an autoencoder: one direction, learned through the model so that it writes reports with the concept"],
  smallest_set: ["smallest set of SAE features", "the fewest features that add the concept, or remove it, when they are set to values that are learned through the model"],
  probe: ["linear probe", "a baseline without an autoencoder: the weights of a logistic regression on the concept's label"],
  random: ["random direction", "a control: a direction drawn at random, of the same length"],
  prompt: ["sentence in the prompt", "a baseline without an edit: a sentence on the concept is added to the prompt"],
};
const method = (name) => (METHODS[name] ? METHODS[name][0] : name);
const methodLegend = (names) => panel("The methods", h("dl", { class: "legend" }, names.map((name) => h("div", {}, h("dt", {}, method(name), h("code", {}, name)), h("dd", {}, METHODS[name] ? METHODS[name][1] : "a method of this run")))));
// Why the evaluation of a sweep has no rate.
const noRate = (sweep) => (sweep.rates.concepts.length ? "no report in which a concept could be added or removed" : "no steered feature has a known concept");
function steering() {
  const title = h("h1", {}, "Steering"), several = D.sweeps.length > 1, evaluated = D.sweeps.filter((sweep) => sweep.rates && Object.keys(sweep.rates.headline).length);
  if (!D.sweeps.length) return [title, h("p", { class: "lead" }, "Stage steer: not run.")];
  const waiting = D.sweeps.filter((sweep) => !sweep.rates).map((sweep) => h("p", { class: "note" }, `Sweep ${sweep.name}: not evaluated. The pages of its features show example reports.`))
    .concat(D.sweeps.filter((sweep) => sweep.rates && !evaluated.includes(sweep)).map((sweep) => h("p", { class: "note" }, `Sweep ${sweep.name}: ${noRate(sweep)}. The pages of its features show example reports.`)));
  if (!evaluated.length) return [title, waiting, steeredList()];
  const column = (name, title) => ({ title, num: true, value: (r) => r[name].rate, cell: (r) => [rate(r[name]), h("span", { class: "soft small" }, isNumber(r[name].rate) ? ` ${(100 * intervalOf(r[name])[0]).toFixed(0)}–${percent(intervalOf(r[name])[1])}` : "")] });
  const cases = { title: "n", num: true, hint: "Reports in which the concept could be added or removed", value: (r) => r.on_target.n, cell: (r) => h("span", { class: r.on_target.n < FEW ? "few" : "" }, count(r.on_target.n)) };
  const rates = [cases, column("on_target", "On target"), column("off_target", "Off target"), column("no_change", "No change"), column("degenerate", "Degenerate")];
  const cost = (name, title, hint, show) => ({ title, num: true, hint, value: (r) => r[name], cell: (r) => (isNumber(r[name]) ? show(r[name]) : DASH) });
  const costs = [cost("format_kept", "Format", "Reports that are whole sentences, where the unsteered one is", percent), cost("length", "Length", "Words, for each word of the unsteered report", fixed),
    cost("nll_change", "NLL", "Change of the negative log-likelihood under the unsteered model, in nats per token", fixed), cost("history", "History", "Words that compare with an earlier study", percent)];
  const ofSweep = several ? [{ title: "Sweep", value: (r) => r.sweep, cell: (r) => r.sweep }] : [];
  const methods = evaluated.flatMap((sweep) => Object.entries(sweep.rates.headline).map(([name, row]) => ({ sweep: sweep.name, method: name, ...row })));
  const best = evaluated.flatMap((sweep) => sweep.rates.best.map((row) => ({ sweep: sweep.name, ...row })));
  const ofMethod = { title: "Method", value: (r) => r.method, cell: (r) => h("span", { title: METHODS[r.method] ? METHODS[r.method][1] : "" }, method(r.method)) };
  return [title,
    h("p", { class: "lead" }, evaluated.map((sweep) => `${several ? `Sweep ${sweep.name}: ` : ""}${count(sweep.rates.studies)} held-out studies. `).join("")
      + "On target: the concept was added (or removed) as intended. Off target: another finding changed. "
      + "For each concept the strength was chosen on one half of the studies and is reported on the other; intervals are 95 %, over studies (of few cases, and where all agree, of the share by Wilson's formula)."),
    waiting,
    panel(several ? "By sweep and method" : "By method", table([...ofSweep, ofMethod, ...rates, ...costs], methods, several ? 3 : 2)),
    methodLegend([...new Set(methods.map((r) => r.method))]),
    h("div", { class: "cols stack" }, methods.map((r) => panel(`${several ? r.sweep + ", " : ""}${method(r.method)}: rates by strength`,
      curves(D.sweeps.find((sweep) => sweep.name === r.sweep).rates.curves.filter((row) => row.method === r.method), `Rates by strength for ${r.method}`), key()))),
    panel("By concept, at the best strength", table([
      { title: "Concept", value: (r) => r.concept, cell: (r) => h("b", {}, r.concept) }, ...ofSweep, ofMethod,
      { title: "Feature", num: true, value: (r) => (r.method === "add" ? r.feature : null), cell: (r) => (r.method === "add" && isNumber(r.feature) ? link(r.feature, String(r.feature)) : DASH) },
      { title: "Intended", value: (r) => r.intended, cell: (r) => r.intended },
      { title: "Strength", num: true, value: (r) => r.strength, cell: (r) => r.strength }, ...rates, ...costs,
    ], best, 0, false)),
    smallestSetsPanel(rates, ofSweep),
    steeredList()];
}
// The smallest sets of features, each with the values that its features are set to.
function smallestSetsPanel(rates, ofSweep) {
  const rows = D.sweeps.flatMap((sweep) => sweep.sets.filter((row) => row.rates).map((row) => ({ sweep: sweep.name, ...row, ...row.rates })));
  if (!rows.length) return null;
  return panel("Smallest sets of features", h("p", { class: "soft small" }, "What in the autoencoder carries a concept: the features that are set, the most changed one first, each with its value; and what that did in held-out reports."),
    table([{ title: "Concept", value: (r) => r.concept, cell: (r) => h("b", {}, r.concept) }, ...ofSweep, { title: "Intended", value: (r) => r.intended, cell: (r) => r.intended },
      { title: "Size", num: true, value: (r) => r.features.length, cell: (r) => r.features.length },
      { title: "Features", value: (r) => r.features.length, cell: (r) => r.features.flatMap(([i, value], n) => [n ? ", " : "", link(i, String(i)), h("span", { class: "soft small" }, ` ${short(value)}`)]) },
      ...rates], rows, 0, false));
}
const steeredList = () => panel("Steered features", Object.entries(F.steered).map(([sweep, features]) => [D.sweeps.length > 1 ? h("h3", {}, sweep) : null,
  h("div", { class: "chips" }, features.map((i) => link(i)))]));
