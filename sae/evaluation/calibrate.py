"""The inference threshold, above which k features per token are active on average."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from sae import autoencoder
from sae.kernels import kth_largest
from sae.kernels.kth_largest import Search

# Bit patterns counted one by one: two octaves, of 2^23 floats each.
_BINS = 2**24


@functools.partial(jax.jit, donate_argnums=0)
def _add_counts(counts: jax.Array, params: autoencoder.Params, x: jax.Array, lowest: jax.Array) -> jax.Array:
    """Adds the number of positive pre-activations of `x [B, d]` for each bit pattern from `lowest` on.

    The first and the last bin hold all that lie below and above. int32 [_BINS + 2]
    """
    z = autoencoder.pre_activations(params, x)  # [B, F]
    bits = jnp.where(z > 0, jax.lax.bitcast_convert_type(z, jnp.int32), 0).reshape(-1)  # [B * F]
    return counts.at[jnp.clip(bits - lowest + 1, 0, _BINS + 1)].add(1)


@functools.partial(jax.jit, static_argnames="k")
def _threshold_bits(params: autoencoder.Params, x: jax.Array, k: int) -> jax.Array:
    """The bit pattern of the threshold of one batch `x [B, d]`. int32 []"""
    z = autoencoder.pre_activations(params, x)  # [B, F]
    threshold = kth_largest.kth_largest(z, k * x.shape[0] + 1, Search(jax.default_backend() == "cpu"))
    return jax.lax.bitcast_convert_type(threshold, jnp.int32)


def threshold_for_l0(params: autoencoder.Params, batches: Callable[[], Iterator[np.ndarray]], k: int) -> float:
    """The threshold above which (strictly) k pre-activations per token lie on average, over all the given tokens.

    It is exactly the (k n + 1)-th largest of all positive pre-activations of the n tokens, and 0 where fewer than that
    are positive. Pre-activations that equal the threshold are not kept, so the mean can only fall short of k.

    One pass counts how often each float within a factor of about 2 of the first batch's own threshold occurs, so the
    memory does not grow with n. If the threshold lies outside this range, the pass is repeated in the next range.

    Args:
      params: the parameters of the autoencoder.
      batches: starts a pass over the tokens and gives them in batches, float32 [B, d] each.
      k: mean number of active features per token.
    """
    lowest = max(int(_threshold_bits(params, jnp.asarray(next(batches())), k)) - _BINS // 2, 1)
    while True:
        device = jnp.zeros(_BINS + 2, jnp.int32)
        counts, pending, n = np.zeros(_BINS + 2, np.int64), 0, 0
        for x in batches():
            entries = len(x) * params["b_enc"].shape[0]
            if pending + entries >= 2**31:  # the device counts in int32
                counts += np.asarray(device)
                device, pending = jnp.zeros_like(device), 0
            device = _add_counts(device, params, jnp.asarray(x), jnp.int32(lowest))
            pending, n = pending + entries, n + len(x)
        counts += np.asarray(device)
        at_least = np.cumsum(counts[::-1])[::-1]
        found = int((at_least >= k * n + 1).sum()) - 1  # the bin of the (k n + 1)-th largest
        if 1 <= found <= _BINS:
            return float(np.int32(lowest + found - 1).view(np.float32))
        if found <= 0 and lowest == 1:
            return 0.0
        lowest = max(lowest + (_BINS if found > _BINS else -_BINS), 1)
