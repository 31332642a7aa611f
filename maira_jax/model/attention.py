"""Attention of whole rows, by the flash kernel of the device that a program is compiled for.

The kernel is chosen when the program is lowered, so a program for a device that is not there takes that device's:

* GPU: cuDNN's flash attention, which skips what is above the diagonal and behind a row's end.
* TPU: splash attention, a Pallas kernel, which skips what is above the diagonal.
* elsewhere, and where float32 is asked for: XLA, in blocks of positions.

For long rows none of them has an array of [positions, positions] in memory. On a mesh, that of `jax.set_mesh`, the rows
are split over `data` and the heads over `model`, as far as they divide.

Attention over keys that lie in several places is computed for each place and joined (`joined`): of each it needs the
softmax of its own and the logarithm of the sum that this is divided by, which cuDNN's kernel gives too.
"""

from typing import NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp

# The public function rounds the logarithms to the type of the queries.
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

# How many queries of a row XLA computes at a time: each block of a row of up to `_UNROLLED` positions on its own, so
# that no key after its last query is read; the blocks of longer rows in a loop, of which one is in memory at a time.
_BLOCK, _UNROLLED, LONG_BLOCK = 128, 1024, 512
# cuDNN's kernel gives all queries of a head to one core of a GPU, of which an H100 has 132.
_CUDNN_HEADS = 128
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
    rows, heads = _axes(mesh, q.shape[0], k.shape[2])
    spec = PartitionSpec(rows, None, heads, None)
    specs = (spec, spec, spec, None if lengths is None else PartitionSpec(rows))
    return jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=False)(q, k, v, lengths)


def _axes(mesh: AbstractMesh, rows: int, heads: int) -> tuple[str | None, str | None]:
    """The axes of a mesh that this number of rows and of heads is split over."""
    return (
        "data" if rows % mesh.shape["data"] == 0 else None,
        "model" if heads % mesh.shape["model"] == 0 else None,
    )


class PartialAttention(NamedTuple):
    """Attention to some of the keys that a query sees.

    Attributes:
      out: float32 [..., queries, head_dim], the softmax over these keys alone, times their values.
      log_total: float32 [..., queries], the logarithm of the sum of the keys' exponentials.
    """

    out: jax.Array
    log_total: jax.Array


def joined(first: PartialAttention, second: PartialAttention) -> jax.Array:
    """One softmax over the keys of both, float32 [..., queries, head_dim]."""
    share = jax.nn.sigmoid(first.log_total - second.log_total)[..., None]  # [..., Q, 1]
    return share * first.out + (1 - share) * second.out


def attention_to(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array) -> PartialAttention:
    """Attention by XLA.

    Args:
      q: [..., queries, head_dim].
      k, v: [..., keys, head_dim].
      seen: bool, broadcast to [..., queries, keys]. What is computed for a query that sees no key is finite, and
        `joined` gives it no weight.
    """
    float32 = {"preferred_element_type": jnp.float32}
    scores = jnp.einsum("...qh,...kh->...qk", q, k, **float32) * q.shape[-1] ** -0.5  # [..., Q, K]
    scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))  # [..., Q, 1], which the softmax does not depend on
    weights = jnp.exp(scores - top)  # [..., Q, K]
    total = weights.sum(-1, keepdims=True)  # [..., Q, 1]
    out = jnp.einsum("...qk,...kh->...qh", weights.astype(v.dtype), v, **float32) / total  # [..., Q, H]
    return PartialAttention(out, (top + jnp.log(total))[..., 0])


