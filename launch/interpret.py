"""Explains each feature from its exemplars and scores the explanations by detection.

Result: WORKDIR/interp.
"""

from interp import interpret
from launch import _main

if __name__ == "__main__":
    _main.main(interpret.run, __doc__ or "", reads=("seed", "interpret"))
