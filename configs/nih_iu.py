"""A small model of MAIRA-2's architecture on real data: NIH chest X-rays and Indiana University reports.

The X-rays come with findings that are written from their labels, the reports without images; no image is paired
with another patient's report. DATA holds the folders `nih-cxr14-mini` and `iu-xray-reports`.

  python -m launch.pretrain --config=configs/nih_iu.py:DATA --workdir=runs/nih_iu
  python -m launch.demo     --config=configs/nih_iu.py:DATA --workdir=runs/nih_iu
"""

from ml_collections import ConfigDict

from configs import base, phantom


def get_config(data: str = "data") -> ConfigDict:
    config = phantom.get_config()
    config.studies = base.studies("nih_iu", path=data)
    config.model.checkpoint = "runs/nih_iu/pretrain/checkpoint"  # what launch.pretrain wrote

    config.pretrain.recipe = "nih_iu"
    config.sae.k = 24
    config.train.steps = 2000
    config.steer.max_new_tokens = 128
    config.localize.autoencoder = False
    config.steer.concepts = ()  # those of the studies' own labels
    config.interpret.n_score = 50  # as published; each costs a language model's time
    return config
