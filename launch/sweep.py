"""Trains autoencoders of many widths, learning rates and sparsities together, and keeps the best one as WORKDIR/sae.

The best one has the lowest fraction of variance unexplained (FVU) of those with at most sweep.max_l0 features per
token; of several within 1 % of that, the one with the fewest dead features.

Result: WORKDIR/sweep (a table, and a plot of FVU against L0) and WORKDIR/sae. Interrupted, it resumes from its last
checkpoint.
"""

from launch import _main
from sae.sweep import stage

_main.define_profile("steps, in tens,")

if __name__ == "__main__":
    _main.main(
        stage.run,
        __doc__ or "",
        reads=("seed", "studies", "harvest", "sae", "train", "sweep"),
        parallel=True,
    )
