// X-rays with heat maps over their patches.
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
  const [, columns] = D.grid, [x, y, width, height] = cell;
  const svg = s("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", class: "heat", "aria-hidden": "true" });
  for (let n = 0; n < heat.length; n += 2) {
    const row = Math.floor(heat[n] / columns), column = heat[n] % columns;
    svg.append(s("rect", { x: x + column * width, y: y + row * height, width, height, "fill-opacity": 0.1 + (heat[n + 1] / 100) * 0.55 },
      s("title", {}, `${heat[n + 1]} % of the feature's largest activation`)));
  }
  return svg;
}
const imageFile = (number) => `images/${String(number).padStart(5, "0")}.jpg`;
// An image in a frame: its number and first patch, a text that describes it, a heat map, where a click leads.
function frame(number, cell, description, heat, href) {
  const inside = [
    isNumber(number) ? h("img", { src: imageFile(number), alt: description, loading: "lazy" }) : h("span", { class: "soft small noimage" }, "no image"),
    isNumber(number) && heat && heat.length && cell ? heatMap(heat, cell) : null];
  return href ? h("a", { class: "frame", href, title: description }, inside) : h("span", { class: "frame", title: description }, inside);
}
const labelsOf = (study) => (Object.hasOwn(LABELS.present, study) ? LABELS.present[study].map((n) => LABELS.names[n]).join(", ") || "no label" : "");
function picture(study, number, cell, caption, heat, i) {
  const stated = labelsOf(study);
  return h("figure", { class: "picture" },
    frame(number, cell, `X-ray of ${study}${stated ? ": " + stated : ""}`, heat, studyNumber.has(study) ? studyHref(study, i) : null),
    h("figcaption", {}, h("b", {}, caption), h("span", { class: "soft" }, stated || study)));
}
