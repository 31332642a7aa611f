"""Sampling against transformers' warpers and PyTorch's logits; draws that depend on the row alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from maira_jax.generation.decode import Sampling, choose, generate, keep_top_p, row_keys
from tests.helpers.tiny_model import CFG, batch, make
from tests.helpers.torch_sites import left_padded


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return make(tmp_path_factory.mktemp("checkpoint"), CFG)


def sampling(names, temperature, top_p=1.0, seed=0) -> Sampling:
    return Sampling(row_keys(names, seed), jnp.float32(temperature), jnp.float32(top_p))


def warped(logits: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """What transformers draws from: its temperature warper, then, for top_p under 1, its top-p warper."""
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    scores = TemperatureLogitsWarper(temperature)(None, torch.tensor(logits))
    return (TopPLogitsWarper(top_p)(None, scores) if top_p < 1 else scores).numpy()


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("vocab", [5, 32207])
def test_what_can_be_drawn_is_transformers(vocab, temperature, top_p):
    logits = np.random.default_rng(vocab).normal(0, 3, (4, vocab)).astype(np.float32)
    ours = np.asarray(keep_top_p(jnp.asarray(logits) / jnp.float32(temperature), jnp.float32(top_p)))
    theirs = warped(logits, temperature, top_p)
    differ = np.isfinite(ours) != np.isfinite(theirs)
    # Of many tokens, the last one that is kept may be another by the rounding of the sum: it is never a likely one.
    assert not differ.any() if vocab == 5 else jax.nn.softmax(logits / temperature)[differ].sum() < 1e-6
    np.testing.assert_allclose(ours[~differ], theirs[~differ], rtol=2e-7)
    assert np.isfinite(ours).any(axis=1).all()


def test_the_equally_likely_are_kept_together():
    kept = keep_top_p(jnp.array([[1.0, 3.0, 3.0, 3.0, -2.0]]), jnp.float32(0.5))
    assert np.isfinite(kept).tolist() == [[False, True, True, True, False]]


def test_what_adds_up_to_top_p_exactly_is_enough():
    logits = jnp.log(jnp.array([[0.5, 1.0, 0.5]]))
    assert jax.nn.softmax(logits).tolist() == [[0.25, 0.5, 0.25]]
    assert np.isfinite(keep_top_p(logits, jnp.float32(0.5))).tolist() == [[False, True, False]]


def test_draws_follow_the_probabilities():
    logits = jnp.array([2.0, 1.0, 0.0, -1.0, 0.5])
    n = 20_000
    drawn = choose(jnp.tile(logits, (n, 1)), sampling([str(i) for i in range(n)], 0.7, 0.9))
    probability = np.exp(warped(np.asarray(logits)[None], 0.7, 0.9)[0].astype(float))
    probability /= probability.sum()
    share = np.bincount(drawn, minlength=5) / n
    assert (share[probability == 0] == 0).all() and (probability == 0).sum() == 2
    assert (np.abs(share - probability) < 4.5 * np.sqrt(probability * (1 - probability) / n) + 1e-9).all()


def test_a_draw_depends_on_name_seed_and_step_and_not_on_company():
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 0.1, (6, 1000)).astype(np.float32))
    names = [f"study {i}" for i in range(6)]
    together = np.asarray(choose(logits, sampling(names, 1.0), 3))
    for rows in ([4], [1, 0, 0, 2, 2, 2]):
        alone = choose(logits[jnp.array(rows)], sampling([names[row] for row in rows], 1.0), 3)
        np.testing.assert_array_equal(alone, together[rows])
    for other in (choose(logits, sampling(names, 1.0), 4), choose(logits, sampling(names, 1.0, seed=1), 3)):
        assert (np.asarray(other) != together).sum() >= 5
    same = choose(jnp.tile(logits[:1], (6, 1)), sampling(names, 1.0), 3)
    assert len(set(np.asarray(same).tolist())) >= 5


def test_temperature_zero_is_greedy_and_one_program_serves_all(both):  # noqa: F811
    params, _ = both
    tokens, mask, pixels, _ = batch((1, 2, 1))

    def write(how):
        return generate(params, CFG, tokens, mask, pixels, max_new_tokens=24, eos_id=-1, sampling=how)[0]

    greedy, names = np.asarray(write(None)), ["a", "b", "c"]
    np.testing.assert_array_equal(write(sampling(names, 0.0)), greedy)
    size = generate._cache_size()
    np.testing.assert_array_equal(write(sampling(names, 5.0, 1e-6)), greedy)  # top-p of one token
    assert (np.asarray(write(sampling(names, 5.0))) != greedy).any(axis=1).all()
    assert generate._cache_size() == size


def test_sampled_tokens_are_those_drawn_from_pytorchs_logits(both):  # noqa: F811
    params, oracle = both
    tokens, mask, pixels, flat = batch((1, 2, 1))
    how, steps = sampling(["g", "h", "i"], 0.8, 0.7), 32
    ours, _ = generate(params, CFG, tokens, mask, pixels, max_new_tokens=steps, eos_id=-1, sampling=how)
    ours = np.asarray(ours)
    whole = np.concatenate([left_padded(tokens, mask), ours], axis=1)
    seen = np.concatenate([left_padded(mask, mask), np.ones_like(ours, bool)], axis=1)
    logits = oracle.forward(whole, seen, flat)
    for step in range(steps):
        scores = warped(logits[:, tokens.shape[1] - 1 + step], 0.8, 0.7)
        keys = [jax.random.fold_in(key, step) for key in how.keys]
        drawn = [int(jax.random.categorical(key, row)) for key, row in zip(keys, scores, strict=True)]
        assert ours[:, step].tolist() == drawn
