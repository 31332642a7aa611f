"""The atlas: one HTML file with every feature, its exemplars, scores and steering examples.

The file needs no network and no server: styles, scripts and data are inside it, and its content security policy
allows nothing else. Texts of studies reach the page only as JSON and as text nodes.
"""

import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jinja2
import ml_collections
from markupsafe import Markup

from interp.atlas.data import OPTIONAL_STAGES, AtlasConfig, folder, gather, is_finished
from maira_jax.errors import UserError
from maira_jax.run import files
from maira_jax.run.stage import MANIFEST, Stage

_NEEDED = ("model", "activations", "sae", "interp")
_HERE = Path(__file__).parent


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes `atlas/index.html` from the finished stages; stages that have not run are shown as such.

    Of the steering sweeps it shows the one that `steer.name` names.

    Returns:
      What the manifest counts, and the page's path as `page`.

    Raises:
      UserError: the section is invalid, or the interpret stage has not finished.
    """
    section = config.atlas.to_dict()
    try:
        cfg = AtlasConfig(**section, sweep=config.steer.name)
    except TypeError as error:
        raise UserError(f"the config's atlas section is wrong ({error}): see configs/phantom.py") from error
    workdir = Path(workdir)
    optional = [folder(stage, cfg) for stage in OPTIONAL_STAGES]
    inputs = (*_NEEDED, *(name for name in optional if is_finished(workdir, name)))
    _forget_smaller_atlas(workdir / "atlas", inputs)
    with Stage(workdir, "atlas", {"atlas": section}, inputs=inputs) as stage:
        page = stage.dir / "index.html"
        if not stage.finished:
            data = gather(workdir, cfg)
            with files.atomic_path(page) as path:
                path.write_text(render(data), encoding="utf-8")
            stage.finish({"features": len(data["features"]["feature"]), "bytes": page.stat().st_size})
        return stage.manifest["counts"] | {"page": str(page)}


def _forget_smaller_atlas(directory: Path, inputs: tuple[str, ...]) -> None:
    """Removes an atlas that was made before another stage had finished: it is to be made again, not refused."""
    if (directory / MANIFEST).is_file() and set(files.read_object(directory / MANIFEST).get("inputs", ())) != set(
        inputs
    ):
        shutil.rmtree(directory)


def render(data: dict[str, Any]) -> str:
    """The page for what `gather` gave."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("atlas.css", "atlas.js"))
    return environment.get_template("page.html.jinja").render(
        run=data["run"],
        # Hashes instead of 'unsafe-inline': a script that came in with a study's text could not run.
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        style=Markup(style),
        script=Markup(script),
        data=Markup(to_script_json(data)),
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def to_script_json(value: Any) -> str:
    """JSON that can stand inside a script element: no text in it can close the element or open a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII only
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
