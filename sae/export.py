"""The export stage: the finished autoencoder in the formats of other programs, each with a model card."""

from pathlib import Path
from typing import Any

import ml_collections

from maira_jax.errors import UserError
from maira_jax.run import files
from maira_jax.run.stage import MANIFEST, Stage
from sae import checkpoint
from sae.formats import card, dictionary_learning, plain, saelens

WRITERS = {
    "dictionary_learning": dictionary_learning.save,
    "saelens": saelens.save,
    "safetensors": plain.save,
}


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes `export/<format>/` for each format of `config.export.to`.

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
    with Stage(Path(workdir), "export", config.export.to_dict(), inputs=("sae",)) as stage:
        if stage.finished:
            return stage.manifest["counts"]
        trained, fold = Path(workdir) / "sae", bool(config.export.fold_normalization)
        sae = checkpoint.load_sae(trained)
        metrics, manifest = files.read_json(trained / "metrics.json"), files.read_json(trained / MANIFEST)
        for name in wanted:
            WRITERS[name](stage.dir / name, sae, fold)
            with files.atomic_path(stage.dir / name / "README.md") as path:
                path.write_text(card.text(sae, name, fold, metrics, manifest))
        written = sorted(path for name in wanted for path in (stage.dir / name).iterdir())
        stage.finish({str(path.relative_to(stage.dir)): files.sha256(path) for path in written})
        return stage.manifest["counts"]
