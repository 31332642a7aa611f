"""MAIRA-2 on a host of 8 H100s: as configs/maira2.py, with what fits 8 devices of 80 GB (see docs/devices.md)."""

from ml_collections import ConfigDict

from configs import maira2


def get_config(paths: str = "maira-2,studies.jsonl") -> ConfigDict:
    config = maira2.get_config(paths)
    config.mesh = (8, 1)
    config.harvest.batch_size = 128
    config.generate.batch_size = 128
    config.steer.batch_studies = 64
    return config
