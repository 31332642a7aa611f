"""What the vision tower and the language model share: stacked blocks and the scan over them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from flax import nnx

Params = dict[str, Any]  # a nested dict of arrays
Tap = Callable[[jax.Array, jax.Array], jax.Array]  # (residual stream, site code) -> residual stream


def stacked_init(make: Callable[[nnx.Rngs], nnx.Module], n_layers: int, key: jax.Array) -> Params:
    """Parameters of `n_layers` blocks, stacked on a leading axis."""

    def one(block_key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(block_key)), nnx.Param))

    return jax.vmap(one)(jax.random.split(key, n_layers))


def unstack(stack: Params) -> tuple[Params, ...]:
    """The layers of a stack apart, for many short passes: a scan copies each layer out of the stack in every pass."""
    depth = jax.tree.leaves(stack)[0].shape[0]
    return tuple(jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(depth))


def take_layer(stack: Params | tuple[Params, ...], layer: Any) -> Params:
    """Layer `layer` of a stack. Slicing the whole stack by a range would copy every weight."""
    if isinstance(stack, tuple):
        return stack[layer]
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), stack)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Softmax attention, through cuDNN's flash attention where the device has it.

    Args:
      q: [batch, positions, heads, head_dim].
      k, v: [batch, keys, kv_heads, head_dim].
      mask: bool, broadcastable to [batch, heads, positions, keys]; None lets every position see every key.

    Returns:
      [batch, positions, heads, head_dim].
    """
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn" if _flash(q, k, mask) else None)


def _flash(q: jax.Array, k: jax.Array, mask: jax.Array | None) -> bool:
    """Whether cuDNN takes these shapes: 16 bits, a head of at most 128 in eights, even lengths under a mask."""
    if "cuda" not in jax.extend.backend.get_backend().platform_version:
        return False
    even = mask is None or (q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0)
    return q.dtype.itemsize == 2 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128 and even


def recorder(codes: list[int], stop: int) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """A function that files a residual stream under its slot of a [len(codes) + 1, ...] buffer.

    The last slot takes what nobody asked for, so that no branch is needed.
    """
    slots = jnp.array([codes.index(code) if code in codes else len(codes) for code in range(stop + 1)], jnp.int32)

    def file(buffer: jax.Array, x: jax.Array, code: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(buffer, x, slots[code], 0) if codes else buffer

    return file


def scan_blocks(
    make: Callable[[nnx.Rngs], nnx.Module],
    stack: Params | tuple[Params, ...],
    x: jax.Array,
    stop: int,
    reads: tuple[int, ...],
    *,
    edit: Tap | None = None,
    state: Any = None,
    **inputs: Any,
) -> tuple[jax.Array, dict[int, jax.Array], Any]:
    """Runs blocks up to site code `stop`: under `lax.scan` over their indices, or one by one if they come apart.

    Args:
      make: builds the block, for its structure only. A block maps (x, state, layer, tap, **inputs) to (x, state).
      stack: the blocks' parameters, [layers, ...], or a tuple of each layer's (`unstack`).
      x: [batch, positions, d], the residual stream before the first block (site code 0).
      stop: static; the pass ends there, after an attention (odd) or a block (even).
      reads: site codes to keep, none beyond `stop`.
      edit: changes the residual stream at a site code.
      state: what is carried from block to block beside `x`, such as a key-value cache.
      **inputs: handed to every block.

    Returns:
      The residual stream at `stop`, the kept ones by site code, each [batch, positions, d], and the state.
    """
    graph, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    passed = sorted(set(reads) - {stop})  # what is read at the end needs no buffer
    file = recorder(passed, stop)
    buffer = jnp.zeros((len(passed) + 1 if passed else 0, *x.shape), x.dtype)
    edited = (lambda x, code: x) if edit is None else edit

    def run(x: jax.Array, state: Any, layer: Any, tap: Tap) -> tuple[jax.Array, Any]:
        return nnx.merge(graph, take_layer(stack, layer))(x, state, layer, tap, **inputs)

    def body(carry: tuple[jax.Array, jax.Array, Any], layer: Any) -> tuple[Any, None]:
        buffer, x, state = carry

        def tap(x: jax.Array, code: jax.Array) -> jax.Array:
            nonlocal buffer
            x = edited(x, code)
            buffer = file(buffer, x, code)
            return x

        x, state = run(x, state, layer, tap)
        return (buffer, x, state), None

    n_blocks, within = divmod(stop, 2)
    x = edited(x, jnp.int32(0))
    carry = (file(buffer, x, jnp.int32(0)), x, state)
    if isinstance(stack, tuple):
        for layer in range(n_blocks):
            carry, _ = body(carry, layer)
    else:
        carry, _ = jax.lax.scan(body, carry, jnp.arange(n_blocks))
    buffer, x, state = carry
    if within:  # only as far as the attention: the rest of the block is dead code, which the compiler drops
        streams: list[jax.Array] = []

        def tap(x: jax.Array, code: jax.Array) -> jax.Array:
            streams.append(edited(x, code))
            return streams[-1]

        _, state = run(x, state, n_blocks, tap)
        x = streams[0]
    return x, dict(zip(passed, buffer, strict=False)) | {stop: x}, state
