"""Measures how well features and controls predict the studies' labels (MedSAE's measures).

Result: WORKDIR/label.
"""

from interp.medsae import stage
from launch import _main
from steer import stage_words

if __name__ == "__main__":
    _main.main(stage.run, __doc__ or "", reads=("seed", "studies", "label"), parallel=True, words=stage_words.of_labels)
