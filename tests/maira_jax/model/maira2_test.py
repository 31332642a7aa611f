"""The Flax model against PyTorch on random weights, float32, CPU."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from maira_jax.checkpoint import convert
from maira_jax.generation.decode import generate
from maira_jax.model.config import to_hf_dict
from maira_jax.run import files
from tests.helpers.tiny_model import CFG, all_sites, batch, forward, make, worst
from tests.helpers.torch_oracle import Maira2Oracle


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return make(tmp_path_factory.mktemp("checkpoint"), CFG)


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
