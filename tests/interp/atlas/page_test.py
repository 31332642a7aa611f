"""The page refers to nothing outside its folder, and is safe against what is written in a study."""

import re
from pathlib import Path

from interp.atlas import page as page_lib
from tests.helpers.atlas_page import ATTACK, Page, scripts


def test_page_refers_to_nothing_outside_its_folder(full):
    page, text = full.atlas.page, (full.workdir / "atlas" / "index.html").read_text()
    for tag, attrs in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert "src" not in attrs and attrs.get("href", "#").startswith("#") and "action" not in attrs
        assert not any(name.startswith("on") or name == "style" for name in attrs)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|WebSocket|innerHTML|insertAdjacent|eval\(", page.scripts[-1])
    # The one name that looks like an address is that of SVG, which nothing fetches.
    assert set(re.findall(r"https?://[\w./]+\w", text)) == {"http://www.w3.org/2000/svg"}


def test_commands_on_the_page_name_the_run_directory(full):
    commands = re.findall(r"python -m launch\.\w+ ?\S*", full.atlas.page.scripts[-1])
    assert commands and all(" --workdir=" in command for command in commands), commands


def test_policy_allows_only_the_pages_own_style_script_and_folder(full):
    page, text = full.atlas.page, (full.workdir / "atlas" / "index.html").read_text()
    (policy,) = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "*" not in policy
    assert f"script-src 'self' file: '{page_lib.content_hash(page.scripts[-1])}'" in policy
    style = text[text.index("<style>") + 7 : text.index("</style>")]
    assert f"style-src '{page_lib.content_hash(style)}'" in policy


def test_text_of_studies_cannot_leave_its_place(full):
    head = full.atlas.head
    page = Page(page_lib.render(head | {"run": head["run"] | {"model": ATTACK}}))
    assert len(scripts(page)) == 2 and not [tag for tag, _ in page.elements if tag == "img"]
    assert "<" not in page_lib.to_script_json({"a": ATTACK}) and "\u2028" not in page_lib.to_script_json({"a": ATTACK})


def test_no_function_of_the_page_takes_the_name_of_another():
    """The page is one script: of two functions with one name the last would serve both."""
    web = Path(page_lib.__file__).parent / "web"
    names = re.findall(
        r"^(?:async )?function (\w+)", "\n".join(path.read_text() for path in web.glob("*.js")), re.MULTILINE
    )
    assert len(names) > 50 and len(names) == len(set(names))
