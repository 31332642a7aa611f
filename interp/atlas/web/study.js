// The list of studies, and the page of one: images and report shaded by a feature, features by sentence, similar studies.
function studies() {
  const thumbnail = (row) => h("div", { class: "thumbnail" }, frame(row[3], null, `X-ray of ${row[0]}`, null, studyHref(row[0])));
  return [h("h1", {}, "Studies"), picturesNote(), h("p", { class: "lead" }, `${count(STUDIES.length)} of ${count(D.run.studies)} studies: those of the strongest contexts of the features, the best features first`
    + (D.sweeps.length ? ", and those whose steered reports are shown." : ".")),
    panel(null, table([
      ...(STUDIES.some((row) => isNumber(row[3])) ? [{ title: "", value: (row) => row[3], cell: thumbnail }] : []),
      { title: "Study", value: (row) => row[0], cell: (row) => studyLink(row[0]) },
      { title: "Split", value: (row) => row[1], cell: (row) => row[1].replace("_", " ") },
      { title: "Labels", wide: true, value: (row) => LABELS.present[row[0]].length, cell: (row) => labelsOf(row[0]) },
      { title: "Strongest features", wide: true, value: (row) => row[2][0], cell: (row) => row[2].map((i) => h("div", { class: "small" }, link(i))) },
    ], STUDIES, STUDIES.some((row) => isNumber(row[3])) ? 1 : 0, false))];
}
// Features that are active nearly everywhere say little about a place: they come last.
const telling = (i, share) => share * (F.density[i] > 0.1 ? 0.01 : 1);
const LISTED = 300; // features to choose from; any other one by its number
async function study(id, query) {
  const found = await chunk("study-" + studyNumber.get(id));
  const rows = new Map(found.features.map(([i, share, ...pairs]) => [i, pairs]));
  const ranked = found.features.map(([i, share]) => [i, share]).sort((a, b) => telling(...b) - telling(...a));
  const images = h("div", { class: "xrays" }), report = h("div", { class: "report" }), about = h("p", { class: "small", role: "status" });
  const wanted = Number(query.get("feature"));
  let chosen = query.has("feature") && Number.isInteger(wanted) && wanted >= 0 && wanted < N ? wanted : ranked.length ? ranked[0][0] : null;
  const option = ([i, share]) => h("option", { value: i }, `${titled(i)}, ${share} %`);
  const number = h("input", { type: "number", min: 0, max: N - 1, "aria-label": "Number of the feature to shade by", on: { change: (e) => { const i = Number(e.target.value); if (Number.isInteger(i) && i >= 0 && i < N) choose(i); } } });
  const list = h("select", { "aria-label": "Feature to shade by", on: { change: (e) => choose(Number(e.target.value)) } },
    ranked.slice(0, LISTED).map(option));
  function choose(i) {
    chosen = i;
    history.replaceState(null, "", studyHref(id, i));
    shade();
  }
  function shade() {
    const pairs = rows.get(chosen) || [];
    if (chosen !== null) { number.value = chosen; list.value = String(chosen); }
    if (rows.has(chosen) && !list.value) { list.append(option(ranked.find(([i]) => i === chosen))); list.value = String(chosen); }
    about.replaceChildren(...(chosen === null ? ["No feature is active here."] : [link(chosen), rows.has(chosen) ? "" : " is not active here, or below 5 % of its largest activation."]));
    images.replaceChildren(...studyImages(found, pairs, id));
    report.replaceChildren(...reportParts(found, pairs, chosen, rows, choose));
  }
  shade();
  return [
    h("div", { class: "crumbs" }, h("a", { href: "#/studies" }, "← all studies")),
    h("h1", {}, "Study ", id),
    h("p", {}, chip(found.split.replace("_", " ")), " ", found.labels.map((label) => [chip(label, "good"), " "]), found.labels.length ? null : h("span", { class: "soft small" }, "no label")),
    picturesNote(),
    panel(null, h("div", { class: "filters" }, h("label", {}, "Shade by feature", number), list), about,
      h("div", { class: "studycols" + (found.images.length ? "" : " textonly") }, images, report)),
    panel("Similar studies", similarStudies(found, id)),
  ];
}
function studyImages(found, pairs, id) {
  const names = ["frontal", "lateral or prior frontal", "prior frontal"], patches = D.grid ? D.grid[0] * D.grid[1] : 0;
  return found.images.map(([number, first, cell], n) => {
    const heat = [];
    for (let at = 0; first >= 0 && at < pairs.length; at += 2)
      if (pairs[at] >= first && pairs[at] < first + patches) heat.push(pairs[at] - first, pairs[at + 1]);
    return h("figure", { class: "picture" }, frame(number, cell, `${names[n]} X-ray of ${id}`, heat, null), h("figcaption", {}, names[n], first < 0 && D.grid ? h("span", { class: "soft" }, "its patches are not among the activations") : null));
  });
}
// A section of the report after the other; of each sentence the features that are strongest in it.
function reportParts(found, pairs, chosen, rows, choose) {
  const bySentence = found.sentences.map(() => []), ofImages = [];
  const place = new Int32Array(found.tokens.length).fill(-1);
  found.sentences.forEach(([, start, stop], n) => place.fill(n, start, stop));
  for (const [i, own] of rows) {
    const best = new Map();
    for (let at = 0; at < own.length; at += 2) { const n = place[own[at]]; best.set(n, Math.max(best.get(n) || 0, own[at + 1])); }
    for (const [n, share] of best) (n < 0 ? ofImages : bySentence[n]).push([i, share]);
  }
  const strongestOf = (entries, most) => h("div", { class: "ofsentence" }, entries.sort((a, b) => telling(...b) - telling(...a)).slice(0, most).map(([i, share]) =>
    h("button", { type: "button", class: "chip" + (i === chosen ? " good" : ""), title: `${share} % of its largest activation`, on: { click: () => choose(i) } }, titled(i))));
  let section = -1;
  const images = ofImages.length ? [h("h3", {}, found.images.length === 1 ? "image" : "images"), h("div", { class: "sentence" }, strongestOf(ofImages, 12))] : [];
  return images.concat(found.sentences.flatMap(([own, start, stop], n) => {
    const title = own === section ? [] : [h("h3", {}, D.sections[own])];
    section = own;
    return [...title, h("div", { class: "sentence" }, h("div", { class: "text" }, shaded(found.tokens.slice(start, stop), pairs, chosen === null ? 0 : F.max_activation[chosen], start)),
      strongestOf(bySentence[n], 4))];
  }));
}
function similarStudies(found, id) {
  if (!found.similar) return h("p", { class: "soft" }, `Not computed: run python -m launch.similar --workdir=WORKDIR --study_id=${D.deidentified ? "ID" : id}, and then python -m launch.atlas --workdir=WORKDIR.`);
  if (!found.similar.length) return h("p", { class: "soft" }, "No feature is active in it.");
  const shared = (features) => features.map(([i, share]) => h("div", {}, link(i), h("span", { class: "soft" }, ` ${fixed(share)}`)));
  return [h("p", { class: "soft small" }, "Studies of other patients by the cosine of their features' activations, and the features that add most to it."),
    h("div", { class: "gallery wide" }, found.similar.map(([other, cosine, features, number]) =>
      h("div", { class: "small" }, isNumber(number) ? picture(other, number, null, `${fixed(cosine)} `, null) : [h("b", {}, `${fixed(cosine)} `), studyLink(other)], shared(features))))];
}
