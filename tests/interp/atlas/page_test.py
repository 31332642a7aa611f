"""The page is self-contained, and safe against what is written in a study."""

import re

from interp.atlas import page as page_lib
from interp.atlas.data import gather
from tests.helpers.atlas_page import ATTACK, Page, data_of, page_of, scripts
from tests.helpers.interp_run import config


def test_page_refers_to_nothing_outside_itself(run_dir):
    text, counts = page_of(run_dir)
    page = Page(text)
    assert counts["page"].endswith("atlas/index.html") and counts["bytes"] == len(text.encode())
    for tag, attrs in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert "src" not in attrs and attrs.get("href", "#").startswith("#") and "action" not in attrs
        assert not any(name.startswith("on") or name == "style" for name in attrs)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|WebSocket|innerHTML|insertAdjacent|eval\(", page.scripts[-1])
    # The one name that looks like an address is that of SVG, which nothing fetches.
    # Data in base64 may hold two slashes, but no dot after them.
    assert set(re.findall(r"https?://[\w./]+\w|//[\w-]+(?:\.[\w-]+)+", text)) == {"http://www.w3.org/2000/svg"}


def test_policy_allows_only_the_pages_own_style_and_script(run_dir):
    text, _ = page_of(run_dir)
    page = Page(text)
    (policy,) = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "*" not in policy
    assert f"script-src '{page_lib.content_hash(page.scripts[-1])}'" in policy
    style = text[text.index("<style>") + 7 : text.index("</style>")]
    assert f"style-src '{page_lib.content_hash(style)}'" in policy


def test_text_of_studies_cannot_leave_its_place(run_dir):
    data = gather(config(), run_dir)
    data["run"]["model"] = ATTACK
    data["exemplars"]["tokens"][0] = ATTACK
    data["features"]["explanation"][0] = ATTACK
    page = Page(page_lib.render(data))
    assert len(scripts(page)) == 2
    assert not [tag for tag, _ in page.elements if tag == "img"]
    read = data_of(page)
    assert read["exemplars"]["tokens"][0] == read["features"]["explanation"][0] == read["run"]["model"] == ATTACK
    assert "<" not in page_lib.to_script_json({"a": ATTACK}) and "\u2028" not in page_lib.to_script_json({"a": ATTACK})
