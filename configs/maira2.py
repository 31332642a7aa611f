"""MAIRA-2 and its autoencoders: 8,192, 16,384 and 32,768 features, trained on one stream of activations.

CHECKPOINT is a Hugging Face folder of MAIRA-2. STUDIES is a JSON Lines file (see configs/manifest.py), or READER:PATH,
the name of a reader of studies (see maira_jax/studies/readers/) and what it reads:

  python -m launch.harvest --config=configs/maira2.py:CHECKPOINT,STUDIES --workdir=runs/maira2
  python -m launch.train --workdir=runs/maira2

sae/ holds the one of expansion factor 4, which the later stages read, sae-x2/ and sae-x8/ the others. What the paper
(arXiv 2507.12950) fixes is marked; the rest is our choice. Batches are of sizes that fit one H100 of 80 GB: for other
devices see docs/devices.md.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(paths: str = "maira-2,studies.jsonl") -> ConfigDict:
    checkpoint, _, studies = paths.partition(",")
    config = base.get_config()
    config.model.update({"checkpoint": checkpoint, "dtype": "bfloat16"})
    config.studies = base.studies_at(studies)
    config.harvest.update(
        {
            "site": "language.15.resid_post",  # paper: the residual stream at layer 15, counted from 0
            "token_filter": "paper",  # paper: neither inner image tokens nor boilerplate
            "batch_size": 16,
            "dtype": "bfloat16",
        }
    )
    config.generate.batch_size = 24
    # Each row holds the keys and values of its own prompt, 0.8 GB.
    config.localize.update({"batch_size": 8, "batch_studies": 1, "batch_rows": 16})
    config.steer.update({"batch_studies": 8, "batch_rows": 16, "workers": 1})
    config.sae.update(
        {
            "expansion": 4,  # paper: 16,384 features
            "k": 256,  # paper
            "group_fractions": (0.5, 0.25, 0.125, 0.0625, 0.0625),
            "companions": {"x2": {"expansion": 2}, "x8": {"expansion": 8}},  # paper: released, too
        }
    )
    config.train.update(
        {
            "preset": "dictionary_learning",  # paper: that library
            "steps": 20_000,
            "batch_size": 4096,
            "dtype": "bfloat16",
            "decay_start": 16_000,
            "checkpoint_every": 500,
        }
    )
    config.interpret.n_score = 50  # as published; each costs a language model's time
    return config
