"""The inference threshold that keeps exactly k features a token on average."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from sae import autoencoder

_HIGH, _LOW = 2**15, 2**16


@jax.jit
def _high_counts(params: autoencoder.Params, x: jax.Array) -> jax.Array:
    """How many positive pre-activations have each value of the upper 16 bits. int32 [2^15]"""
    bits = _bits(params, x)
    return jnp.zeros(_HIGH, jnp.int32).at[jnp.where(bits > 0, bits >> 16, _HIGH)].add(1, mode="drop")


@jax.jit
def _low_counts(params: autoencoder.Params, x: jax.Array, high: jax.Array) -> jax.Array:
    """The same for the lower 16 bits, of those with upper bits `high`. int32 [2^16]"""
    bits = _bits(params, x)
    inside = (bits > 0) & (bits >> 16 == high)
    return jnp.zeros(_LOW, jnp.int32).at[jnp.where(inside, bits & 0xFFFF, _LOW)].add(1, mode="drop")


def _bits(params: autoencoder.Params, x: jax.Array) -> jax.Array:
    z = autoencoder.pre_activations(params, x)
    return jnp.where(z > 0, jax.lax.bitcast_convert_type(z, jnp.int32), 0).reshape(-1)


def _bin_of_rank(counts: np.ndarray, rank: int) -> tuple[int, int]:
    """The bin that holds the entry of `rank` (1 = largest), and the entry's rank inside the bin."""
    at_least = np.cumsum(counts[::-1])[::-1]
    found = int(np.flatnonzero(at_least >= rank)[-1])
    return found, rank - int(at_least[found] - counts[found])


def threshold_for_l0(params: autoencoder.Params, batches: Callable[[], Iterator[np.ndarray]], k: int) -> float:
    """The threshold above which (strictly) k pre-activations a token lie, over all the given tokens.

    It is the (k n + 1)-th largest of all positive pre-activations of the n tokens, found exactly from two histograms
    of their bits, so the memory does not grow with n. It is 0 where fewer than that are positive. Ties at the cut
    are left out, so the mean can only fall short of k, and by the number of ties.

    Args:
      params: of the autoencoder.
      batches: starts a pass over the tokens, float32 [batch, d_model] each; called twice.
      k: wanted mean number of features a token.
    """
    counts, n = np.zeros(_HIGH, np.int64), 0
    for x in batches():
        counts += np.asarray(_high_counts(params, x))
        n += len(x)
    rank = k * n + 1
    if counts.sum() < rank:
        return 0.0
    high, rank = _bin_of_rank(counts, rank)
    counts = np.zeros(_LOW, np.int64)
    for x in batches():
        counts += np.asarray(_low_counts(params, x, jnp.int32(high)))
    low, _ = _bin_of_rank(counts, rank)
    return float(np.int32(high << 16 | low).view(np.float32))
