"""The export stage: the finished autoencoder in the formats of other programs."""

from pathlib import Path
from typing import Any

import ml_collections

from maira_jax.errors import UserError
from maira_jax.run import files
from maira_jax.run.stage import Stage
from sae import checkpoint, formats

WRITERS = {
    "safetensors": formats.save_safetensors,
    "dictionary_learning": formats.save_dictionary_learning,
}


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes `export/<format>/` for each format of `config.export.to`.

    Returns:
      The SHA-256 of each file, by its path under `export/`.

    Raises:
      UserError: an unknown format, or torch is missing for dictionary_learning.
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
        sae = checkpoint.load_sae(Path(workdir) / "sae")
        for name in wanted:
            WRITERS[name](stage.dir / name, sae, config.export.fold_normalization)
        written = sorted(path for name in wanted for path in (stage.dir / name).iterdir())
        stage.finish({str(path.relative_to(stage.dir)): files.sha256(path) for path in written})
        return stage.manifest["counts"]
