"""Writes reports with a direction added to the residual stream, for every study, direction and strength.

Result: WORKDIR/steer/generations.jsonl, a line a report. Interrupted, it resumes.

  python -m launch.steer --features=12,99 --strengths=-8,0,8 --limit=20
"""

from launch import _main
from steer import sweep

_main.define_shortcut(
    "features",
    "Features of the autoencoder to steer with, as numbers: 12,99. Sets steer.features and empties steer.match.",
    lambda text: {"steer.features": tuple(int(part) for part in text.split(",")), "steer.match": ""},
)
_main.define_shortcut(
    "strengths",
    "How far to go along each direction, in steer.unit: -8,0,8. Sets steer.strengths.",
    lambda text: {"steer.strengths": tuple(float(part) for part in text.split(","))},
)
_main.define_shortcut(
    "limit", "Steer at most so many studies. Sets steer.studies.", lambda text: {"steer.studies": int(text)}
)

if __name__ == "__main__":
    _main.main(sweep.run, __doc__ or "", reads=("steer",))
