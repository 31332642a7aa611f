"""A model of a few thousand random weights in both forms, inputs for it, and how two of its outputs are compared."""

from pathlib import Path

import jax
import numpy as np

from maira_jax.checkpoint import convert
from maira_jax.model import maira2
from maira_jax.model.config import Maira2Config, TextConfig, VisionConfig, to_hf_dict
from maira_jax.model.sites import Site
from maira_jax.run import files
from tests.helpers import torch_sites
from tests.helpers.random_params import random_params, relative
from tests.helpers.torch_oracle import Maira2Oracle

CFG = Maira2Config(
    VisionConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, patch_size=14,
        image_size=56, layer_norm_eps=1e-6,
    ),
    TextConfig(
        vocab_size=300, hidden_size=48, intermediate_size=96, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=6, head_dim=8, rms_norm_eps=1e-5, rope_theta=10000.0, rope_factor=1.5,
    ),
    image_token_id=299,
    projector_n_layers=4,
)  # fmt: skip

# The fields of MAIRA-2's `config.json` that are not transformers' defaults.
MAIRA2 = {
    "model_type": "maira2",
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
    "projector_hidden_act": "gelu",
    "projector_n_layers": 4,
    "image_token_index": 32204,
    "text_config": {
        "model_type": "llama",
        "vocab_size": 32207,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {"factor": 1.5, "rope_type": "linear"},
    },
    "vision_config": {
        "model_type": "dinov2",
        "image_size": 518,
        "reshape_hidden_states": False,
        "out_features": ["stage12"],
        "out_indices": [12],
    },
}

forward = jax.jit(maira2.forward, static_argnames=("cfg", "read", "logits"))


def make(directory: Path, cfg: Maira2Config):
    """Random weights, every one different from its initial value, in both forms."""
    convert.to_hf(random_params(cfg), cfg, directory, np.dtype(np.float32))
    files.write_json(directory / "config.json", to_hf_dict(cfg))
    assert Maira2Config.from_dir(directory) == cfg
    return convert.to_flax(directory, cfg, np.dtype(np.float32)), Maira2Oracle(directory)


def batch(images: tuple[int, ...], length: int = 64, seed: int = 0):
    """Right-padded rows with the given numbers of images; their pixels per row and flat."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 290, (len(images), length)).astype(np.int32)
    mask = np.ones((len(images), length), bool)
    pixels = np.zeros((len(images), max(images), 56, 56, 3), np.float32)
    flat = []
    for row, count in enumerate(images):
        mask[row, length - 3 * row :] = False
        tokens[row, length - 3 * row :] = 0
        for image in range(count):
            start = 2 + image * 18
            tokens[row, start : start + CFG.patches_per_image] = CFG.image_token_id
            pixels[row, image] = rng.normal(size=(56, 56, 3))
            flat.append(pixels[row, image])
    return tokens, mask, pixels, np.stack(flat)


def all_sites(cfg: Maira2Config) -> tuple[Site, ...]:
    layers = cfg.vision.num_hidden_layers, cfg.projector_n_layers, cfg.text.num_hidden_layers
    return tuple(Site.parse(name, cfg) for name in torch_sites.names(*layers))


def worst(sites: dict, theirs: dict[str, np.ndarray], images: tuple[int, ...], mask: np.ndarray) -> dict[str, float]:
    """Each tower's largest `relative` difference; padding and unused images are not compared.

    Args:
      sites: those of `Output`. theirs: vision and projector [images of all rows in order, ...], language
        [batch, positions, d_model].
      images: number of images in each row.
    """
    used = np.arange(max(images)) < np.array(images)[:, None]  # [batch, images]
    found: dict[str, float] = {}
    for name, ours in sites.items():
        tower = name.split(".")[0]
        kept = (np.asarray(ours)[mask], theirs[name][mask]) if tower == "language" else (ours[used], theirs[name])
        found[tower] = max(found.get(tower, 0.0), relative(*kept))
    return found
