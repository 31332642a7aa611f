"""The export stage: the finished autoencoder in the formats of other programs, each with a model card."""

from pathlib import Path
from typing import Any

import ml_collections

from maira_jax.errors import UserError
from maira_jax.run import files
from maira_jax.run.stage import MANIFEST, Stage
from sae.formats import dictionary_learning, model_card, saelens, safetensors_file
from sae.training import checkpoints

WRITERS = {
    "dictionary_learning": dictionary_learning.save,
    "saelens": saelens.save,
    "safetensors": safetensors_file.save,
}


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes `export/<format>/` for each format of `config.export.to`, and `export/NAME/<format>/` for each autoencoder
    of `config.sae.beside`.

    Returns:
      The SHA-256 of each file, by its path under `export/`.

    Raises:
      UserError: an unknown format, or one that has no place for this autoencoder.
    """
    wanted = tuple(config.export.to)
    for name in wanted:
        if name not in WRITERS:
            raise UserError(f"export.to names {name!r}: choose from {', '.join(WRITERS)}")
    if not wanted:
        raise UserError(f"export.to is empty: choose from {', '.join(WRITERS)}")
    # Those that were trained beside it go into folders of their own.
    trained = {"sae": Path()} | {f"sae-{name}": Path(name) for name in config.sae.beside}
    with Stage(Path(workdir), "export", config.export.to_dict(), inputs=tuple(trained)) as stage:
        if stage.finished:
            return stage.manifest["counts"]
        for folder, place in trained.items():
            _write(Path(workdir) / folder, stage.dir / place, wanted, bool(config.export.fold_normalization))
        written = sorted(path for path in stage.dir.rglob("*") if path.parent.name in wanted)
        stage.finish({str(path.relative_to(stage.dir)): files.sha256(path) for path in written})
        return stage.manifest["counts"]


def _write(trained: Path, directory: Path, wanted: tuple[str, ...], fold: bool) -> None:
    """Writes the autoencoder of the stage's folder `trained` to `directory/<format>/`."""
    sae = checkpoints.load_sae(trained)
    metrics, manifest = files.read_json(trained / "metrics.json"), files.read_json(trained / MANIFEST)
    for name in wanted:
        WRITERS[name](directory / name, sae, fold)
        with files.atomic_path(directory / name / "README.md") as path:
            path.write_text(model_card.text(sae, name, fold, metrics, manifest))
