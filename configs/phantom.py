"""The phantom: synthetic studies whose truth is known, and the model that ships with the package.

python -m launch.demo --config=configs/phantom.py --workdir=runs/phantom
"""

from ml_collections import ConfigDict

from configs import base
from maira_jax.studies.concepts import FINDINGS


def get_config() -> ConfigDict:
    config = base.get_config()
    # Studies of another seed than those that the model was trained on.
    config.studies = base.studies("phantom", n=3000, seed=1)
    # Where `launch.localize` says that findings are both read and written: after block 0, in the image's tokens.
    config.harvest.site = "language.0.resid_post"
    config.harvest.token_filter = "text_and_frontal"
    config.interpret.concept_sections = ("image",)
    config.interpret.scorers = ("detection", "fuzzing", "intruder")
    config.train.update({"preset": "dictionary_learning", "lr": 1e-3, "warmup_steps": 100})
    config.train.update({"decay_start": 1200, "dead_tokens": 100_000})
    config.label.update({"bootstrap": 200, "probe_seeds": 2})  # for a demo's time
    config.localize.update({"sections": ("frontal", "generated"), "autoencoder": True})
    config.steer.update(
        {
            "concepts": FINDINGS,
            "methods": ("add", "add_several", "class_means", "difference_of_means", "random"),
            "strengths": (-2.0, -1.0, 1.0, 2.0),
            "positions": ("frontal",),
        }
    )
    return config
