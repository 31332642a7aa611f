"""DINOv2, as MAIRA-2 uses it: every patch of the last block, after the final LayerNorm."""

import jax
import jax.numpy as jnp
from flax import nnx

from maira_jax.model.config import VisionConfig
from maira_jax.model.layers import Params, Tap, attention, scan_blocks, stacked_init


def _layer_norm(cfg: VisionConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(cfg.hidden_size, epsilon=cfg.layer_norm_eps, use_fast_variance=False, rngs=rngs)


class VisionBlock(nnx.Module):
    """`x + scale1 * attention(norm1(x))`, then `x + scale2 * mlp(norm2(x))`."""

    def __init__(self, cfg: VisionConfig, rngs: nnx.Rngs):
        d, self.heads = cfg.hidden_size, cfg.num_attention_heads
        self.norm1 = _layer_norm(cfg, rngs)
        self.query = nnx.Linear(d, d, rngs=rngs)
        self.key = nnx.Linear(d, d, rngs=rngs)
        self.value = nnx.Linear(d, d, rngs=rngs)
        self.out = nnx.Linear(d, d, rngs=rngs)
        self.scale1 = nnx.Param(jnp.ones(d))
        self.norm2 = _layer_norm(cfg, rngs)
        self.fc1 = nnx.Linear(d, cfg.intermediate_size, rngs=rngs)
        self.fc2 = nnx.Linear(cfg.intermediate_size, d, rngs=rngs)
        self.scale2 = nnx.Param(jnp.ones(d))

    def attention(self, x: jax.Array) -> jax.Array:
        """x: [n, 1 + patches, d] -> the same."""
        n, t, d = x.shape
        q, k, v = (proj(x).reshape(n, t, self.heads, -1) for proj in (self.query, self.key, self.value))
        return self.out(attention(q, k, v).reshape(n, t, d))

    def __call__(self, x: jax.Array, state: None, layer: jax.Array, tap: Tap) -> tuple[jax.Array, None]:
        x = tap(x + self.attention(self.norm1(x)) * self.scale1[...], 2 * layer + 1)
        hidden = jax.nn.gelu(self.fc1(self.norm2(x)), approximate=False)
        return tap(x + self.fc2(hidden) * self.scale2[...], 2 * layer + 2), state


def init(cfg: VisionConfig, key: jax.Array) -> Params:
    """Random parameters; blocks are stacked on a leading axis.

    `mask_token` takes no part in inference; it is kept because the checkpoint has it.
    """
    patch_key, position_key, cls_key, block_key = jax.random.split(key, 4)
    d, fan_in = cfg.hidden_size, 3 * cfg.patch_size**2
    return {
        "cls_token": 0.02 * jax.random.normal(cls_key, (d,)),
        "mask_token": jnp.zeros((d,)),
        "position_embeddings": 0.02 * jax.random.normal(position_key, (1 + cfg.patches, d)),
        "patch": {
            "kernel": jax.random.normal(patch_key, (fan_in, d)) * fan_in**-0.5,
            "bias": jnp.zeros((d,)),
        },
        "layers": stacked_init(lambda rngs: VisionBlock(cfg, rngs), cfg.num_hidden_layers, block_key),
        "layernorm": {"scale": jnp.ones((d,)), "bias": jnp.zeros((d,))},
    }


def embed(params: Params, cfg: VisionConfig, pixels: jax.Array) -> jax.Array:
    """Patches and the class token with their positions.

    Args:
      pixels: [n, image_size, image_size, 3], normalised.

    Returns:
      [n, 1 + patches, d_vision]; the class token first, patches row by row.

    Raises:
      ValueError: the image has another size; positions are not interpolated.
    """
    n, height, width, channels = pixels.shape
    if (height, width) != (cfg.image_size, cfg.image_size):
        raise ValueError(f"images are {height} x {width}, the vision tower takes {cfg.image_size} squares")
    p, side = cfg.patch_size, cfg.image_size // cfg.patch_size
    patches = pixels.reshape(n, side, p, side, p, channels).transpose(0, 1, 3, 2, 4, 5).reshape(n, side * side, -1)
    x = patches.astype(params["patch"]["kernel"].dtype) @ params["patch"]["kernel"] + params["patch"]["bias"]
    cls = jnp.broadcast_to(params["cls_token"], (n, 1, x.shape[-1]))
    return jnp.concatenate([cls, x], axis=1) + params["position_embeddings"]


def forward(
    params: Params,
    cfg: VisionConfig,
    pixels: jax.Array,
    *,
    stop: int | None = None,
    reads: tuple[int, ...] = (),
    edit: Tap | None = None,
) -> tuple[jax.Array, dict[int, jax.Array]]:
    """Runs the tower up to site code `stop` (None: all of it, with the final LayerNorm).

    Args:
      pixels: [n, image_size, image_size, 3].
      reads: site codes whose activations are kept, none beyond `stop`.
      edit: changes the residual stream at a site code.

    Returns:
      The residual stream at `stop`, and the kept ones by site code, each [n, 1 + patches, d_vision].
    """
    blocks_end = 2 * cfg.num_hidden_layers
    x, kept, _ = scan_blocks(
        lambda rngs: VisionBlock(cfg, rngs),
        params["layers"],
        embed(params, cfg, pixels),
        blocks_end if stop is None else min(stop, blocks_end),
        tuple(code for code in reads if code <= blocks_end),
        edit=edit,
    )
    if stop is not None and stop <= blocks_end:
        return x, kept
    graph, _ = nnx.split(nnx.eval_shape(lambda: _layer_norm(cfg, nnx.Rngs(0))))
    x = nnx.merge(graph, params["layernorm"])(x)
    x = x if edit is None else edit(x, jnp.int32(blocks_end + 1))
    return x, kept | {blocks_end + 1: x}
