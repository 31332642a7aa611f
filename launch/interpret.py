"""Explains each feature from its exemplars and scores the explanations by detection and fuzzing.

Result: WORKDIR/interp. A language model's answers are kept in WORKDIR/judge and never asked for twice.

  python -m launch.interpret --config.interpret.judge=llm --config.judge.model=NAME
"""

from interp import stage
from launch import _main

_main.define_switch(
    "allow_remote",
    "Prompts, which hold patient data, may leave this machine for the server that judge.base_url names.",
    "judge.allow_remote",
)
_main.define_shortcut(
    "max_cost",
    "Stop before this run directory has cost more US dollars; a higher one goes on. Sets judge.max_cost.",
    lambda text: {"judge.max_cost": float(text)},
)
_main.define_shortcut(
    "features",
    "Explain and score only these, e.g. 12,99. Sets interpret.features.",
    lambda text: {"interpret.features": tuple(int(number) for number in text.split(","))},
)

if __name__ == "__main__":
    _main.main(stage.run, __doc__ or "", reads=("seed", "studies", "interpret", "judge"))
