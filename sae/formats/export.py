"""The export stage: the finished autoencoders in the formats of other programs, each with a model card."""

from pathlib import Path
from typing import Any

import ml_collections

from maira_jax.checkpoint.digests import DIGESTS
from maira_jax.errors import UserError
from maira_jax.run import files
from maira_jax.run.config import Section, setting
from maira_jax.run.stages.stage import MANIFEST, Stage
from sae.formats import model_card
from sae.formats.registry import writers
from sae.saved import load_sae


class ExportSection(Section, name="export"):
    """Which formats the autoencoder is written in, for other programs."""

    to: tuple[str, ...] = setting(
        ("dictionary_learning", "saelens", "safetensors"),
        "Formats, each written into a folder of its own.",
        choices=writers,
    )
    fold_normalization: bool = setting(
        True, "Whether the exported autoencoder takes raw activations; saelens can express nothing else."
    )

    def check(self) -> None:
        if not self.to:
            raise UserError(f"export.to is empty: choose from {', '.join(writers())}")


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes the autoencoder of a run, and its companions, in each format of `config.export.to`.

    `export/FORMAT/` holds the autoencoder of `sae/`, `export/NAME/FORMAT/` each companion of `config.sae.companions`;
    `sha256sum -c` compares them with `export/SHA256SUMS`.

    Returns:
      The SHA-256 of each file, by its path under `export/`.

    Raises:
      UserError: an unknown format, or one that cannot express this autoencoder.
    """
    section, workdir = ExportSection.of(config), Path(workdir)
    trained = {"sae": Path()} | {f"sae-{name}": Path(name) for name in config.sae.companions}
    with Stage(workdir, "export", section.deciding(), inputs=tuple(trained), config=config) as stage:
        if stage.finished:
            return stage.manifest["counts"]
        for folder, place in trained.items():
            _write(workdir / folder, stage.dir / place, section)
        written = sorted(path for path in stage.dir.rglob("*") if path.parent.name in section.to)
        digests = {str(path.relative_to(stage.dir)): files.sha256(path) for path in written}
        with files.atomic_path(stage.dir / DIGESTS) as path:
            path.write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))
        stage.finish(digests)
        return stage.manifest["counts"]


def _write(trained: Path, directory: Path, section: ExportSection) -> None:
    """Writes the autoencoder of the stage's folder `trained` to `directory/FORMAT/`."""
    sae = load_sae(trained)
    metrics, manifest = files.read_json(trained / "metrics.json"), files.read_json(trained / MANIFEST)
    for name in section.to:
        writer = writers()[name]
        writer.save(directory / name, sae, section.fold_normalization)
        with files.atomic_path(directory / name / "README.md") as path:
            path.write_text(model_card.text(sae, writer, section.fold_normalization, metrics, manifest))
