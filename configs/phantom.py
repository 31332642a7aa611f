"""The phantom: the small world with known truth, and the model that ships with the package.

  python -m launch.demo --config=configs/phantom.py --workdir=runs/phantom
"""

import ml_collections
from ml_collections import ConfigDict


def get_config() -> ml_collections.ConfigDict:
    config = ConfigDict()
    config.seed = 0

    config.model = ConfigDict()
    config.model.checkpoint = "phantom"  # a Hugging Face checkpoint's folder, or the model that ships with the package
    config.model.dtype = "float32"

    config.studies = ConfigDict()
    config.studies.source = "phantom"
    config.studies.n = 3000
    config.studies.seed = 1  # another world than the one that the model was trained on

    config.pretrain = get_pretrain()
    return config


def get_pretrain() -> ml_collections.ConfigDict:
    """How the model that ships with the package was trained."""
    pretrain = ConfigDict()
    pretrain.seed = 0
    pretrain.dtype = "bfloat16"  # of the checkpoint; training is in float32
    pretrain.tokenizer_model = ""  # a sentencepiece file; empty: a tokenizer is trained on the studies
    pretrain.n_base = 960  # tokens of a trained tokenizer before MAIRA-2's 207 added ones
    pretrain.n_corpus = 2000  # studies that it is trained on
    pretrain.n_held_out = 500
    pretrain.weight_decay = 0.02
    pretrain.checkpoint_every = 100  # steps
    pretrain.vision = ConfigDict({"width": 128, "layers": 4, "heads": 4, "patch_size": 28, "image_size": 112})
    pretrain.text = ConfigDict({"width": 128, "mlp_width": 352, "layers": 6, "heads": 4})
    pretrain.vision_phase = ConfigDict({"steps": 2000, "batch_size": 64, "learning_rate": 2e-3, "warmup": 50})
    pretrain.text_phase = ConfigDict(
        {
            "steps": 1800,
            "batch_size": 32,
            "learning_rate": 2e-3,
            "warmup": 100,
            "lengths": (144, 176, 208, 280),  # tokens; a batch has one of these lengths
            "max_findings": 136,  # tokens, the end token counted
        }
    )
    return pretrain
