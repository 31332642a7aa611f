"""The Flax model against PyTorch on random weights, float32, CPU."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from maira_jax.checkpoint import convert
from maira_jax.generation.decode import generate
from maira_jax.model import maira2
from maira_jax.model.config import Maira2Config, TextConfig, VisionConfig, to_hf_dict
from maira_jax.model.sites import Site
from maira_jax.run import files
from tests import torch_sites
from tests.oracle import Maira2Oracle

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

forward = jax.jit(maira2.forward, static_argnames=("cfg", "read", "logits"))


def make(directory: Path, cfg: Maira2Config):
    """Random weights, every one different from its initial value, in both forms."""
    rng = np.random.default_rng(0)

    def value(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        # Scaled so that every part, the images too, has a say in the logits.
        mean = 1 if "scale" in path[-1].key else 0
        std = leaf.shape[-2] ** -0.5 if path[-1].key in ("kernel", "lm_head") else 0.2
        return rng.normal(mean, std, leaf.shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(value, jax.eval_shape(lambda: maira2.init(cfg, jax.random.key(0))))
    convert.to_hf(params, cfg, directory, np.dtype(np.float32))
    files.write_json(directory / "config.json", to_hf_dict(cfg))
    assert Maira2Config.from_dir(directory) == cfg
    return convert.to_flax(directory, cfg, np.dtype(np.float32)), Maira2Oracle(directory)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return make(tmp_path_factory.mktemp("checkpoint"), CFG)


def batch(images: tuple[int, ...], length: int = 64, seed: int = 0):
    """Left-padded rows with the given numbers of images; their pixels per row and flat."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 290, (len(images), length)).astype(np.int32)
    mask = np.ones((len(images), length), bool)
    pixels = np.zeros((len(images), max(images), 56, 56, 3), np.float32)
    flat = []
    for row, count in enumerate(images):
        pad = 3 * row
        mask[row, :pad] = False
        tokens[row, :pad] = 0
        for image in range(count):
            start = pad + 2 + image * 18
            tokens[row, start : start + CFG.patches_per_image] = CFG.image_token_id
            pixels[row, image] = rng.normal(size=(56, 56, 3))
            flat.append(pixels[row, image])
    return tokens, mask, pixels, np.stack(flat)


def relative(ours, theirs) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(np.asarray(ours, np.float32) - theirs).max() / np.abs(theirs).max())


def all_sites(cfg: Maira2Config) -> tuple[Site, ...]:
    layers = cfg.vision.num_hidden_layers, cfg.projector_n_layers, cfg.text.num_hidden_layers
    return tuple(Site.parse(name, cfg) for name in torch_sites.names(*layers))


def worst(sites: dict, theirs: dict[str, np.ndarray], images: tuple[int, ...], mask: np.ndarray) -> dict[str, float]:
    """Each tower's largest `relative` difference; padding and unused images are not compared.

    Args:
      sites: those of `Output`. theirs: vision and projector [images of all rows in order, ...], language
        [batch, positions, d_model].
      images: how many images each row has.
    """
    used = np.arange(max(images)) < np.array(images)[:, None]  # [batch, images]
    found: dict[str, float] = {}
    for name, ours in sites.items():
        tower = name.split(".")[0]
        kept = (np.asarray(ours)[mask], theirs[name][mask]) if tower == "language" else (ours[used], theirs[name])
        found[tower] = max(found.get(tower, 0.0), relative(*kept))
    return found


@pytest.mark.parametrize("images", [(1, 1), (2, 1), (1, 3, 2)])
def test_logits_and_every_site_equal_pytorch(both, images):
    params, oracle = both
    tokens, mask, pixels, flat = batch(images)
    read = all_sites(CFG)
    out = forward(params, CFG, tokens, mask, pixels, read=read)
    logits, theirs = oracle.sites(tokens, mask, flat, [site.name for site in read])
    assert np.abs(np.asarray(out.logits)[mask] - logits[mask]).max() < 2e-5
    found = worst(out.sites, theirs, images, mask)
    assert max(found.values()) < 5e-6, found


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_other_rope_factors(tmp_path, factor):
    cfg = dataclasses.replace(CFG, text=dataclasses.replace(CFG.text, rope_factor=factor))
    params, oracle = make(tmp_path, cfg)
    tokens, mask, pixels, flat = batch((2, 1))
    ours = np.asarray(forward(params, cfg, tokens, mask, pixels).logits)
    assert np.abs(ours[mask] - oracle.forward(tokens, mask, flat)[mask]).max() < 1e-4


def test_greedy_tokens_equal_pytorch(both):
    params, oracle = both
    tokens, mask, pixels, flat = batch((1, 2, 1))
    ours, _ = generate(params, CFG, tokens, mask, pixels, max_new_tokens=64, eos_id=-1)
    np.testing.assert_array_equal(ours, oracle.greedy(tokens, mask, flat, 64))


def test_a_prompt_may_end_with_an_image(both):
    params, oracle = both
    _, _, pixels, flat = batch((1, 1))
    tokens = np.concatenate([np.full((2, 3), 5), np.full((2, CFG.patches_per_image), CFG.image_token_id)], axis=1)
    tokens, mask = tokens.astype(np.int32), np.ones(tokens.shape, bool)
    ours, _ = generate(params, CFG, tokens, mask, pixels, max_new_tokens=8, eos_id=-1)
    np.testing.assert_array_equal(ours, oracle.greedy(tokens, mask, flat, 8))


def test_generation_stops_each_row_at_its_end_token(both):
    params, _ = both
    tokens, mask, pixels, _ = batch((1, 2, 1))
    free, _ = generate(params, CFG, tokens, mask, pixels, max_new_tokens=16, eos_id=-1)
    end = int(free[1, 4])
    ours, lengths = generate(params, CFG, tokens, mask, pixels, max_new_tokens=16, eos_id=end)
    for row in range(3):
        ends = np.flatnonzero(np.asarray(free[row]) == end)
        wanted = int(ends[0]) + 1 if len(ends) else 16
        assert int(lengths[row]) == wanted
        np.testing.assert_array_equal(ours[row, :wanted], free[row, :wanted])
        assert not np.asarray(ours[row, wanted:]).any()


def test_bfloat16_is_as_close_as_pytorch_bfloat16(both, tmp_path):
    params, oracle = both
    images = (1, 2)
    tokens, mask, pixels, flat = batch(images)
    read = all_sites(CFG)
    names = [site.name for site in read]
    exact, exact_sites = oracle.sites(tokens, mask, flat, names)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    out = forward(half, CFG, tokens, mask, pixels, read=read)
    convert.to_hf(params, CFG, tmp_path, np.dtype(np.float32))
    files.write_json(tmp_path / "config.json", to_hf_dict(CFG))
    theirs, their_sites = Maira2Oracle(tmp_path, torch.bfloat16).sites(tokens, mask, flat, names)
    used = np.arange(2) < np.array(images)[:, None]
    error = {"logits": [np.abs(np.asarray(x, np.float32) - exact)[mask].mean() for x in (out.logits, theirs)]}
    for name in names:
        ours, wanted = np.asarray(out.sites[name], np.float32), exact_sites[name]
        ours, other = (ours[used], their_sites[name]) if name[0] != "l" else (ours[mask], their_sites[name][mask])
        wanted = wanted if name[0] != "l" else wanted[mask]
        error[name] = [np.abs(x - wanted).mean() for x in (ours, other)]
    for name, (ours, other) in error.items():
        assert ours < 1.25 * other, (name, error)
