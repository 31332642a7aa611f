"""MAIRA-2 on a slice of TPUs or several hosts of GPUs: what differs from configs/maira2.py (see docs/scaling.md).

The mesh is left to be chosen by the devices' memory.
"""

from ml_collections import ConfigDict

from configs import maira2


def get_config(paths: str = "maira-2,studies.jsonl") -> ConfigDict:
    config = maira2.get_config(paths)
    config.harvest.batch_size = None  # as many as each host's devices hold
    config.generate.batch_size = 8
    config.steer.batch_studies = 2
    config.train.update({"batch_size": 32_768, "steps": 2_500, "decay_start": 2_000, "checkpoint_every": 100})
    return config
