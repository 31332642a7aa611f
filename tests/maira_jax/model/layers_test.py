"""Attention against its explicit form, and beyond the checkpoint's 4,096 positions."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maira_jax.generation.decode import generate
from maira_jax.model import layers
from tests.helpers.tiny_model import CFG, all_sites, forward, make, worst

CUDA = jax.default_backend() == "gpu"


def explicit(q, k, v, mask):
    """Softmax of q k / sqrt(head_dim), in float64. Shapes as in `layers.attention`, masks whole."""
    groups = q.shape[2] // k.shape[2]
    q, k, v = (np.asarray(x, np.float64) for x in (q, jnp.repeat(k, groups, 2), jnp.repeat(v, groups, 2)))
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(mask, scores, -1e30)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(axis=-1, keepdims=True), v)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_attention_equals_its_explicit_form(kv_heads, dtype, tolerance):
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(size=(2, 18, 4, 16)), dtype)
    k, v = (jnp.asarray(rng.normal(size=(2, 24, kv_heads, 16)), dtype) for _ in range(2))
    mask = np.tril(np.ones((18, 24), bool))[None, None] & (np.arange(24) >= np.array([0, 5])[:, None])[:, None, None]
    seen = mask.any(axis=-1)[:, 0]  # padding sees nothing, and what it gives is not used
    for some in (mask, None):
        ours = np.asarray(layers.attention(q, k, v, some), np.float64)
        assert np.isfinite(ours).all()
        theirs = explicit(q, k, v, np.ones((1, 1, 1, 1), bool) if some is None else some)
        assert np.abs(ours - theirs)[seen if some is not None else ...].max() < tolerance


def test_flash_attention_is_taken_where_the_device_has_it(monkeypatch):
    def takes(dtype, head_dim=64, positions=10, masked=True) -> bool:
        q = jax.ShapeDtypeStruct((1, positions, 2, head_dim), dtype)
        return layers._flash(q, q, q if masked else None)

    if not CUDA:
        assert not takes(jnp.bfloat16)
    backend = types.SimpleNamespace(platform_version="PJRT C API\ncuda 13000")
    monkeypatch.setattr(jax.extend.backend, "get_backend", lambda: backend)
    assert takes(jnp.bfloat16) and takes(jnp.bfloat16, 128) and takes(jnp.bfloat16, 64, 1370, masked=False)
    assert takes(jnp.bfloat16, 64, 11, masked=False)
    assert not takes(jnp.float32) and not takes(jnp.bfloat16, 256) and not takes(jnp.bfloat16, 12)
    assert not takes(jnp.bfloat16, 64, 11)


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
