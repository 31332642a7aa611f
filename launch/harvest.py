"""Runs the model over the studies and stores the activations of one site, token by token.

Result: WORKDIR/activations. Interrupted, it resumes at the first shard that is incomplete.
"""

from launch import _main
from sae.activations import harvest

_main.define_profile("batches of studies")

if __name__ == "__main__":
    _main.main(
        harvest.run,
        __doc__ or "",
        reads=("seed", "studies", "harvest"),
        parallel=True,
    )
