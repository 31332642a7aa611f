// The contexts of a feature, as shaded text or as images with heat maps.
const [KIND, DECILE, SECTION, STUDY, MAX, TOKENS, HEAT, PICTURE] = [0, 1, 2, 3, 4, 5, 6, 7];
const isImage = (context) => context.length > PICTURE;
function contextsPanel(i, found) {
  const title = OF_IMAGES ? "Images" : "Contexts";
  if (!D.shows_studies) return panel(title, h("p", { class: "soft" }, "This atlas was written without texts and images of studies."));
  if (!found.contexts.length) return panel(title, h("p", { class: "soft" }, F.density[i] ? "None in the training studies." : "It was never active."));
  const of = (kind) => found.contexts.filter((context) => D.kinds[context[KIND]] === kind);
  const block = (title, rows) => {
    if (!rows.length) return [];
    const images = rows.filter(isImage), texts = rows.filter((row) => !isImage(row));
    return [h("h3", {}, title), texts.map((row) => contextLine(row, i, found.texts)),
      images.length ? h("div", { class: "gallery" }, images.map((row) => contextImage(row, i))) : null];
  };
  const images = found.contexts.some(isImage);
  return panel(title, images ? [picturesNote(), h("p", { class: "soft small" }, D.grid
    ? "Colours show the patches on which the feature is active; the strongest colour is its largest activation anywhere." + (OF_IMAGES ? "" : " A context of an image is a run of its patches; the study's page has them all.")
    : OF_IMAGES ? "The rows of this encoder are whole images, so there are no heat maps." : "Of an image, the last token alone is among the activations, so there are no heat maps.")] : null,
    block("Strongest", of("top")),
    block(`One of each tenth of the ${THINGS} in which it is active, strongest first${OF_IMAGES ? ": its number, and the activation" : ""}`, of("decile").sort((a, b) => b[DECILE] - a[DECILE])),
    block("Not active, drawn at random", of("random")), block("Not active, of the nearest features", of("nearest")),
    block("Not active, of studies in which it is active elsewhere", of("same study")));
}
const contextImage = (row, i) => picture(row[STUDY], row[PICTURE] && row[PICTURE][0], row[PICTURE] && row[PICTURE][1],
  (row[DECILE] >= 0 ? `${row[DECILE] + 1} · ` : "") + short(row[MAX]), row[HEAT], i);
function contextLine(row, i, texts) {
  const tokens = row[TOKENS].map((t) => texts[t]);
  const hit = filters.q && queryWords().some((word) => tokens.join("").toLowerCase().includes(word));
  return h("div", { class: "context" + (hit ? " hit" : "") }, h("span", { class: "value soft" }, row[HEAT].length ? short(row[MAX]) : DASH),
    h("span", { class: "where" }, D.sections[row[SECTION]], row[DECILE] >= 0 ? ` · ${row[DECILE] + 1}` : "", h("br"), studyLink(row[STUDY], i)),
    h("span", { class: "text" }, shaded(tokens, row[HEAT], F.max_activation[i])));
}
// Tokens with tints: `heat` is [place, percent, ...]; the largest is underlined.
function shaded(tokens, heat, largest, first = 0) {
  const percents = new Map();
  let peak = -1, highest = 0;
  for (let n = 0; n < heat.length; n += 2) {
    percents.set(heat[n] - first, heat[n + 1]);
    if (heat[n + 1] > highest) { highest = heat[n + 1]; peak = heat[n] - first; }
  }
  return tokens.map((text, n) => {
    const word = text.trimStart(), share = percents.get(n); // the space before a word is not tinted
    return [n && word !== text ? " " : null, share ? h("span", { class: "tok" + (n === peak ? " peak" : ""), vars: { "--a": share },
      title: `${short((share / 100) * largest)} (${share} % of the largest)` }, word || "␣") : word];
  });
}
