"""MAIRA-2 on 8 chips of TPU v5p, 2 hosts of 4: as configs/maira2.py, with what fits 95 GB (docs/devices.md)."""

from ml_collections import ConfigDict

from configs import maira2


def get_config(paths: str = "maira-2,studies.jsonl") -> ConfigDict:
    config = maira2.get_config(paths)
    config.mesh = (4, 1)
    config.harvest.batch_size = 64
    config.generate.batch_size = 64
    config.steer.batch_studies = 32
    return config
