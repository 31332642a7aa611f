"""The atlas in Chromium, from a disk: what a reader does, and what hostile texts do not."""

import os
import shutil

import pytest

from tests.helpers.atlas_page import ATTACK

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
_TIMEOUT = 60_000  # milliseconds: other tests run beside these
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed; CHROMIUM may name one")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        sync_api.expect.set_options(timeout=_TIMEOUT)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, full, tmp_path):
    """Opens a page of the atlas, and afterwards tells what went wrong and what was asked of other places."""
    contexts = []

    def at(address="", **options):
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(_TIMEOUT)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.on("dialog", lambda dialog: failed.append(dialog.message))
        page.on("console", lambda message: failed.append(message.text) if message.type == "error" else None)
        page.goto(f"file://{full.workdir}/atlas/index.html{address}")
        page.wait_for_selector("main h1")
        return page

    asked, failed = [], []
    yield at
    for context in contexts:
        context.close()
    folder = f"file://{full.workdir}/atlas/"
    assert asked and all(url.startswith(folder) for url in asked) and failed == []


def names(page):
    return page.locator(".row .id").all_inner_texts()


def test_search_finds_names_contexts_and_concepts_and_is_in_the_address(opened):
    page = opened()
    page.keyboard.press("/")
    page.keyboard.type("pacemaker")
    page.wait_for_url("**/index.html#/features?q=pacemaker")
    page.wait_for_selector(".concepts")
    assert names(page)[0] == "5" and "pacemaker → " in page.locator(".concepts").inner_text()
    found = names(page)
    again = opened("#/features?q=pacemaker&in=contexts")
    again.wait_for_selector(".row")
    assert "5" in names(again) and set(names(again)) <= set(found)
    assert again.locator("select").first.input_value() == "contexts"
    page.locator("#search").press("Enter")
    page.wait_for_url("**#/feature/5")
    page.wait_for_selector(".context.hit")


def test_the_list_is_sorted_and_walked_by_keys(opened):
    page = opened("#/features")
    page.wait_for_selector(".row")
    page.get_by_role("button", name="#").click()
    page.wait_for_url("**sort=feature&order=up")
    assert names(page) == [str(i) for i in range(12)]
    page.get_by_role("button", name="#").click()
    sync_api.expect(page.locator(".row .id").first).to_have_text("11")
    page.locator(".viewport").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url("**#/feature/10")
    page.wait_for_selector("#next")
    page.keyboard.press("j")
    page.wait_for_url("**#/feature/9")
    page.wait_for_selector("text=Never active.")


def test_a_feature_shows_contexts_sets_sweeps_and_hostile_texts_as_text(opened):
    page = opened("#/feature/4")
    assert ATTACK.split("\u2028")[0].strip() in page.locator(".explanation").inner_text()
    assert page.locator(".tok.peak").count() >= 5
    panels = page.locator("section h2").all_inner_texts()
    assert "Interpretations by set" in panels and "Steering, sweep again (concept: communication)" in panels
    assert page.locator("ins").count() and "pacemaker" in page.locator("ins").all_inner_texts()
    assert page.locator(".tokenbars tr").count() == 16
    assert page.locator(".few").first.inner_text().strip().startswith("n = ")
    assert page.evaluate("document.querySelectorAll('main script').length") == 0


def test_a_study_is_shaded_by_the_chosen_feature(opened):
    page = opened("#/study/phantom-0-000000?feature=0")
    page.wait_for_selector(".sentence")
    sync_api.expect(page.locator(".xrays img").first).to_have_js_property("naturalWidth", 8)
    button = page.locator(".ofsentence button").last
    number = button.inner_text().split()[0]
    button.click()
    page.wait_for_url(f"**#/study/phantom-0-000000?feature={number}")
    assert page.locator(".sentence .tok").count() and page.locator("input[type=number]").input_value() == number
    page.locator(".gallery figure a").first.click()
    sync_api.expect(page.locator("h1")).not_to_contain_text("phantom-0-000000")
    page.locator("nav a", has_text="Studies").click()
    page.wait_for_selector(".thumbnail img")


def test_pages_fit_a_phone_in_dark_mode(opened):
    page = opened(viewport={"width": 390, "height": 844}, color_scheme="dark")
    for address in ("#/", "#/features", "#/feature/4", "#/studies", "#/study/phantom-0-000000", "#/steering"):
        page.evaluate("(address) => { location.hash = address; }", address)
        page.wait_for_timeout(150)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, address
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark


def test_an_address_that_leads_nowhere_says_so(opened):
    page = opened("#/feature/99")
    assert page.locator("h1").inner_text() == "Not in this atlas"
    assert opened("#/steering").locator(".legend dt").first.inner_text().startswith("SAE feature added")


def test_scores_of_selection_rules_are_shown_with_the_feature(opened):
    scored = opened("#/feature/4").locator(".panel", has_text="Selection for steering, sweep again").last.inner_text()
    assert "pilot chosen" in scored.replace("\n", " ") and "0.70 0.50 to 0.80, n = 12" in scored


def test_the_smallest_sets_of_features_are_listed(opened):
    shown = opened("#/steering").locator(".panel", has_text="Smallest sets of features").last
    assert "communication\tconcepts\tadded\t2\t5 1.5, 4 1.5" in shown.inner_text()


WITHOUT_RATES = """
const parse = JSON.parse;
JSON.parse = (text) => {
  const found = parse(text);
  for (const { rates } of found.sweeps || []) Object.assign(rates, { headline: {}, best: [], concepts: [] });
  return found;
};
"""


def test_an_evaluation_without_rates_says_why(opened):
    page = opened("#/steering")
    page.add_init_script(WITHOUT_RATES)
    page.reload()
    page.wait_for_selector("text=Sweep again: no steered feature has a known concept")
    assert not page.locator("main .legend, main table").count()
    page.evaluate("() => { location.hash = '#/'; }")
    page.wait_for_selector("text=steered on target: no steered feature has a known concept")
