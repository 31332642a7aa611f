"""Your own studies, listed in a JSON Lines file (`maira_jax/studies/readers/manifest.py`); else as for the phantom.

python -m launch.demo --config=configs/manifest.py:studies.jsonl --workdir=runs/mine
"""

import ml_collections
from ml_collections import ConfigDict, config_dict

from configs import phantom


def get_config(path: str = "studies.jsonl") -> ml_collections.ConfigDict:
    config = phantom.get_config()
    config.studies = ConfigDict({"source": "manifest", "path": path, "n": config_dict.placeholder(int)})
    config.interpret.n_score = 50  # as published; each costs a language model's time
    return config
