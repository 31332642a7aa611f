"""Trains a sparse autoencoder (Matryoshka BatchTopK) on the stored activations.

Result: WORKDIR/sae. Interrupted, it resumes from its last checkpoint.
"""

from launch import _main
from sae.training import stage

_main.define_shortcut(
    "profile",
    "Steps to trace into WORKDIR/profile after a warm-up, for TensorBoard's profiler or Perfetto. Sets profile.",
    lambda text: {"profile": int(text)},
)

if __name__ == "__main__":
    _main.main(
        stage.run,
        __doc__ or "",
        reads=("seed", "studies", "harvest", "sae", "train"),
    )
