"""Renders the page: one file that needs no network and no server.

Styles, scripts and data are inside the file, and its content security policy allows nothing else. Texts of studies
reach the page only as JSON and as text nodes.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

_HERE = Path(__file__).parent
_PARTS = ("atlas.css", "components.js", "images.js", "pages.js")


def render(data: dict[str, Any]) -> str:
    """The page that shows what `interp.atlas.data.gather` returned."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, *scripts = ((_HERE / name).read_text(encoding="utf-8") for name in _PARTS)
    # One scope of its own: nothing in it collides with the names of the window.
    script = '"use strict";\n(() => {\n' + "\n".join(scripts) + "})();\n"
    return environment.get_template("page.html.jinja").render(
        run=data["run"],
        # Hashes instead of 'unsafe-inline': a script that came in with a study's text could not run.
        policy=f"default-src 'none'; style-src '{content_hash(style)}'; script-src '{content_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'",
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
