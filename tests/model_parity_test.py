"""The Flax model against PyTorch on random weights, float32, CPU."""

import dataclasses
import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from maira_jax.checkpoint import convert
from maira_jax.generate import generate
from maira_jax.model import maira2
from maira_jax.model.config import Maira2Config, TextConfig, VisionConfig, to_hf_dict
from maira_jax.model.maira2 import Edits
from maira_jax.model.sites import Site
from maira_jax.run import files
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
    shapes = jax.eval_shape(lambda: maira2.init(cfg, jax.random.key(0)))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    values = [rng.normal(0.5 if leaf.ndim < 3 else 0, 0.15, leaf.shape).astype(np.float32) for leaf in leaves]
    params = jax.tree.unflatten(tree, values)
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
    theirs = theirs.numpy() if isinstance(theirs, torch.Tensor) else theirs
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("images", [(1, 1), (2, 1), (1, 3, 2)])
def test_logits_and_sites_equal_pytorch(both, images):
    params, oracle = both
    tokens, mask, pixels, flat = batch(images)
    names = [f"language.{i}.resid_post" for i in range(3)] + ["language.embed"]
    read = tuple(Site.parse(name, CFG) for name in names)
    out = forward(params, CFG, tokens, mask, pixels, read=read)
    logits, hidden = oracle.forward(tokens, mask, flat)
    assert np.abs(np.asarray(out.logits)[mask] - logits.numpy()[mask]).max() < 1e-4
    assert relative(np.asarray(out.sites["language.embed"])[mask], hidden[0].numpy()[mask]) < 2e-6
    for i in range(3):
        assert relative(np.asarray(out.sites[names[i]])[mask], hidden[i + 1].numpy()[mask]) < 5e-6


def test_vision_and_projector_sites_equal_pytorch(both):
    params, oracle = both
    _, _, pixels, flat = batch((1, 1))
    names = ["vision.embed", "vision.0.resid_post", "vision.2.resid_post", "vision.output", "projector.3"]
    read = tuple(Site.parse(name, CFG) for name in names)
    tokens = np.full((2, 4), 5, np.int32)
    out = forward(params, CFG, tokens, np.ones((2, 4), bool), pixels, read=read, logits=False)
    features, hidden = oracle.features(flat)
    assert out.logits is None
    for name, theirs in zip(names, [hidden[0], hidden[1], hidden[3], None, features], strict=True):
        if theirs is not None:
            assert relative(out.sites[name][:, 0], theirs) < 5e-6, name
    assert relative(out.sites["vision.output"][:, 0], oracle.vision.layernorm(hidden[3]).detach()) < 5e-6


def test_resid_mid_is_after_attention(both):
    params, oracle = both
    tokens, mask, pixels, flat = batch((1, 1))
    seen = []
    block = oracle.language.model.layers[1]
    hook = block.post_attention_layernorm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    oracle.forward(tokens, mask, flat)
    hook.remove()
    out = forward(params, CFG, tokens, mask, pixels, read=(Site.parse("language.1.resid_mid", CFG),), logits=False)
    assert relative(np.asarray(out.sites["language.1.resid_mid"])[mask], seen[0].detach().numpy()[mask]) < 5e-6


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_other_rope_factors(tmp_path, factor):
    cfg = dataclasses.replace(CFG, text=dataclasses.replace(CFG.text, rope_factor=factor))
    params, oracle = make(tmp_path, cfg)
    tokens, mask, pixels, flat = batch((2, 1))
    ours = np.asarray(forward(params, cfg, tokens, mask, pixels).logits)
    assert np.abs(ours[mask] - oracle.forward(tokens, mask, flat)[0].numpy()[mask]).max() < 1e-4


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


