"""Renders the page of the atlas, which needs no network and no server.

Styles, scripts and what the first view shows are inside the page; the rest is in the folders next to it (`chunks`,
images), and its content security policy allows nothing else. Texts of studies reach the page only as JSON and as text
nodes.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

_WEB = Path(__file__).parent / "web"
_STYLE = "atlas.css"
# In this order: a script uses those before it.
_SCRIPTS = (
    "elements.js",
    "chunks.js",
    "charts.js",
    "images.js",
    "overview.js",
    "list.js",
    "contexts.js",
    "feature.js",
    "study.js",
    "steering.js",
    "routes.js",
)


def render(data: dict[str, Any]) -> str:
    """The page, with `data` for its first view: what `interp.atlas.build` has gathered."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_WEB),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (_WEB / _STYLE).read_text(encoding="utf-8")
    scripts = [(_WEB / name).read_text(encoding="utf-8") for name in _SCRIPTS]
    # One scope of its own: nothing in it collides with the names of the window.
    script = '"use strict";\n(() => {\n' + "\n".join(scripts) + "})();\n"
    return environment.get_template("page.html.jinja").render(
        run=data["run"],
        shows_studies=data["shows_studies"],
        # Hashes instead of 'unsafe-inline': a script that came in with a study's text could not run.
        # Browsers differ in whether 'self' is the folder of a page on a disk.
        policy=f"default-src 'none'; style-src '{content_hash(style)}'; script-src 'self' file: "
        f"'{content_hash(script)}'; img-src 'self' file:; base-uri 'none'; form-action 'none'",
        style=Markup(style),
        script=Markup(script),
        data=Markup(to_script_json(data)),
    )


def content_hash(text: str) -> str:
    """The hash by which a content security policy allows a style or a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def to_script_json(value: Any) -> str:
    """JSON for the inside of a script element: no text in it can close the element or open a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII only
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
