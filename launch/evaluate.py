"""Compares steered with unsteered reports: what appeared, what vanished, on and off target.

Result: WORKDIR/evaluation/NAME, for the sweep of that name.
"""

from launch import _main
from steer import evaluate

_main.define_shortcut("sweep", "Name of the sweep to evaluate. Sets steer.name.", lambda text: {"steer.name": text})
_main.define_switch(
    "allow_remote",
    "Reports, which hold patient data, may leave this machine for the server that judge.base_url names.",
    "judge.allow_remote",
)
_main.define_shortcut(
    "max_cost",
    "Stop before this run directory has cost more US dollars; a higher one goes on. Sets judge.max_cost.",
    lambda text: {"judge.max_cost": float(text)},
)

if __name__ == "__main__":
    _main.main(evaluate.run, __doc__ or "", reads=("steer", "evaluate", "judge"))
