"""Attention of whole rows, by the flash kernel of the device that a program is compiled for.

The kernel is chosen when the program is lowered, so a program for a device that is not there takes that device's:

* GPU: cuDNN's flash attention, which skips what is above the diagonal and behind a row's end.
* TPU: splash attention, a Pallas kernel, which skips what is above the diagonal.
* elsewhere, and where float32 is asked for: XLA, in blocks of positions where a row is long.

For long rows none of them has an array of [positions, positions] in memory. On a mesh, that of `jax.set_mesh`, the rows
are split over `data` and the heads over `model`, as far as they divide.
"""

import jax
import jax.extend.core
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

# Rows of more positions than this are computed in blocks of `_BLOCK` positions by XLA.
_WHOLE, _BLOCK = 1024, 512
_SPLASH_BLOCKS = (128, 256, 384, 512, 640, 768)
_ONE_DEVICE = AbstractMesh((1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


@jax.jit
def attention(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
    """Softmax attention of each row within itself.

    Args:
      q: [batch, positions, heads, head_dim].
      k, v: [batch, positions, kv_heads, head_dim].
      lengths: int32 [batch], the tokens of each row, which is padded on the right: every token sees itself and those
        before it, and what is computed for padding is finite and otherwise not defined. None lets every position see
        every position.

    Returns:
      [batch, positions, heads, head_dim].
    """
    mesh = jax.sharding.get_abstract_mesh()
    attend = _in_blocks if q.dtype == jnp.float32 else _flash
    if mesh.empty:
        if attend is _in_blocks:
            return attend(q, k, v, lengths)
        mesh = _ONE_DEVICE  # a kernel must be told that it is not to be partitioned
    rows = "data" if q.shape[0] % mesh.shape["data"] == 0 else None
    heads = "model" if k.shape[2] % mesh.shape["model"] == 0 else None
    spec = PartitionSpec(rows, None, heads, None)
    specs = (spec, spec, spec, None if lengths is None else PartitionSpec(rows))
    return jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=False)(q, k, v, lengths)


def _flash(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None) -> jax.Array:
    return _flash_p.bind(q, k, v) if lengths is None else _flash_p.bind(q, k, v, lengths)


def _in_blocks(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
    """Attention by XLA. Comments give shapes: t positions of a block, which see T keys."""
    b, positions, n, h = q.shape

    def block(q: jax.Array, first: jax.Array | int) -> jax.Array:
        mask = None
        if lengths is not None:
            mask = jnp.arange(positions) <= first + jnp.arange(q.shape[1])[:, None]  # [t, T]
            mask = mask[None, None]  # [1, 1, t, T]
        return jax.nn.dot_product_attention(q, k, v, mask=mask)  # [B, t, N, H]

    if positions <= _WHOLE:
        return block(q, 0)
    padded = jnp.pad(q, ((0, 0), (0, -positions % _BLOCK), (0, 0), (0, 0)))
    blocks = padded.reshape(b, -1, _BLOCK, n, h).swapaxes(0, 1)  # [blocks, B, t, N, H]
    firsts = jnp.arange(len(blocks)) * _BLOCK
    out = jax.lax.map(lambda each: block(*each), (blocks, firsts))  # [blocks, B, t, N, H]
    return out.swapaxes(0, 1).reshape(b, -1, n, h)[:, :positions]  # [B, T, N, H]


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
    if q.shape[-1] % 8 or q.shape[-1] > 128:  # what cuDNN takes
        return _in_blocks(q, k, v, lengths)
    return jax.nn.dot_product_attention(
        q, k, v, implementation="cudnn",
        is_causal=lengths is not None, query_seq_lengths=lengths, key_value_seq_lengths=lengths,
    )  # fmt: skip


def _splash(
    q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None = None, *, interpret: bool = False
) -> jax.Array:
    positions, heads, head_dim = q.shape[1:]
    # Little padding, in large blocks: a block costs as much as 256 of its positions before it begins.
    size = min(_SPLASH_BLOCKS, key=lambda size: -(-positions // size) * (size + 256))
    pad = -positions % size
    mask = (splash.FullMask if lengths is None else splash.CausalMask)((positions + pad,) * 2)
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(block_q=size, block_kv=size, block_kv_compute=size),
        interpret=interpret,
    )
    q, k, v = (
        jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))).swapaxes(1, 2) for x in (q * head_dim**-0.5, k, v)
    )  # [B, N, T, H], k and v [B, K, T, H]
    segments = None
    if lengths is None and pad:  # a causal row sees no padding
        real = (jnp.arange(positions + pad) < positions).astype(jnp.int32)  # [T]
        segments = splash.SegmentIds(real, real)
    out = jax.vmap(kernel, in_axes=(0, 0, 0, None))(q, k, v, segments)  # [B, N, T, H]
    return out.swapaxes(1, 2)[:, :positions]  # [B, T, N, H]


_flash_p = jax.extend.core.Primitive("flash_attention")
_flash_p.def_abstract_eval(lambda q, *others: q)
mlir.register_lowering(_flash_p, mlir.lower_fun(_in_blocks, multiple_results=False))
mlir.register_lowering(_flash_p, mlir.lower_fun(_cudnn, multiple_results=False), platform="cuda")
mlir.register_lowering(_flash_p, mlir.lower_fun(_splash, multiple_results=False), platform="tpu")
