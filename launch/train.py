"""Trains a sparse autoencoder (Matryoshka BatchTopK) on the stored activations.

Result: WORKDIR/sae. Interrupted, it resumes from its last checkpoint.
"""

from launch import _main
from sae.training import stage

if __name__ == "__main__":
    _main.main(
        stage.run,
        __doc__ or "",
        reads=("seed", "studies", "harvest", "sae", "train"),
    )
