"""Trains a sparse autoencoder (Matryoshka BatchTopK) on the stored activations.

Result: WORKDIR/sae. Interrupted, it resumes from its last checkpoint.
"""

from launch import _main
from sae.training import stage

_main.define_profile("steps, in tens,")

if __name__ == "__main__":
    _main.main(
        stage.run,
        __doc__ or "",
        reads=("seed", "studies", "harvest", "sae", "train"),
        parallel=True,
    )
