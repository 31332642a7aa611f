"""The atlas stage: gathers the finished stages' results and writes them as one page."""

from pathlib import Path
from typing import Any

import ml_collections

from interp.atlas.data import gather
from interp.atlas.page import render
from interp.atlas.results import is_finished, optional_folders
from interp.exemplars.corpus import is_of_images
from maira_jax.errors import UserError
from maira_jax.run import files, storage
from maira_jax.run.stage import MANIFEST, Stage
from sae.activations.store import source_of

_NEEDED = ("activations", "sae", "interp")


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes `atlas/index.html` from the finished stages; stages that have not run are shown as such.

    Of the steering sweeps it shows the one that `steer.name` names.

    Returns:
      The counts of the manifest, and the page's path as `page`.

    Raises:
      UserError: the interpret stage has not finished, or other sweeps have but not this one.
    """
    workdir, sweep = Path(workdir), config.steer.name
    storage.fetch(workdir, (MANIFEST,))  # of the stages that need not have run
    _check_sweep(workdir, sweep)
    model = () if is_of_images(source_of(workdir / "activations")) else ("model",)
    inputs = (*model, *_NEEDED, *(name for name in optional_folders(sweep).values() if is_finished(workdir / name)))
    _remove_outdated(workdir / "atlas", inputs)
    with Stage(workdir, "atlas", {}, inputs=inputs, config=config) as stage:
        page = stage.dir / "index.html"
        if not stage.finished:
            data = gather(config, workdir)
            with files.atomic_path(page) as path:
                path.write_text(render(data), encoding="utf-8")
            stage.finish({"features": len(data["features"]["feature"]), "bytes": page.stat().st_size})
        return stage.manifest["counts"] | {"page": str(page)}


def _check_sweep(workdir: Path, sweep: str) -> None:
    finished = sorted(path.parent.name for path in (workdir / "steer").glob(f"*/{MANIFEST}"))
    if finished and sweep not in finished:
        raise UserError(
            f"{workdir / 'steer'} has no finished sweep {sweep!r}: choose from {', '.join(finished)} with --sweep"
        )


def _remove_outdated(directory: Path, inputs: tuple[str, ...]) -> None:
    """Removes an atlas of other stages, such as one from before steering: it is to be made again, not refused."""
    manifest = directory / MANIFEST
    if manifest.is_file() and set(files.read_object(manifest).get("inputs", ())) != set(inputs):
        files.remove(directory)
