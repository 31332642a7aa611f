"""The largest of each feature's activations in each context of a block."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

# Rows of a TPU's vector register, and features that one step of the kernel takes: 8 MiB of a block of 4,096 tokens.
_ROWS, _FEATURES = 8, 512


def context_peaks(f: jax.Array, slot: jax.Array, n_contexts: int, max_length: int) -> jax.Array:
    """The largest activations in each context, 0 in unused places.

    Args:
      f: activations, none below 0. float32 [T, F]
      slot: the place of each token's context, never falling; `n_contexts` in padding. int32 [T]
      n_contexts: number of places C.
      max_length: number of tokens of the longest context.

    Returns:
      float32 [C, F]
    """
    at = slot[:, None]  # [T, 1]
    first = (at < jnp.arange(n_contexts)).sum(0, dtype=jnp.int32)  # [C], each context's first token
    length = (at == jnp.arange(n_contexts)).sum(0, dtype=jnp.int32)  # [C]
    by_doubling = functools.partial(_by_doubling, max_length=max_length)
    return lax.platform_dependent(f, slot, first, length, tpu=_on_tpu, default=by_doubling)


def _by_doubling(f: jax.Array, slot: jax.Array, first: jax.Array, length: jax.Array, max_length: int) -> jax.Array:
    """Each token takes the maximum of itself and of later ones of its context, of twice as many each time."""
    for power in range((max_length - 1).bit_length()):
        ahead = 1 << power
        same = slot[:-ahead] == slot[ahead:]  # [T - ahead]
        later = jnp.where(same[:, None], f[ahead:], 0.0)  # [T - ahead, F]
        f = jnp.maximum(f, jnp.pad(later, ((0, ahead), (0, 0))))  # [T, F]
    return jnp.where((length > 0)[:, None], f.at[first].get(mode="clip"), 0.0)  # [C, F]


def _on_tpu(f: jax.Array, slot: jax.Array, first: jax.Array, length: jax.Array, interpret: bool = False) -> jax.Array:
    """A kernel that reads the activations once; XLA would move all of them by single rows, many times."""
    del slot
    n_tokens, n_features = f.shape
    width = min(_FEATURES, n_features)

    def columns(i: jax.Array, *_: jax.Array) -> tuple[int, jax.Array]:
        return 0, i

    return pl.pallas_call(
        _kernel,
        out_shape=jax.ShapeDtypeStruct((len(first), n_features), f.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(pl.cdiv(n_features, width),),
            in_specs=[pl.BlockSpec((n_tokens, width), columns)],
            out_specs=pl.BlockSpec((len(first), width), columns),
        ),
        # Two of each block, since one is copied while the other is used, and some room.
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=3 * width * (n_tokens + len(first)) * f.dtype.itemsize),
        interpret=interpret,
    )(first, length, f)


def _kernel(first_ref: jax.Array, length_ref: jax.Array, f_ref: jax.Array, peak_ref: jax.Array) -> None:
    """Some features of all contexts: a context's tokens are read by whole registers, others' rows in them masked."""
    shape = (_ROWS, f_ref.shape[1])
    row = lax.broadcasted_iota(jnp.int32, shape, 0)

    def of_context(number: jax.Array, _: None) -> None:
        begin = first_ref[number]
        end = begin + length_ref[number]

        def of_register(register: jax.Array, largest: jax.Array) -> jax.Array:
            start = pl.multiple_of(register * _ROWS, _ROWS)
            own = (row + start >= begin) & (row + start < end)  # [rows, width]
            return jnp.maximum(largest, jnp.where(own, f_ref[pl.ds(start, _ROWS), :], 0.0))

        registers = (lax.div(begin, _ROWS), lax.div(end + _ROWS - 1, _ROWS))
        largest = lax.fori_loop(*registers, of_register, jnp.zeros(shape, f_ref.dtype))  # [rows, width]
        peak_ref[pl.ds(number, 1), :] = largest.max(0, keepdims=True)

    lax.fori_loop(0, peak_ref.shape[0], of_context, None)
