"""Attention on the device, by cuDNN's kernel on a GPU, against its explicit form in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maira_jax.model.attention import PartialAttention, attention, attention_to, attention_to_prefix, joined
from tests.helpers.on_device import run_on

pytestmark = pytest.mark.gpu

# heads, key-value heads, head size: of the vision tower, of MAIRA-2, and with heads that are shared.
HEADS = [(12, 12, 64), (4, 4, 128), (8, 2, 64), (8, 2, 128)]


def normal(*shape: int, dtype=jnp.bfloat16) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


def explicit(q, k, v, seen) -> tuple[np.ndarray, np.ndarray]:
    """Softmax over the keys that are seen, and the logarithm of its denominator, in float64.

    q: [..., queries, head_dim]; k and v with keys. seen: bool, broadcast to [..., queries, keys].
    """
    q, k, v = (np.asarray(each, np.float64) for each in (q, k, v))
    scores = np.where(seen, q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]), -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    return weights / total @ v, (top + np.log(total))[..., 0]


def worst(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest error of a head's output, relative to its length. [..., head_dim] each"""
    found = np.asarray(found, np.float64)
    return float((np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)).max())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("positions", [1100, 1371])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), HEADS)
def test_attention_in_bfloat16(device, at_most, heads, kv_heads, head_dim, positions, causal):
    q, k, v = (normal(2, positions, n, head_dim) for n in (heads, kv_heads, kv_heads))
    lengths = np.array([positions, positions - 259], np.int32) if causal else None
    given = (q, k, v) if lengths is None else (q, k, v, lengths)
    found = run_on(device, attention, *given)
    assert np.isfinite(np.asarray(found, np.float32)).all()
    if device.platform == "gpu":
        placed = jax.device_put(given, device)
        assert "fmha" in attention.lower(*placed).compile().as_text()
    shared = (each.swapaxes(1, 2).repeat(heads // each.shape[2], axis=1) for each in (q, k, v))  # [B, N, T, H] each
    expected, _ = explicit(*shared, np.tri(positions, dtype=bool) if causal else True)
    for row, length in enumerate([positions] * 2 if lengths is None else lengths):
        at_most(worst(found[row, :length], expected[row, :, :length].swapaxes(0, 1)), 1.5e-2)


@pytest.mark.parametrize("positions", [40, 1371])
def test_attention_in_float32_rounds_no_factor(device, at_most, positions):
    q, k, v = (normal(2, positions, n, 64, dtype=np.float32) for n in (4, 2, 2))
    lengths = np.array([positions, positions - 17], np.int32)
    with jax.default_matmul_precision("highest"):
        found = run_on(device, attention, q, k, v, lengths)
    shared = (each.swapaxes(1, 2).repeat(4 // each.shape[2], axis=1) for each in (q, k, v))  # [B, N, T, H] each
    expected, _ = explicit(*shared, np.tri(positions, dtype=bool))
    for row, length in enumerate(lengths):
        at_most(worst(found[row, :length], expected[row, :, :length].swapaxes(0, 1)), 1e-5)


@pytest.mark.parametrize("queries", [1, 24])
@pytest.mark.parametrize(("prefixes", "kv_heads", "head_dim"), [(16, 8, 128), (32, 4, 64), (2, 4, 128)])
def test_attention_to_a_prefix_and_its_sums(device, at_most, prefixes, kv_heads, head_dim, queries):
    """The first two have the heads that cuDNN's kernel is taken for, the last one has few."""
    keys, scale = 1371, 2  # large scores, so that the sums differ much
    q = (scale * normal(prefixes, kv_heads, queries, head_dim, dtype=np.float32)).astype(jnp.bfloat16)
    k, v = normal(prefixes, kv_heads, keys, head_dim), normal(prefixes, kv_heads, keys, head_dim, dtype=np.float32)
    v = v.astype(jnp.bfloat16)
    lengths = np.random.default_rng(0).integers(1, keys + 1, prefixes).astype(np.int32)
    lengths[:2] = 1, keys
    found = run_on(device, attention_to_prefix, q, k, v, lengths)
    if device.platform == "gpu" and prefixes * kv_heads >= 128:
        assert "fmha" in attention_to_prefix.lower(*jax.device_put((q, k, v, lengths), device)).compile().as_text()
    expected, total = explicit(q, k, v, (np.arange(keys) < lengths[:, None])[:, None, None])
    at_most(worst(found.out, expected), 1.5e-2, "softmax")
    at_most(float(np.abs(found.log_total - total).max()), 2e-3, "logarithms of sums")


def test_a_prefix_and_other_keys_are_joined_into_one_softmax(device, at_most):
    prefixes, kv_heads, head_dim, keys, own = 16, 8, 64, 1100, 24
    q = normal(prefixes, kv_heads, 3, head_dim)
    k, v = (normal(prefixes, kv_heads, keys + own, head_dim, dtype=np.float32) * size for size in (2, 1))
    k, v = k.astype(jnp.bfloat16), v.astype(jnp.bfloat16)
    lengths = np.random.default_rng(0).integers(1, keys + 1, prefixes).astype(np.int32)
    sees = np.random.default_rng(1).random((prefixes, kv_heads, 3, own)) < 0.5

    def both(q, k, v, lengths, sees) -> jax.Array:
        prefix: PartialAttention = attention_to_prefix(q, k[..., :keys, :], v[..., :keys, :], lengths)
        return joined(prefix, attention_to(q, k[..., keys:, :], v[..., keys:, :], sees))

    found = run_on(device, jax.jit(both), q, k, v, lengths, sees)
    before = np.broadcast_to(np.arange(keys) < lengths[:, None, None, None], (*sees.shape[:3], keys))
    expected, _ = explicit(q, k, v, np.concatenate([before, sees], axis=-1))
    at_most(worst(found, expected), 1.5e-2)
