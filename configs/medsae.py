"""MedSAE (arXiv 2510.26411): autoencoders of an image encoder's embeddings, measured against labels.

DATA is phantom, or READER:PATH, the name of a reader of studies (see maira_jax/studies/readers/) and what it reads:

  python -m launch.demo --config=configs/medsae.py --workdir=runs/medsae
  python -m launch.demo --config=configs/medsae.py:nih_cxr14:FOLDER --workdir=runs/medsae_nih

sae/ holds the paper's autoencoder, ReLU with an L1 penalty, and sae-matryoshka/ a Matryoshka BatchTopK of the same
width. What the paper fixes is marked; the rest is our choice.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(data: str = "phantom") -> ConfigDict:
    source, _, path = data.partition(":")
    config = base.get_config()
    # Studies of another seed than those that the phantom's model was trained on.
    config.studies = base.studies(source, path=path) if path else base.studies("phantom", n=8000, seed=1)
    # The tower of the phantom's model, which has seen such images; else the paper's encoder.
    config.harvest.encoder = "medclip_resnet50" if path else "maira2_vision"
    config.harvest.held_out_fraction = 0.2
    config.sae.update(
        {
            "kind": "relu",  # paper
            "expansion": 16,  # paper: 8,192 features for embeddings of 512
            "l1": 0.1,
            "group_fractions": (1.0,),
            "companions": {
                "matryoshka": {
                    "kind": "batch_top_k",
                    "k": 32,
                    "l1": 0.0,
                    "group_fractions": (0.0625, 0.0625, 0.125, 0.25, 0.5),
                }
            },
        }
    )
    config.train.update(
        {
            "steps": 1000,
            "lr": 1e-3,
            "dead_tokens": 20_480,  # of 20 batches
            "resample_every": 100,
            "loss_recovered_studies": 0,  # no report is written from an embedding
        }
    )
    # Paper: 15 strong and 15 weaker images to explain a feature, 30 active and 30 inactive ones to score it.
    config.interpret.update({"n_top": 15, "n_explain": 30, "n_score": 30})
    config.judge.images = 30
    if not path:  # for a demo's time
        config.train.steps = 600
        config.label.update({"bootstrap": 200, "probe_seeds": 2})
    return config
