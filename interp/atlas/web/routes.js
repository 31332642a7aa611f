// Which page is shown, the search box, keys, light and dark.
const TABS = { features: "features", feature: "features", study: "studies", studies: "studies", steering: "steering" };
let asked = 0;
async function show() {
  const mine = ++asked, [path, query = ""] = location.hash.split("?"), [, page = "", argument = ""] = path.split("/");
  const parts = await parse(page, decoded(argument), new URLSearchParams(query));
  if (mine !== asked) return; // another page was asked for meanwhile
  main.replaceChildren(...parts.flat(Infinity).filter((part) => part));
  const tab = TABS[page] || "overview";
  for (const item of document.querySelectorAll("nav a")) item.dataset.page === tab ? item.setAttribute("aria-current", "page") : item.removeAttribute("aria-current");
  if (document.activeElement !== searchBox) window.scrollTo(0, 0);
}
async function parse(page, argument, query) {
  const i = Number(argument);
  refreshList = null;
  try {
    if (!F) await loadList();
    if (page === "feature" && argument !== "" && Number.isInteger(i) && i >= 0 && i < N) return await feature(i);
    if (page === "study" && studyNumber.has(argument)) return await study(argument, query);
    if (page === "features") { takeAddress(query); return features(); }
    return page === "studies" ? studies() : page === "steering" ? steering() : page ? [h("h1", {}, "Not in this atlas"), h("p", { class: "lead" }, `There is no ${page} “${argument}” here. `, h("a", { href: "#/" }, "Overview"))] : overview();
  } catch (error) {
    return [h("h1", {}, "This page cannot be shown"), h("p", { class: "note" }, error.message)];
  }
}
function decoded(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}
let typing = 0;
function search() {
  filters.q = searchBox.value.trim();
  if (refreshList) refreshList(); else location.hash = address();
}
searchBox.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(search, 80); // one search for a word, not one for each letter
});
searchBox.form.addEventListener("submit", async (event) => {
  event.preventDefault();
  clearTimeout(typing);
  filters.q = searchBox.value.trim();
  await match();
  if (order.length) location.hash = "#/feature/" + order[0];
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
