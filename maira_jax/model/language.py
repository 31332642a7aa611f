"""Llama with linear RoPE scaling, over a residual stream that can be read and edited at every site."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maira_jax.model.cache import Cache, SharedCache
from maira_jax.model.config import TextConfig
from maira_jax.model.layers import Params, Tap, attention, scan_blocks, stacked_init


class RMSNorm(nnx.Module):
    """Normalised in float32 and cast back before the scale is applied, as in transformers' Llama."""

    def __init__(self, cfg: TextConfig):
        self.epsilon = cfg.rms_norm_eps
        self.scale = nnx.Param(jnp.ones(cfg.hidden_size))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return self.scale[...] * wide.astype(x.dtype)


def rope(cfg: TextConfig, positions: jax.Array, dtype: jax.typing.DTypeLike) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the rotary angles.

    The scaling divides the frequencies, not the positions: the two differ in float32 rounding.

    Args:
      positions: [batch, positions] int32.

    Returns:
      Two arrays [batch, positions, 1, head_dim].
    """
    exponent = jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim
    frequency = 1.0 / (cfg.rope_theta**exponent) / cfg.rope_factor
    angle = positions[:, :, None].astype(jnp.float32) * frequency
    angle = jnp.concatenate([angle, angle], axis=-1)[:, :, None]
    return jnp.cos(angle).astype(dtype), jnp.sin(angle).astype(dtype)


def _rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """x: [batch, positions, heads, head_dim]; the first half of a head turns against the second."""
    first, second = jnp.split(x, 2, axis=-1)
    return x * cos + jnp.concatenate([-second, first], axis=-1) * sin


class LanguageBlock(nnx.Module):
    """`x + attention(norm(x))`, then `x + down(silu(gate(norm(x))) * up(norm(x)))`; no biases."""

    def __init__(self, cfg: TextConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        d, width = cfg.hidden_size, cfg.intermediate_size
        heads, kv_heads = cfg.num_attention_heads * cfg.head_dim, cfg.num_key_value_heads * cfg.head_dim
        self.input_norm = RMSNorm(cfg)
        self.query = nnx.Linear(d, heads, use_bias=False, rngs=rngs)
        self.key = nnx.Linear(d, kv_heads, use_bias=False, rngs=rngs)
        self.value = nnx.Linear(d, kv_heads, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(heads, d, use_bias=False, rngs=rngs)
        self.post_attention_norm = RMSNorm(cfg)
        self.gate = nnx.Linear(d, width, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(d, width, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(width, d, use_bias=False, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        cache: Cache | SharedCache | None,
        layer: Any,
        tap: Tap,
        *,
        angles: tuple[jax.Array, jax.Array],
        mask: Any,
        slot: jax.Array | None,
    ) -> tuple[jax.Array, Any]:
        b, t, _ = x.shape
        normed = self.input_norm(x)
        q, k, v = (proj(normed).reshape(b, t, -1, self.cfg.head_dim) for proj in (self.query, self.key, self.value))
        q, k = _rotate(q, *angles), _rotate(k, *angles)
        if cache is None or slot is None:
            attended = attention(q, k, v, mask)
        else:
            attended, cache = cache.attend(layer, slot, q, k, v, mask)
        x = tap(x + self.out(attended.reshape(b, t, -1)), 2 * layer + 1)
        normed = self.post_attention_norm(x)
        return tap(x + self.down(jax.nn.silu(self.gate(normed)) * self.up(normed)), 2 * layer + 2), cache


def init(cfg: TextConfig, key: jax.Array) -> Params:
    """Random parameters; blocks are stacked on a leading axis, embedding and head are not tied."""
    embed_key, block_key, head_key = jax.random.split(key, 3)
    d = cfg.hidden_size
    return {
        "embed": 0.02 * jax.random.normal(embed_key, (cfg.vocab_size, d)),
        "layers": stacked_init(lambda rngs: LanguageBlock(cfg, rngs), cfg.num_hidden_layers, block_key),
        "norm": {"scale": jnp.ones((d,))},
        "lm_head": 0.02 * jax.random.normal(head_key, (d, cfg.vocab_size)),
    }


def forward(
    params: Params,
    cfg: TextConfig,
    x: jax.Array,
    positions: jax.Array,
    mask: Any,
    *,
    stop: int | None = None,
    reads: tuple[int, ...] = (),
    edit: Tap | None = None,
    cache: Cache | SharedCache | None = None,
    slot: jax.Array | None = None,
) -> tuple[jax.Array, dict[int, jax.Array], Any]:
    """Runs the blocks up to site code `stop` (None: all of them).

    Args:
      x: [batch, positions, d_model], embeddings.
      positions: [batch, positions] int32, each token's position in its own row.
      mask: bool [batch, 1, positions, keys], which keys a position sees; keys are the cache's slots if there is one.
        For a `SharedCache` it is what its `attend` wants.
      reads: site codes whose activations are kept, none beyond `stop`.
      edit: changes the residual stream at a site code.
      cache: written at `slot` and after, and attended to.

    Returns:
      The residual stream at `stop` (before the final norm), the kept ones by site code, each
      [batch, positions, d_model], and the cache.
    """
    return scan_blocks(
        lambda rngs: LanguageBlock(cfg, rngs),
        params["layers"],
        x,
        2 * cfg.num_hidden_layers if stop is None else stop,
        reads,
        edit=edit,
        state=cache,
        angles=rope(cfg, positions, x.dtype),
        mask=mask,
        slot=slot,
    )


def logits(params: Params, cfg: TextConfig, x: jax.Array) -> jax.Array:
    """Final norm and head. x: [..., d_model] -> [..., vocab]."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: RMSNorm(cfg)))
    return nnx.merge(graph, params["norm"])(x) @ params["lm_head"]
