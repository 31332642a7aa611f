// Data that is loaded when it is needed: scripts in the folder `data` that call `atlasChunk` with their content.
const arrived = new Map(); // name -> called with the packed content
const chunks = new Map(); // name -> promise of the content
const KEPT = 200; // chunks in memory
window.atlasChunk = (name, packed) => arrived.get(name)(packed);
function chunk(name) {
  if (chunks.has(name)) return chunks.get(name);
  const found = new Promise((resolve, reject) => {
    const script = h("script", { src: `data/${name}.js`, on: { error: () => reject(new Error(`data/${name}.js is missing: unpack the whole folder of the atlas`)) } });
    arrived.set(name, (packed) => { arrived.delete(name); script.remove(); resolve(unpacked(packed)); });
    document.head.append(script);
  });
  chunks.set(name, found);
  if (chunks.size > KEPT) chunks.delete(chunks.keys().next().value);
  return found;
}
function unpacked(packed) {
  if (!window.DecompressionStream) throw new Error("this browser cannot unpack the data: use one from 2023 or later");
  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"))).json();
}
async function details(i) {
  const { tokens, features } = await chunk("feature-" + Math.floor(i / D.per_chunk));
  return { ...features[i % D.per_chunk], texts: tokens };
}
// Studies that have a page: [name, split, strongest features, image].
let STUDIES = [];
const studyNumber = new Map(); // name -> place in STUDIES
let LABELS = { names: [], present: {} }; // of the studies whose images are shown or that have a page: name -> numbers of labels
async function loadList() {
  const [list, studies, labels] = await Promise.all([chunk("list"), D.shows_studies ? chunk("studies") : [], D.shows_studies ? chunk("labels") : LABELS]);
  F = list; N = F.name.length; STUDIES = studies; LABELS = labels;
  studies.forEach((row, n) => studyNumber.set(row[0], n));
}
const studyHref = (name, i) => "#/study/" + encodeURIComponent(name) + (i === undefined ? "" : "?feature=" + i);
const studyLink = (name, i) => (studyNumber.has(name) ? h("a", { href: studyHref(name, i) }, name) : h("span", {}, name));
