"""The atlas stage: gathers the finished stages' results and writes them as one folder that a browser opens."""

from pathlib import Path
from typing import Any

import ml_collections

from interp.atlas import figures
from interp.atlas.build import AtlasBuild
from interp.atlas.gathering.results import optional_stages, sweeps
from interp.exemplars.corpus import is_of_images
from maira_jax.errors import UserError
from maira_jax.run import storage
from maira_jax.run.config import Section, setting
from maira_jax.run.stages.stage import MANIFEST, Stage
from sae.activations.store import source_of

_NEEDED = ("activations", "sae", "interp")


class AtlasSection(Section, name="atlas"):
    """What the atlas tells of single studies."""

    deidentify: bool = setting(
        False,
        "Whether studies are numbered instead of named, and dates, times, numbers of five digits or more and "
        "physicians' names are masked in all texts.",
    )
    studies: bool = setting(
        True,
        "Whether anything of single studies is shown: contexts, reports, images, steered reports. Without, "
        "explanations, scores, tokens and rates remain.",
    )


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes the folder `atlas` from the finished stages; stages that have not run are shown as such.

    An atlas of other results, or of other fields, stays until the new one is whole.

    Returns:
      The counts of the manifest, and the page's path as `page`.

    Raises:
      UserError: the interpret stage has not finished, or other sweeps than `steer.name` have but not this one.
    """
    section, workdir, sweep = AtlasSection.of(config), Path(workdir), config.steer.name
    storage.fetch(workdir, (MANIFEST,))  # of the stages that need not have run
    _check_sweep(workdir, sweep)
    model = () if is_of_images(source_of(workdir / "activations")) else ("model",)
    inputs = (*model, *_NEEDED, *optional_stages(workdir))
    deciding = {"atlas": section.deciding(), "first_sweep": sweep}
    with Stage(workdir, "atlas", deciding, inputs=inputs, config=config, replaces=True) as stage:
        if not stage.finished:
            build = AtlasBuild(config, workdir, stage.dir, deidentify=section.deidentify, studies=section.studies)
            n_features = build.run()
            figures.draw(workdir, sweeps(workdir, sweep), stage.dir / figures.FOLDER)
            size = sum(path.stat().st_size for path in stage.dir.rglob("*") if path.is_file())
            stage.finish({"features": n_features, "bytes": size})
        return stage.manifest["counts"] | {"page": str(workdir / "atlas" / "index.html")}


def _check_sweep(workdir: Path, sweep: str) -> None:
    finished = sweeps(workdir, sweep)
    if finished and sweep not in finished:
        raise UserError(
            f"{workdir / 'steer'} has no finished sweep {sweep!r}: choose from {', '.join(finished)} with --sweep"
        )
