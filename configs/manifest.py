"""Your own studies, listed in a JSON Lines file (`maira_jax/studies/readers/manifest.py`); else as for the phantom.

python -m launch.demo --config=configs/manifest.py:studies.jsonl --workdir=runs/mine
"""

from ml_collections import ConfigDict

from configs import base, phantom


def get_config(path: str = "studies.jsonl") -> ConfigDict:
    config = phantom.get_config()
    config.studies = base.studies("manifest", path=path)
    config.localize.autoencoder = False
    config.steer.concepts = ()  # those of the studies' own labels
    config.interpret.n_score = 50  # as published; each costs a language model's time
    return config
