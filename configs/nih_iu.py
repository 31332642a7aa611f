"""A small model of MAIRA-2's architecture on real data: NIH chest X-rays and Indiana University reports.

The X-rays come with findings that are written from their labels, the reports without images; no image is paired
with another patient's report. DATA holds the folders `nih-cxr14-mini` and `iu-xray-reports`.

  python -m launch.pretrain --config=configs/nih_iu.py:DATA --workdir=runs/nih_iu
  python -m launch.demo     --config=configs/nih_iu.py:DATA --workdir=runs/nih_iu
"""

import ml_collections
from ml_collections import ConfigDict

from configs import phantom


def get_config(data: str = "data") -> ml_collections.ConfigDict:
    config = phantom.get_config()
    config.studies = ConfigDict({"source": "nih_iu", "path": data, "n": ml_collections.config_dict.placeholder(int)})
    config.model.checkpoint = "runs/nih_iu/pretrain/checkpoint"  # what launch.pretrain wrote

    pretrain = config.pretrain
    pretrain.n_base = 2500
    pretrain.n_corpus = 8000  # about two passes
    pretrain.vision.update({"patch_size": 28, "image_size": 224})
    pretrain.text.update({"width": 160, "mlp_width": 432, "layers": 6, "heads": 5})
    pretrain.vision_phase.update({"steps": 300, "batch_size": 32, "learning_rate": 5e-4})
    pretrain.frozen = ()  # the labels are few, and say less than the reports
    pretrain.text_phases = ("prose",)
    pretrain.prose.update(
        {
            "steps": 800,
            "batch_size": 24,
            "learning_rate": 1.5e-3,
            "lengths": (112, 144, 176, 256),
            "max_findings": 160,
        }
    )
    config.sae.k = 24
    config.train.steps = 2000
    config.steer.max_new_tokens = 128
    config.interpret.n_score = 50  # as published; each costs a language model's time
    return config