def steered_oracle(oracle, layer, delta, first, tokens, mask, flat, steps):
    """Greedy decoding with a forward hook that adds `delta` after block `layer` from position `first` on."""

    def hook(module, args, output):
        output[:, first:] += torch.from_numpy(delta)[:, None]
        return output

    handle = oracle.language.model.layers[layer].register_forward_hook(hook)
    try:
        return oracle.greedy(tokens, mask, flat, steps)
    finally:
        handle.remove()


def test_steered_generation_equals_a_pytorch_hook(both):
    params, oracle = both
    tokens, mask, pixels, flat = batch((1, 2, 1))
    rng = np.random.default_rng(1)
    direction = rng.normal(size=(3, 48)).astype(np.float32)
    strength = np.array([0.0, 3.0, -5.0], np.float32)
    site = np.full(3, Site.parse("language.1.resid_post", CFG).code, np.int32)
    edits = Edits(jnp.asarray(site), jnp.asarray(direction), jnp.asarray(strength))
    ours, _ = generate(params, CFG, tokens, mask, pixels, max_new_tokens=24, eos_id=-1, edits=edits)
    delta = strength[:, None] * direction
    theirs = steered_oracle(oracle, 1, delta, tokens.shape[1] - 1, tokens, mask, flat, 24)
    np.testing.assert_array_equal(ours, theirs)
    plain, _ = generate(params, CFG, tokens, mask, pixels, max_new_tokens=24, eos_id=-1)
    np.testing.assert_array_equal(ours[0], plain[0])
    assert (np.asarray(ours[1]) != np.asarray(plain[1])).any()


def test_one_program_serves_every_edit(both):
    params, _ = both
    tokens, mask, pixels, _ = batch((1, 1))
    size = generate._cache_size()
    for layer, strength in [(0, 1.0), (2, -3.0), (3, 0.0)]:
        site = np.full(2, Site.parse(f"language.{layer}.resid_post", CFG).code, np.int32)
        edits = Edits(jnp.asarray(site), jnp.ones((2, 48)) * layer, jnp.full((2,), strength))
        generate(params, CFG, tokens, mask, pixels, max_new_tokens=5, eos_id=2, edits=edits)
    assert generate._cache_size() == size + 1


def test_reading_a_middle_layer_skips_the_later_ones(both):
    params, _ = both
    tokens, mask, pixels, _ = batch((1, 1))

    def compiled(name: str):
        call = functools.partial(maira2.forward, cfg=CFG, read=(Site.parse(name, CFG),), logits=False)
        return jax.jit(call).lower(params, tokens=tokens, mask=mask, pixels=pixels).compile()

    half, whole = compiled("language.1.resid_post"), compiled("language.3.resid_post")
    # The vision tower's 3 blocks, and of the language model only those up to the site.
    for program, blocks in ((half, {3, 2}), (whole, {3, 4})):
        assert set(map(int, re.findall(r'known_trip_count":\{"n":"(\d+)"', program.as_text()))) == blocks
    a = half(params, tokens=tokens, mask=mask, pixels=pixels).sites["language.1.resid_post"]
    read = tuple(Site.parse(f"language.{i}.resid_post", CFG) for i in (1, 3))
    b = forward(params, CFG, tokens, mask, pixels, read=read, logits=False).sites["language.1.resid_post"]
    np.testing.assert_array_equal(a, b)


def test_bfloat16_is_as_close_as_pytorch_bfloat16(both, tmp_path):
    params, oracle = both
    tokens, mask, pixels, flat = batch((1, 2))
    exact = oracle.forward(tokens, mask, flat)[0].numpy()[mask]
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    ours = np.asarray(forward(half, CFG, tokens, mask, pixels).logits.astype(jnp.float32))[mask]
    convert.to_hf(params, CFG, tmp_path, np.dtype(np.float32))
    files.write_json(tmp_path / "config.json", to_hf_dict(CFG))
    theirs = Maira2Oracle(tmp_path, torch.bfloat16).forward(tokens, mask, flat)[0].float().numpy()[mask]
    assert np.abs(ours - exact).mean() < 1.25 * np.abs(theirs - exact).mean()
