"""Explains each feature from its exemplars and scores the explanations by detection and fuzzing.

Result: WORKDIR/interp. A language model's answers are kept in WORKDIR/judge, and no question is asked twice.

  python -m launch.interpret --config.interpret.judge=llm --config.judge.model=NAME
"""

from interp import stage
from launch import _judge_flags, _main
from steer import stage_words

_judge_flags.define()
_main.define_shortcut(
    "features",
    "Features to explain and score, as numbers: 12,99. Sets interpret.features.",
    lambda text: {"interpret.features": tuple(int(number) for number in text.split(","))},
)
_main.define_shortcut(
    "set",
    "Score the explanations of this imported set instead, on the same contexts, and compare it with WORKDIR/interp. "
    "Sets interpret.set.",
    lambda text: {"interpret.set": text},
)
_main.define_profile("blocks of tokens of the pass for exemplars")

if __name__ == "__main__":
    _main.main(
        stage.run,
        __doc__ or "",
        reads=("seed", "studies", "interpret", "judge"),
        parallel=True,
        words=stage_words.of_interpretation,
    )
