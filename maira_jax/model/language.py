"""Llama with linear RoPE scaling, over a residual stream that can be read and edited at every site."""

from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from maira_jax.model.attention import attention
from maira_jax.model.cache import PromptCache, Seen, SharedCache, SharedMask
from maira_jax.model.config import TextConfig
from maira_jax.model.int8 import product
from maira_jax.model.layers import (
    FUSED,
    BiasFreeLinear,
    Hook,
    Params,
    bind,
    exact_float32,
    parameter,
    scan_blocks,
    stacked,
)
from maira_jax.model.sites import Site

C = TypeVar("C", PromptCache, SharedCache, None)


class RMSNorm(nnx.Module):
    """Normalised in float32 and cast back before the scale is applied, as in transformers' Llama."""

    def __init__(self, cfg: TextConfig, key: jax.Array | None = None):
        self.epsilon = cfg.rms_norm_eps
        self.scale = parameter(nnx.initializers.ones, key, (cfg.hidden_size,), ("embed",))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., d_model]."""
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
    exponent = jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim  # [H / 2]
    frequency = 1.0 / (cfg.rope_theta**exponent) / cfg.rope_factor  # [H / 2]
    angle = positions[:, :, None].astype(jnp.float32) * frequency  # [B, T, H / 2]
    angle = jnp.concatenate([angle, angle], axis=-1)[:, :, None]  # [B, T, 1, H]
    return jnp.cos(angle).astype(dtype), jnp.sin(angle).astype(dtype)


def _rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """x: [batch, positions, heads, head_dim]; the first half of a head turns against the second."""
    first, second = jnp.split(x, 2, axis=-1)  # [B, T, N, H / 2]
    return x * cos + jnp.concatenate([-second, first], axis=-1) * sin


class LanguageBlock(nnx.Module):
    """`x + attention(norm(x))`, then `x + down(silu(gate(norm(x))) * up(norm(x)))`; no biases.

    `qkv` holds, for each key-value head, the queries that share it, then its key, then its value.
    """

    def __init__(self, cfg: TextConfig, key: jax.Array):
        self.cfg, rngs = cfg, nnx.Rngs(key)
        d, width = cfg.hidden_size, cfg.intermediate_size
        kv_heads, head_dim = cfg.num_key_value_heads, cfg.head_dim
        group = cfg.num_attention_heads // kv_heads
        self.input_norm = RMSNorm(cfg)
        self.qkv = BiasFreeLinear(d, (kv_heads, group + 2, head_dim), ("embed", "kv_heads", FUSED, "head_dim"), rngs)
        self.out = BiasFreeLinear(kv_heads * group * head_dim, (d,), ("heads", "embed"), rngs)
        self.post_attention_norm = RMSNorm(cfg)
        self.gate_up = BiasFreeLinear(d, (2, width), ("embed", FUSED, "mlp"), rngs)
        self.down = BiasFreeLinear(width, (d,), ("mlp", "embed"), rngs)

    @jax.named_scope("attention")
    def attend(
        self,
        x: jax.Array,
        cache: C,
        layer: int | jax.Array,
        *,
        angles: tuple[jax.Array, jax.Array],
        seen: Seen,
        slot: int | jax.Array,
    ) -> tuple[jax.Array, C]:
        """`x` [B, T, D] plus the attention; for the arguments see `forward`."""
        b, t, _ = x.shape
        qkv = self.qkv(self.input_norm(x))  # [B, T, K, N / K + 2, H]
        q = qkv[..., :-2, :].reshape(b, t, -1, self.cfg.head_dim)  # [B, T, N, H]
        k, v = qkv[..., -2, :], qkv[..., -1, :]  # [B, T, K, H] each
        q, k = _rotate(q, *angles), _rotate(k, *angles)
        if cache is None:
            assert not isinstance(seen, SharedMask)
            attended = attention(q, k, v, seen)  # [B, T, N, H]
        else:
            attended, cache = cache.attend(layer, slot, q, k, v, seen)  # [B, T, N, H]
        return x + self.out(attended.reshape(b, t, -1)), cache  # [B, T, D]

    @jax.named_scope("mlp")
    def feed_forward(self, x: jax.Array) -> jax.Array:
        """`x` [B, T, D] plus the MLP."""
        gate_up = self.gate_up(self.post_attention_norm(x))  # [B, T, 2, F]
        hidden = jax.nn.silu(gate_up[..., 0, :]) * gate_up[..., 1, :]  # [B, T, F]
        return x + self.down(hidden)  # [B, T, D]


class LanguageModel(nnx.Module):
    """The parameters of Llama; embedding and head are not tied."""

    def __init__(self, cfg: TextConfig, key: jax.Array):
        embed_key, block_key, head_key = jax.random.split(key, 3)
        vocab, d, normal = cfg.vocab_size, cfg.hidden_size, nnx.initializers.normal(0.02)
        self.embed = parameter(normal, embed_key, (vocab, d), ("vocab", "embed"))
        self.layers = stacked(LanguageBlock, cfg, cfg.num_hidden_layers, block_key)
        self.norm = RMSNorm(cfg)
        self.lm_head = parameter(normal, head_key, (d, vocab), ("embed", "vocab"))


@exact_float32
@jax.named_scope("language")
def forward(
    params: Params,
    cfg: TextConfig,
    x: jax.Array,
    positions: jax.Array,
    seen: Seen,
    *,
    stop: int | None = None,
    reads: tuple[int, ...] = (),
    hook: Hook | None = None,
    cache: C = None,  # type: ignore[assignment]
    slot: int | jax.Array = 0,
) -> tuple[jax.Array, dict[int, jax.Array], C]:
    """Runs the blocks up to site code `stop` (None: all of them).

    Args:
      x: [batch, positions, d_model], embeddings.
      positions: [batch, positions] int32, each token's position in its own row.
      seen: int32 [batch], the tokens of each row, which is padded on the right; each attends to itself and those before
        it. For a `SharedCache` a `SharedMask`.
      reads: site codes whose activations are kept, none beyond `stop`.
      hook: changes the residual stream at a site code.
      cache: takes the keys and values of this pass, from `slot` on in a `SharedCache`; its layers are unstacked.

    Returns:
      The residual stream at `stop` (before the final norm), the kept ones by site code, each
      [batch, positions, d_model], and the cache.
    """
    return scan_blocks(
        LanguageBlock,
        cfg,
        params["layers"],
        x,
        Site.post(cfg.num_hidden_layers - 1) if stop is None else stop,
        reads,
        hook=hook,
        state=cache,
        angles=rope(cfg, positions, x.dtype),
        seen=seen,
        slot=slot,
    )


@exact_float32
@jax.named_scope("logits")
def logits(params: Params, cfg: TextConfig, x: jax.Array) -> jax.Array:
    """Final norm and head. x: [..., d_model] -> [..., vocab], without the padding of a head in memory."""
    return product(bind(RMSNorm, cfg, params["norm"])(x), params["lm_head"])[..., : cfg.vocab_size]
