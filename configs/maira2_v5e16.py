"""MAIRA-2 on 16 chips of TPU v5e, 4 hosts of 4: as configs/maira2.py, with what fits 16 GB (docs/devices.md).

The model runs on the 4 chips of each host, a quarter of every layer on each.
"""

from ml_collections import ConfigDict

from configs import maira2


def get_config(paths: str = "maira-2,studies.jsonl") -> ConfigDict:
    config = maira2.get_config(paths)
    config.mesh = (1, 4)
    config.harvest.batch_size = 8
    config.generate.batch_size = 8
    config.steer.batch_studies = 2
    return config
