"""What the vision tower and the language model share: stacked blocks and the scan over them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Params = dict[str, Any]  # a nested dict of arrays
Tap = Callable[[jax.Array, jax.Array], jax.Array]  # (residual stream, site code) -> residual stream


def stacked_init(make: Callable[[nnx.Rngs], nnx.Module], n_layers: int, key: jax.Array) -> Params:
    """Parameters of `n_layers` blocks, stacked on a leading axis."""

    def one(block_key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(block_key)), nnx.Param))

    return jax.vmap(one)(jax.random.split(key, n_layers))


def take_layer(stack: Params, layer: jax.Array) -> Params:
    """Layer `layer` of a stack. Slicing the whole stack by a range would copy every weight."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), stack)


def reader(reads: tuple[int, ...], n_codes: int) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """A function that files a residual stream under its slot of a [len(reads) + 1, ...] buffer.

    The last slot takes what nobody asked for, so that no branch is needed.
    """
    slots = jnp.full((n_codes,), len(reads), jnp.int32)
    for slot, code in enumerate(reads):
        slots = slots.at[code].set(slot)

    def file(buffer: jax.Array, x: jax.Array, code: jax.Array) -> jax.Array:
        if not reads:
            return buffer
        return jax.lax.dynamic_update_index_in_dim(buffer, x, slots[code], 0)

    return file


def scan_blocks(
    make: Callable[[nnx.Rngs], nnx.Module],
    stack: Params,
    x: jax.Array,
    n_layers: int,
    reads: tuple[int, ...],
    *,
    edit: Tap | None = None,
    state: Any = None,
    **inputs: Any,
) -> tuple[jax.Array, jax.Array, Any]:
    """Runs blocks 0 to n_layers - 1 under `lax.scan` over their indices.

    Args:
      make: builds the block, for its structure only. A block maps (x, state, layer, tap, **inputs) to (x, state).
      stack: the blocks' parameters, [layers, ...].
      x: [batch, positions, d], the residual stream before the first block (site code 0).
      n_layers: a static number; a pass that only reads stops early.
      reads: site codes to keep.
      edit: changes the residual stream at a site code.
      state: what is carried from block to block beside `x`, such as a key-value cache.
      **inputs: handed to every block.

    Returns:
      The residual stream after the last block, [len(reads), batch, positions, d], and the state.
    """
    graph, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    file = reader(reads, 2 * n_layers + 1)
    buffer = jnp.zeros((len(reads) + 1 if reads else 0, *x.shape), x.dtype)

    def tapped(buffer: jax.Array, x: jax.Array, code: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x if edit is None else edit(x, code)
        return file(buffer, x, code), x

    def body(carry: tuple[jax.Array, jax.Array, Any], layer: jax.Array) -> tuple[Any, None]:
        buffer, x, state = carry

        def tap(x: jax.Array, code: jax.Array) -> jax.Array:
            nonlocal buffer
            buffer, x = tapped(buffer, x, code)
            return x

        block = nnx.merge(graph, take_layer(stack, layer))
        x, state = block(x, state, layer, tap, **inputs)
        return (buffer, x, state), None

    (buffer, x, state), _ = jax.lax.scan(body, (*tapped(buffer, x, jnp.int32(0)), state), jnp.arange(n_layers))
    return x, buffer[: len(reads)], state
