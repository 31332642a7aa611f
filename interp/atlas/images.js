// Features of images: their images with heat maps, labels, and studies alike.
const OF_IMAGES = Boolean(D.run.encoder);
const THINGS = OF_IMAGES ? "images" : "contexts";
const picturesNote = () => (D.no_pictures ? h("p", { class: "note small" }, `Images are not shown: ${D.no_pictures}.`) : null);
function encoderLead() {
  const run = D.run, encoder = run.encoder;
  const rows = run.tokens === run.studies ? "one row per image" : `${count(run.tokens)} rows`;
  const random = encoder.weights && encoder.weights.startsWith("random");
  return [h("p", { class: "lead" }, `${count(run.studies)} images${run.source ? ` (${run.source})` : ""}, encoded by ${encoder.name}`
    + (encoder.grid ? `, a row per patch of ${encoder.grid.join(" x ")}` : `, ${rows}`) + "."),
    random ? h("p", { class: "note" }, h("b", {}, "A control. "), `The encoder's weights are ${encoder.weights}: nothing here is a result about a trained encoder.`) : null];
}
// A heat map: [patch, percent, patch, percent, ...] on the grid of patches, of which `cell` is the first.
function heatMap(heat, cell) {
  const [, columns] = D.run.encoder.grid, [x, y, width, height] = cell;
  const svg = s("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", class: "heat", "aria-hidden": "true" });
  for (let n = 0; n < heat.length; n += 2) {
    const row = Math.floor(heat[n] / columns), column = heat[n] % columns;
    svg.append(s("rect", { x: x + column * width, y: y + row * height, width, height, "fill-opacity": (heat[n + 1] / 100) * 0.75 },
      s("title", {}, `${heat[n + 1]} % of the feature's largest activation`)));
  }
  return svg;
}
function picture(study, caption, heat = []) {
  const { src, labels, cell } = D.pictures[study];
  const stated = labels.join(", ") || "none of the labels";
  return h("figure", { class: "picture" },
    h("a", { class: "frame", href: "#/study/" + encodeURIComponent(study), title: `${study}: ${stated}` },
      src ? h("img", { src, alt: `Study ${study}: ${stated}` }) : h("span", { class: "soft small" }, "no image"),
      src && heat.length && cell ? heatMap(heat, cell) : null),
    h("figcaption", {}, h("b", {}, caption), h("span", { class: "soft" }, stated)));
}
function gallery(i) {
  const rows = D.exemplars.contexts[i];
  if (!rows) return panel("Images", h("p", { class: "soft" }, F.density[i] ? "Left out of this page to keep it small: see interp/exemplars.parquet." : "It was never active."));
  const of = (kind) => rows.filter((row) => row[0] === kind);
  const block = (title, chosen, caption) => (chosen.length ? [h("h3", {}, title), h("div", { class: "gallery" },
    chosen.map((row) => picture(row[2], caption(row), row[4])))] : []);
  const heat = D.run.encoder.grid ? "Colours show the patches on which the feature is active; the strongest colour is its largest activation anywhere."
    : "The rows of this encoder are whole images, so there are no heat maps.";
  return panel("Images", picturesNote(), h("p", { class: "soft small" }, heat),
    block("Strongest", of("top"), (row) => short(row[3])),
    block("One of each tenth of the images in which it is active, strongest first", of("decile").sort((a, b) => b[1] - a[1]), (row) => `${row[1] + 1} · ${short(row[3])}`),
    block("Inactive, drawn at random", of("random"), (row) => short(row[3])));
}
function correlationPanel(i) {
  if (!D.label || !D.label.correlation[i]) return panel("Correlation with labels", h("p", { class: "soft" }, "Stage label: not run."));
  const rows = Object.entries(D.label.correlation[i]).filter(([, r]) => isNumber(r)).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 10);
  return panel("Correlation with labels", rows.length ? h("table", {}, h("tbody", {}, rows.map(([label, r]) =>
    h("tr", {}, h("td", {}, label), h("td", { class: "num" }, h("span", { class: "meter bare" + (r < 0 ? " bad" : "") }, bar(Math.abs(r)), fixed(r))))))) : h("p", { class: "soft" }, "It does not vary."));
}
function similarStudies(id) {
  if (!D.similar) return h("p", { class: "soft" }, `Not computed: run python -m launch.similar --study_id=${id}, and this page again.`);
  const rows = D.similar[id];
  if (!rows) return h("p", { class: "soft" }, "Only in the page as similar to another study.");
  if (!rows.length) return h("p", { class: "soft" }, "No feature is active in it.");
  const shared = (features) => features.map(([i, share]) => h("div", {}, link(i), h("span", { class: "soft" }, ` ${fixed(share)}`)));
  return [h("p", { class: "soft small" }, "Studies of other patients by the cosine of their features' activations, and the features that add most to it."),
    h("div", { class: "gallery wide" }, rows.map(([other, cosine, features]) =>
      h("div", { class: "small" }, D.pictures[other] ? picture(other, fixed(cosine)) : h("b", {}, `${fixed(cosine)} ${other}`), shared(features))))];
}
function study(id) {
  const own = [];
  for (const [feature, rows] of Object.entries(D.exemplars.contexts))
    for (const row of rows) if (row[2] === id && row[0] !== "random") { own.push({ i: Number(feature), activation: row[3] }); break; }
  const share = (row) => row.activation / F.max_activation[row.i];
  return [
    h("h1", {}, "Study ", id),
    picturesNote(),
    h("div", { class: "gallery single" }, picture(id, "")),
    panel("Features that this image is an example of", own.length ? table([
      { title: "Feature", value: (row) => row.i, cell: (row) => link(row.i) },
      { title: "Activation", num: true, value: (row) => row.activation, cell: (row) => short(row.activation) },
      { title: "Of its largest", num: true, value: share, cell: (row) => percent(share(row)) },
      { title: "Detection", num: true, value: (row) => F.detection[row.i], cell: (row) => fixed(F.detection[row.i]) },
    ], own, 2) : h("p", { class: "soft" }, "None of those whose images are in this page.")),
    panel("Similar studies", similarStudies(id)),
  ];
}
