"""Compares steered with unsteered reports: what appeared, what vanished, on and off target.

Result: WORKDIR/evaluation.
"""

from launch import _main
from steer import evaluate

if __name__ == "__main__":
    _main.main(evaluate.run, __doc__ or "", reads=("evaluate",))
