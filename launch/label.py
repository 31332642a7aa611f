"""Measures how well single features, and single raw dimensions, stand for the studies' labels (MedSAE's measures).

Result: WORKDIR/label.
"""

from interp import label
from launch import _main

if __name__ == "__main__":
    _main.main(label.run, __doc__ or "", reads=("label",))
