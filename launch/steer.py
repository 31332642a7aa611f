"""Writes reports with the residual stream edited, for every study, direction and strength.

Result: WORKDIR/steer/NAME/generations.jsonl, one line per report. Interrupted, it resumes. A run directory holds any
number of sweeps, distinguished by their names.

  python -m launch.steer --sweep=pair --features=12,99 --strengths=-1.5,0,1.5 --limit=20
"""

from typing import Any

from absl import flags

from launch import _main
from steer import stage, stage_words

_FOR_ONE = "--config.steer.concepts='pleural effusion' says what these features are steered for."


def _no_concepts() -> dict[str, Any]:
    """Empties the concepts of the configuration file, which are not those that chosen features are steered for."""
    return {} if "config.steer.concepts" in flags.FLAGS else {"steer.concepts": ()}


_main.define_shortcut(
    "features",
    "Features of the autoencoder to steer with, as numbers: 12,99. Sets steer.features and empties steer.match, and "
    f"steer.concepts where the command line does not give it. {_FOR_ONE}",
    lambda text: {"steer.features": tuple(int(part) for part in text.split(",")), "steer.match": ""} | _no_concepts(),
)
_main.define_shortcut(
    "match",
    "Steer with the features whose explanation matches this regular expression. Sets steer.match and empties "
    f"steer.features, and steer.concepts where the command line does not give it. {_FOR_ONE}",
    lambda text: {"steer.match": text, "steer.features": ()} | _no_concepts(),
)
_main.define_shortcut(
    "set",
    "Imported set of interpretations whose explanations --match looks in. Sets steer.set.",
    lambda text: {"steer.set": text},
)
_main.define_shortcut(
    "sweep",
    "Name of the sweep, and of its folder in WORKDIR/steer. Sets steer.name.",
    lambda text: {"steer.name": text},
)
_main.define_shortcut(
    "strengths",
    "Strengths of steering along each direction, in the unit that steer.unit names: -1.5,0,1.5. Sets steer.strengths.",
    lambda text: {"steer.strengths": tuple(float(part) for part in text.split(","))},
)
_main.define_shortcut(
    "limit", "Maximum number of studies to steer. Sets steer.studies.", lambda text: {"steer.studies": int(text)}
)
_main.define_shortcut(
    "studies",
    "Manifest of the studies to steer instead of the held-out ones. Sets steer.manifest.",
    lambda text: {"steer.manifest": text},
)
_main.define_profile("batches of studies")

if __name__ == "__main__":
    _main.main(
        stage.run,
        __doc__ or "",
        reads=("seed", "studies", "steer"),
        parallel=True,
        estimates="steer.dry_run",
        words=stage_words.of_sweep,
    )
