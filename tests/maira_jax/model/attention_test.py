"""Attention against its explicit form, its kernels against each other, and beyond the checkpoint's 4,096 positions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maira_jax.generation.decode import generate
from maira_jax.model import attention as kernels
from maira_jax.model.attention import attention, attention_to, attention_to_prefix, joined
from tests.helpers.tiny_model import CFG, all_sites, forward, make, worst


def explicit(q, k, v, causal: bool) -> np.ndarray:
    """Softmax of q k / sqrt(head_dim), in float64. Shapes as in `attention`."""
    groups = q.shape[2] // k.shape[2]
    q, k, v = (np.asarray(x, np.float64) for x in (q, jnp.repeat(k, groups, 2), jnp.repeat(v, groups, 2)))
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(np.tri(q.shape[1], dtype=bool) if causal else True, scores, -1e30)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(axis=-1, keepdims=True), v)


def inputs(positions: int, heads: int, kv_heads: int, head_dim: int, dtype=jnp.float32) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(2, positions, n, head_dim)), dtype) for n in (heads, kv_heads, kv_heads)]


def lengths_of(positions: int) -> jax.Array:
    return jnp.array([positions, positions - 5])


def difference(ours: jax.Array, theirs: np.ndarray, lengths: jax.Array | None) -> float:
    """The largest one, padding apart, of which it is only asked that it is finite."""
    ours = np.asarray(ours, np.float64)
    assert np.isfinite(ours).all()
    if lengths is None:
        return float(np.abs(ours - theirs).max())
    return max(float(np.abs(ours - theirs)[row, :length].max()) for row, length in enumerate(lengths))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("positions", [18, 300, 1030])  # whole, in blocks that the last one does not fill, in a loop
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_attention_equals_its_explicit_form(causal, kv_heads, positions, dtype, tolerance):
    q, k, v = inputs(positions, 4, kv_heads, 16, dtype)
    lengths = lengths_of(positions) if causal else None
    assert difference(attention(q, k, v, lengths), explicit(q, k, v, causal), lengths) < tolerance


@pytest.mark.parametrize("causal", [True, False])
def test_the_gradient_is_that_of_the_explicit_form(causal):
    """Through blocks of which the last one is not full, to 5e-6 of its largest value."""
    q, k, v = inputs(300, 4, 2, 16)
    out = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)
    lengths = jnp.array([300, 300]) if causal else None

    def plain(q, k, v):
        k, v = jnp.repeat(k, 2, axis=2), jnp.repeat(v, 2, axis=2)
        scores = jnp.einsum("btnh,bsnh->bnts", q, k, precision="highest") / 4
        scores = jnp.where(np.tri(300, dtype=bool) if causal else True, scores, -jnp.inf)
        return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores), v, precision="highest")

    ours = jax.grad(lambda *given: (attention(*given, lengths) * out).sum(), argnums=(0, 1, 2))(q, k, v)
    theirs = jax.grad(lambda *given: (plain(*given) * out).sum(), argnums=(0, 1, 2))(q, k, v)
    for found, expected in zip(ours, theirs, strict=True):
        assert np.abs(found - expected).max() < 5e-6 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("positions", "heads", "kv_heads", "head_dim", "causal"),
    [(150, 4, 2, 128, True), (137, 2, 2, 64, False), (256, 2, 2, 64, False)],
)
def test_the_kernel_of_tpus_equals_the_explicit_form(positions, heads, kv_heads, head_dim, causal):
    """Interpreted; its blocks are padded, and a key-value head serves several queries."""
    q, k, v = inputs(positions, heads, kv_heads, head_dim)
    lengths = lengths_of(positions) if causal else None
    found = kernels._splash(q, k, v, lengths, interpret=True)
    assert difference(found, explicit(q, k, v, causal), lengths) < 5e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_attention_to_a_prefix_and_to_other_keys_are_joined_into_one_softmax(dtype, tolerance):
    rng = np.random.default_rng(0)
    sizes, lengths, scale = (5, 40, 8), np.array([40, 23]), 4  # large scores: the parts differ much in their sums
    q, k, v, own_k, own_v = (
        jnp.asarray(scale * rng.normal(size=(2, 3, size, 16)), dtype)
        for size in (sizes[0], *2 * sizes[1:2], *2 * sizes[2:])
    )
    sees = rng.random((2, 3, sizes[0], sizes[2])) < 0.5
    sees[0, 0, 0] = False  # no key but the prefix's
    found = joined(attention_to_prefix(q, k, v, jnp.asarray(lengths)), attention_to(q, own_k, own_v, sees))
    q, k, v, own_k, own_v = (np.asarray(x, np.float64) for x in (q, k, v, own_k, own_v))
    seen = np.concatenate(
        [np.broadcast_to(np.arange(40) < lengths[:, None, None, None], (*sees.shape[:3], 40)), sees], axis=-1
    )
    scores = np.einsum("bnqh,bnkh->bnqk", q, np.concatenate([k, own_k], axis=2)) / 4
    weights = np.where(seen, np.exp(scores - scores.max(axis=-1, keepdims=True, where=seen, initial=-1e30)), 0)
    weights /= weights.sum(axis=-1, keepdims=True)
    theirs = np.einsum("bnqk,bnkh->bnqh", weights, np.concatenate([v, own_v], axis=2))
    assert np.abs(np.asarray(found) - theirs).max() / np.abs(theirs).max() < tolerance


def test_long_rows_have_no_array_of_all_scores():
    row = jax.ShapeDtypeStruct((1, 4096, 4, 16), jnp.float32)
    program = jax.jit(attention).lower(row, row, row, jax.ShapeDtypeStruct((1,), jnp.int32)).compile()
    memory = program.memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < 0.5 * 4 * 4096 * 4096 * 4


def test_three_images_of_1369_patches_go_beyond_4096_positions(tmp_path):
    cfg = dataclasses.replace(
        CFG,
        vision=dataclasses.replace(
            CFG.vision,
            hidden_size=64,
            num_attention_heads=1,
            intermediate_size=256,
            num_hidden_layers=1,
            image_size=518,
        ),
        text=dataclasses.replace(
            CFG.text, hidden_size=128, num_attention_heads=1, num_key_value_heads=1, head_dim=128, num_hidden_layers=2
        ),
    )
    params, oracle = make(tmp_path, cfg)
    rng = np.random.default_rng(0)
    images, length, patches = (3,), 4140, cfg.patches_per_image
    tokens = rng.integers(3, 290, (1, length)).astype(np.int32)
    mask = np.arange(length)[None] < length - 5
    for start in (2, 1375, 2755):
        tokens[0, start : start + patches] = cfg.image_token_id
    pixels = rng.normal(size=(1, 3, 518, 518, 3)).astype(np.float32)
    read = tuple(
        site for site in all_sites(cfg) if site.name in ("vision.output", "projector.3", "language.1.resid_mid")
    )
    out = forward(params, cfg, tokens, mask, pixels, read=read)
    logits, theirs = oracle.sites(tokens, mask, pixels[0], [site.name for site in read])
    found = worst(out.sites, theirs, images, mask)
    assert max(found.values()) < 1e-5, found
    assert np.abs(np.asarray(out.logits) - logits)[mask].max() < 1e-4
    ours, _ = generate(params, cfg, tokens, mask, pixels, max_new_tokens=8, eos_id=-1)
    np.testing.assert_array_equal(ours, oracle.greedy(tokens, mask, pixels[0], 8))
