"""The phantom: synthetic studies whose truth is known, and the model that ships with the package.

python -m launch.demo --config=configs/phantom.py --workdir=runs/phantom
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    # Studies of another seed than those that the model was trained on.
    config.studies = base.studies("phantom", n=3000, seed=1)
    # The middle of the language model, as layer 15 is in MAIRA-2.
    config.harvest.site = "language.3.resid_post"
    config.train.update({"lr": 1e-3, "warmup_steps": 100, "decay_start": 1200, "dead_tokens": 100_000})
    config.label.update({"bootstrap": 200, "probe_seeds": 2})  # for a demo's time
    return config
