"""Compares steered with unsteered reports: what was added and removed, on and off target.

Result: WORKDIR/evaluation/NAME, for the sweep of that name.
"""

from launch import _judge_flags, _main
from steer import evaluate, stage_words

_main.define_shortcut("sweep", "Name of the sweep to evaluate. Sets steer.name.", lambda text: {"steer.name": text})
_judge_flags.define()

if __name__ == "__main__":
    _main.main(
        evaluate.run,
        __doc__ or "",
        reads=("seed", "studies", "steer", "evaluate", "judge"),
        words=stage_words.of_evaluation,
    )
