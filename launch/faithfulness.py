"""Amplifies explained features, each in one report, and asks whether the text becomes about the explanation.

Controls are amplified as well. How far is the largest of steer.strengths, and at which tokens steer.positions says; the
judge is that of launch.interpret. Result: WORKDIR/faithfulness/scores.parquet and summary.json.

  python -m launch.faithfulness --workdir=runs/first
"""

from launch import _judge_flags, _main
from steer.faithfulness import stage

_judge_flags.define()

if __name__ == "__main__":
    _main.main(stage.run, __doc__ or "", reads=("seed", "studies", "interpret", "judge", "steer", "faithfulness"))