@jax.jit
def attention_to_prefix(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> PartialAttention:
    """Attention of many queries to the keys before them.

    Args:
      q: [batch, kv_heads, queries, head_dim].
      k, v: [batch, kv_heads, keys, head_dim].
      lengths: int32 [batch], at least 1: the keys that each query sees.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if q.dtype == jnp.float32:
        return _to_prefix(q, k, v, lengths)
    mesh = _ONE_DEVICE if mesh.empty else mesh
    rows, heads = _axes(mesh, *k.shape[:2])
    spec = PartitionSpec(rows, heads)
    specs = (spec, spec, spec, PartitionSpec(rows))
    attend = jax.shard_map(_prefix_p.bind, mesh=mesh, in_specs=specs, out_specs=[spec, spec], check_vma=False)
    return PartialAttention(*attend(q, k, v, lengths))


def _to_prefix(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> PartialAttention:
    return attention_to(q, k, v, (jnp.arange(k.shape[2]) < lengths[:, None])[:, None, None])


def _flash(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None) -> jax.Array:
    return _flash_p.bind(q, k, v) if lengths is None else _flash_p.bind(q, k, v, lengths)


def _in_blocks(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
    """Attention by XLA, a block of queries at a time.

    Comments give shapes: t positions of a block, which see S keys; G heads share a key.
    """
    b, positions, n, h = q.shape
    q = q.reshape(b, positions, k.shape[2], -1, h).transpose(0, 2, 3, 1, 4)  # [B, K, G, T, H]
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)  # [B, K, T, H] each

    def block(part: jax.Array, first: int | jax.Array, stop: int) -> jax.Array:
        """The queries `part` [B, K, G, t, H] from position `first` on, to the keys before position `stop`."""
        group, t = part.shape[2:4]
        seen = jnp.ones((), bool)
        if lengths is not None:
            seen = jnp.arange(stop) <= first + jnp.arange(t)[:, None]  # [t, S]
            seen = jnp.tile(seen, (group, 1))  # [G * t, S]
        rows = part.reshape(b, -1, group * t, h)  # [B, K, G * t, H]
        return attention_to(rows, k[:, :, :stop], v[:, :, :stop], seen).out.reshape(part.shape)

    if positions <= _UNROLLED:
        done = []
        for first in range(0, positions, _BLOCK):
            stop = positions if lengths is None else min(first + _BLOCK, positions)
            done.append(block(q[..., first : first + _BLOCK, :], first, stop))
        out = jnp.concatenate(done, axis=3)  # [B, K, G, T, H]
    else:
        padded = jnp.pad(q, ((0, 0),) * 3 + ((0, -positions % LONG_BLOCK), (0, 0)))
        parts = jnp.stack(jnp.split(padded, padded.shape[3] // LONG_BLOCK, axis=3))  # [blocks, B, K, G, t, H]
        firsts = jnp.arange(len(parts)) * LONG_BLOCK
        blocks = jax.lax.map(
            lambda each: block(each[0], each[1], positions), (parts, firsts)
        )  # [blocks, B, K, G, t, H]
        out = jnp.concatenate(blocks, axis=3)[..., :positions, :]  # [B, K, G, T, H]
    return out.astype(q.dtype).transpose(0, 3, 1, 2, 4).reshape(b, positions, n, h)


def _cudnn_takes(q: jax.Array) -> bool:
    return q.shape[-1] % 8 == 0 and q.shape[-1] <= 128


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
    if not _cudnn_takes(q):
        return _in_blocks(q, k, v, lengths)
    return jax.nn.dot_product_attention(
        q, k, v, implementation="cudnn",
        is_causal=lengths is not None, query_seq_lengths=lengths, key_value_seq_lengths=lengths,
    )  # fmt: skip


def _cudnn_to_prefix(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> PartialAttention:
    batch, heads, queries, head_dim = q.shape
    if not _cudnn_takes(q) or batch * heads < _CUDNN_HEADS:
        return _to_prefix(q, k, v, lengths)
    out, log_total = cudnn.dot_product_attention(
        q, k, v, q_seqlen=jnp.full_like(lengths, queries), kv_seqlen=lengths, scale=head_dim**-0.5,
        mask_type=cudnn.MaskType.PADDING, qkv_layout="BNTH", return_residual=True,
    )  # fmt: skip
    return PartialAttention(out.astype(jnp.float32), log_total)


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

_prefix_p = jax.extend.core.Primitive("attention_to_prefix")
_prefix_p.multiple_results = True
_prefix_p.def_abstract_eval(
    lambda q, *others: [q.update(dtype=jnp.float32), q.update(shape=q.shape[:-1], dtype=jnp.float32)]
)
mlir.register_lowering(_prefix_p, mlir.lower_fun(_to_prefix, multiple_results=True))
mlir.register_lowering(_prefix_p, mlir.lower_fun(_cudnn_to_prefix, multiple_results=True), platform="cuda")
