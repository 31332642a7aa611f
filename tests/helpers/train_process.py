"""Trains in a process of its own, so that it can be killed: python -m tests.helpers.train_process WORKDIR CONFIG.

CONFIG is `long`, two autoencoders of many steps, or `full_disk`, in which writing fails as on a full disk from step 20
on.
"""

import resource
import sys
from pathlib import Path

from sae.training import stage
from sae.training.trainer import Trainer
from tests.helpers.sae import large_config, long_config

# Bytes of a file, from which on it cannot grow.
_FULL = 20_000


def _fill_the_disk_at_step_20() -> None:
    run = Trainer.run

    def until_full(self, state, batches, scale):
        if int(state.step) == 20:
            resource.setrlimit(resource.RLIMIT_FSIZE, (_FULL, resource.RLIM_INFINITY))
        return run(self, state, batches, scale)

    Trainer.run = until_full


if __name__ == "__main__":
    workdir, name = Path(sys.argv[1]), sys.argv[2]
    if name == "full_disk":
        _fill_the_disk_at_step_20()
    stage.run(long_config() if name == "long" else large_config(), workdir)
