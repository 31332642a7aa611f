"""DINOv2, as MAIRA-2 uses it: every patch of the last block, after the final LayerNorm."""

import jax
import jax.numpy as jnp
from flax import nnx

from maira_jax.model.attention import attention
from maira_jax.model.config import VisionConfig
from maira_jax.model.layers import (
    Hook,
    NormalLinear,
    Params,
    bind,
    exact_float32,
    linear,
    parameter,
    scan_blocks,
    stacked,
)
from maira_jax.model.sites import Site


def _layer_norm(cfg: VisionConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    axes = {"axes": ("vision_embed",)}
    return nnx.LayerNorm(
        cfg.hidden_size,
        epsilon=cfg.layer_norm_eps,
        use_fast_variance=False,
        rngs=rngs,
        scale_metadata=axes,
        bias_metadata=axes,
    )


def _last_norm(cfg: VisionConfig, key: jax.Array) -> nnx.LayerNorm:
    return _layer_norm(cfg, nnx.Rngs(key))


class VisionBlock(nnx.Module):
    """`x + scale1 * attention(norm1(x))`, then `x + scale2 * mlp(norm2(x))`."""

    def __init__(self, cfg: VisionConfig, key: jax.Array):
        d, self.heads, rngs = cfg.hidden_size, cfg.num_attention_heads, nnx.Rngs(key)
        ones = nnx.initializers.ones
        self.norm1 = _layer_norm(cfg, rngs)
        self.query = linear(d, d, ("vision_embed", "vision_heads"), rngs)
        self.key = linear(d, d, ("vision_embed", "vision_heads"), rngs)
        self.value = linear(d, d, ("vision_embed", "vision_heads"), rngs)
        self.out = linear(d, d, ("vision_heads", "vision_embed"), rngs)
        self.scale1 = parameter(ones, None, (d,), ("vision_embed",))
        self.norm2 = _layer_norm(cfg, rngs)
        self.fc1 = linear(d, cfg.intermediate_size, ("vision_embed", "mlp"), rngs)
        self.fc2 = linear(cfg.intermediate_size, d, ("mlp", "vision_embed"), rngs)
        self.scale2 = parameter(ones, None, (d,), ("vision_embed",))

    @jax.named_scope("attention")
    def attend(self, x: jax.Array, state: None, layer: int | jax.Array) -> tuple[jax.Array, None]:
        """`x` [B, 1 + P, D], P patches, plus the attention."""
        b, t, d = x.shape
        normed = self.norm1(x)  # [B, T, D]
        q, k, v = (each(normed).reshape(b, t, self.heads, -1) for each in (self.query, self.key, self.value))
        attended = attention(q, k, v)  # [B, T, N, H], as are q, k and v
        return x + self.out(attended.reshape(b, t, d)) * self.scale1[...], state  # [B, T, D]

    @jax.named_scope("mlp")
    def feed_forward(self, x: jax.Array) -> jax.Array:
        """`x` [B, 1 + P, D] plus the MLP."""
        hidden = jax.nn.gelu(self.fc1(self.norm2(x)), approximate=False)  # [B, T, F]
        return x + self.fc2(hidden) * self.scale2[...]  # [B, T, D]


class VisionTower(nnx.Module):
    """The parameters of DINOv2. `mask_token` takes no part in inference; it is kept because the checkpoint has it."""

    def __init__(self, cfg: VisionConfig, key: jax.Array):
        patch_key, position_key, cls_key, block_key = jax.random.split(key, 4)
        d, fan_in, normal = cfg.hidden_size, 3 * cfg.patch_size**2, nnx.initializers.normal(0.02)
        self.cls_token = parameter(normal, cls_key, (d,), ("vision_embed",))
        self.mask_token = parameter(nnx.initializers.zeros, None, (d,), ("vision_embed",))
        self.position_embeddings = parameter(
            normal, position_key, (1 + cfg.patches, d), ("vision_positions", "vision_embed")
        )
        self.patch = NormalLinear(fan_in, d, ("pixels", "vision_embed"), fan_in**-0.5, patch_key)
        self.layers = stacked(VisionBlock, cfg, cfg.num_hidden_layers, block_key)
        self.layernorm = _last_norm(cfg, key)


def embed(params: Params, cfg: VisionConfig, pixels: jax.Array) -> jax.Array:
    """Patches and the class token with their positions.

    Args:
      pixels: [n, image_size, image_size, 3], normalised.

    Returns:
      [n, 1 + patches, d_vision]; the class token first, patches row by row.

    Raises:
      ValueError: the image has another size; positions are not interpolated.
    """
    b, height, width, channels = pixels.shape
    if (height, width) != (cfg.image_size, cfg.image_size):
        raise ValueError(f"images are {height} x {width}, the vision tower takes {cfg.image_size} squares")
    p, side = cfg.patch_size, cfg.image_size // cfg.patch_size
    patches = pixels.reshape(b, side, p, side, p, channels).transpose(0, 1, 3, 2, 4, 5)  # [B, side, side, p, p, 3]
    patches = patches.reshape(b, side * side, -1)  # [B, P, p * p * 3]
    kernel, bias = params["patch"]["kernel"], params["patch"]["bias"]
    x = patches.astype(kernel.dtype) @ kernel + bias  # [B, P, D]
    cls = jnp.broadcast_to(params["cls_token"], (b, 1, x.shape[-1]))  # [B, 1, D]
    return jnp.concatenate([cls, x], axis=1) + params["position_embeddings"]  # [B, 1 + P, D]


@exact_float32
@jax.named_scope("vision")
def forward(
    params: Params,
    cfg: VisionConfig,
    pixels: jax.Array,
    *,
    stop: int | None = None,
    reads: tuple[int, ...] = (),
    hook: Hook | None = None,
) -> tuple[jax.Array, dict[int, jax.Array]]:
    """Runs the tower up to site code `stop` (None: all of it, with the final LayerNorm).

    Args:
      pixels: [n, image_size, image_size, 3].
      reads: site codes whose activations are kept, none beyond `stop`.
      hook: changes the residual stream at a site code.

    Returns:
      The residual stream at `stop`, and the kept ones by site code, each [n, 1 + patches, d_vision].
    """
    last, output = Site.post(cfg.num_hidden_layers - 1), Site.output(cfg.num_hidden_layers)
    x, kept, _ = scan_blocks(
        VisionBlock,
        cfg,
        params["layers"],
        embed(params, cfg, pixels),
        last if stop is None else min(stop, last),
        tuple(code for code in reads if code <= last),
        hook=hook,
        state=None,
    )
    if stop is not None and stop <= last:
        return x, kept
    x = bind(_last_norm, cfg, params["layernorm"])(x)
    x = x if hook is None else hook(x, jnp.int32(output))
    return x, kept | {output: x}
