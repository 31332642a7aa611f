"""MAIRA-2 on a slice of TPUs or on several hosts: what differs from configs/maira2.py (see docs/scaling.md).

The mesh is left to each stage, which chooses it by the memory of a host's devices. Training is faster with the features
split over the chips of a host: launch.train --mesh=4,4 on 16 chips.
"""

from ml_collections import ConfigDict

from configs import maira2


def get_config(paths: str = "maira-2,studies.jsonl") -> ConfigDict:
    config = maira2.get_config(paths)
    config.harvest.batch_size = None  # as many as each host's devices hold
    # What the smallest host holds, 4 chips of v5e: launch.bench fits --device=v5e:4x4 --config=configs/maira2_v5e16.py
    config.generate.batch_size = 4
    config.steer.batch_studies = 2
    # As many tokens as in configs/maira2.py, in half the steps: launch.bench scaling --device=v5e:4x4 tells 968,000
    # tokens/s. With 32,768 there would be too few steps.
    config.train.update({"batch_size": 8192, "steps": 10_000, "decay_start": 8_000, "checkpoint_every": 250})
    return config
