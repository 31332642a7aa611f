"""The inference threshold that keeps exactly k features a token on average."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from sae import autoencoder
from sae.kernels import kth_largest

# Bit patterns counted one by one: two octaves, of 2^23 floats each.
_BINS = 2**24


@functools.partial(jax.jit, donate_argnums=0)
def _add_counts(counts: jax.Array, params: autoencoder.Params, x: jax.Array, lowest: jax.Array) -> jax.Array:
    """Adds how many positive pre-activations of `x [batch, d_model]` have each bit pattern from `lowest` on.

    Bins 0 and the last hold all that lie below and above. int32 [_BINS + 2]
    """
    z = autoencoder.pre_activations(params, x)
    bits = jnp.where(z > 0, jax.lax.bitcast_convert_type(z, jnp.int32), 0).reshape(-1)
    return counts.at[jnp.clip(bits - lowest + 1, 0, _BINS + 1)].add(1)


@functools.partial(jax.jit, static_argnames="k")
def _guess(params: autoencoder.Params, x: jax.Array, k: int) -> jax.Array:
    """Bits of the cut of one batch. int32 []"""
    z = autoencoder.pre_activations(params, x)
    cut = kth_largest.kth_largest(z, k * x.shape[0] + 1, kth_largest.default_method(1))
    return jax.lax.bitcast_convert_type(cut, jnp.int32)


def threshold_for_l0(params: autoencoder.Params, batches: Callable[[], Iterator[np.ndarray]], k: int) -> float:
    """The threshold above which (strictly) k pre-activations a token lie, over all the given tokens.

    It is the (k n + 1)-th largest of all positive pre-activations of the n tokens, exactly, and 0 where fewer than
    that are positive. Ties at the cut are left out, so the mean can only fall short of k, and by the number of ties.

    One pass counts how often each float within a factor of about 2 of the first batch's own threshold occurs, so the
    memory does not grow with n. Should the threshold lie further off, the pass is repeated around where it does lie.

    Args:
      params: of the autoencoder.
      batches: starts a pass over the tokens, float32 [batch, d_model] each.
      k: wanted mean number of features a token.
    """
    lowest = max(int(_guess(params, jnp.asarray(next(batches())), k)) - _BINS // 2, 1)
    while True:
        device = jnp.zeros(_BINS + 2, jnp.int32)
        counts, pending, n = np.zeros(_BINS + 2, np.int64), 0, 0
        for x in batches():
            entries = len(x) * params["b_enc"].shape[0]
            if pending + entries >= 2**31:  # of int32, in which the device counts
                counts += np.asarray(device)
                device, pending = jnp.zeros_like(device), 0
            device = _add_counts(device, params, jnp.asarray(x), jnp.int32(lowest))
            pending, n = pending + entries, n + len(x)
        counts += np.asarray(device)
        at_least = np.cumsum(counts[::-1])[::-1]
        found = int((at_least >= k * n + 1).sum()) - 1  # the bin of the wanted rank
        if 1 <= found <= _BINS:
            return float(np.int32(lowest + found - 1).view(np.float32))
        if found <= 0 and lowest == 1:
            return 0.0
        lowest = max(lowest + (_BINS if found > _BINS else -_BINS), 1)
