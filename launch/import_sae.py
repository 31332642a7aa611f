"""Makes a released sparse autoencoder the run's own, from a file of any program whose files can be read.

Result: WORKDIR/sae, measured on the run's activations; every later command works as after a training. Interpretations
(CSV, JSON Lines or parquet) become the set WORKDIR/interpretations/NAME, also of a run that has its autoencoder.

  python -m launch.import_sae --workdir=runs/maira2 --sae=maira-2-sae
  python -m launch.import_sae --workdir=runs/maira2 --set=released --interpretations=names.csv --columns=feature=latent
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from interp import import_set
from launch import _main
from sae import import_sae

_main.define_shortcut(
    "sae",
    "Folder or file of the autoencoder. Sets import_sae.sae.",
    lambda text: {"import_sae.sae": text},
)
_main.define_shortcut(
    "l0",
    "Set the threshold so that this many features are active per token on average, instead of keeping the file's. Sets "
    "import_sae.l0.",
    lambda text: {"import_sae.l0": int(text)},
)
_main.define_shortcut(
    "interpretations",
    "Files of interpretations, separated by commas. Sets import_set.files.",
    lambda text: {"import_set.files": tuple(text.split(","))},
)
_main.define_shortcut(
    "set",
    "Name of the set that they become, or are added to. Sets import_set.set.",
    lambda text: {"import_set.set": text},
)
_main.define_shortcut(
    "columns",
    "Names of the files' columns where they are not feature, name, explanation and score: "
    "feature=latent,explanation=description,score=auroc. Sets import_set.columns.",
    lambda text: {"import_set.columns": tuple(text.split(","))},
)


def chain(config: ConfigDict) -> list[_main.Run]:
    """The stages that the flags ask for; the first one alone, which says what is missing, if there is none."""
    of_set: list[_main.Run] = [import_set.run] if config.import_set.files else []
    return [import_sae.run, *of_set] if config.import_sae.sae or not of_set else of_set


def run(config: ConfigDict, workdir: Path) -> Mapping[str, Any]:
    """The stages one after the other; the counts of the last one.

    Raises:
      UserError: a field of either section is wrong, before the first stage begins; or what the stages raise.
    """
    import_set.ImportSetSection.of(config)
    *before, last = chain(config)
    for stage in before:
        _main.report("import_sae", stage(config, workdir))
    return last(config, workdir)


if __name__ == "__main__":
    _main.main(
        run,
        __doc__ or "",
        reads=("seed", "studies", "harvest", "train", "import_sae", "import_set"),
        stages=lambda config: {stage.__module__: stage for stage in chain(config)},
    )
