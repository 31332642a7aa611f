"""The inference threshold, above which k features per token are active on average."""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sae import autoencoder, mesh
from sae.evaluation.striped import HeldOutTokens, StripedSae, TokenBatch
from sae.kernels import kth_largest
from sae.kernels.kth_largest import Search

# The patterns counted in a pass around a guess: its neighbours, then distances that grow threefold, and some spread
# evenly over all that are possible, which find the threshold in at most 8 passes wherever it lies.
_NEAR = range(-8, 9)
_FAR = [sign * 8 * 3**i for i in range(1, 17) for sign in (-1, 1)]
_EVEN = 14
_BOUNDS = len(_NEAR) + len(_FAR) + _EVEN
_ABOVE_ALL = int(np.float32(np.inf).view(np.int32)) + 1
# Rows in which one CPU counts at a time.
_CPU_ROWS = 8
# Batches that may be on their way to a device.
_IN_FLIGHT = 2


def _positive(sae: StripedSae, batch: TokenBatch) -> jax.Array:
    """The positive pre-activations of a batch, and 0 everywhere else. [B, F]"""
    z = autoencoder.pre_activations(sae.params, batch.x.astype(jnp.float32))  # [B, F]
    return jnp.where((z > 0) & batch.holds_token()[:, None], z, 0.0)


@functools.partial(jax.jit, static_argnames="count")
def of_batch(sae: StripedSae, batch: TokenBatch, count: int) -> jax.Array:
    """The `count`-th largest positive pre-activation of a batch; 0 if there are fewer. float32 []"""
    return kth_largest.kth_largest(_positive(sae, batch), count, Search(candidates=sae.on_one_cpu))


@jax.jit
def _counts(sae: StripedSae, batch: TokenBatch, bounds: jax.Array) -> jax.Array:
    """How many positive pre-activations of a batch have a bit pattern of at least each of `bounds [M]`. int32 [M]"""
    bits = lax.bitcast_convert_type(_positive(sae, batch), jnp.int32)  # [B, F]

    def count(rows: jax.Array, dtype: type) -> jax.Array:
        return (rows >= bounds[:, None, None]).sum((1, 2), dtype=dtype).astype(jnp.int32)  # [M]

    if not sae.on_one_cpu:
        return count(bits, jnp.int32)
    # One CPU counts in float32, which is exact up to 2^24 and twice as fast, and in rows that its cache holds.
    parts = bits.reshape(-1, _CPU_ROWS, bits.shape[1])  # [parts, rows, F]
    return lax.map(functools.partial(count, dtype=jnp.float32), parts).sum(0)


def threshold_for_l0(sae: StripedSae, tokens: Sequence[HeldOutTokens], k: int) -> float:
    """The threshold above which (strictly) k pre-activations per token lie on average, over all the given tokens.

    It is exactly the (k n + 1)-th largest of all positive pre-activations of the n tokens, and 0 where fewer than that
    are positive. Pre-activations that equal the threshold are not kept, so the mean can only fall short of k.

    For positive floats the bit patterns are ordered as the values, so the threshold is an integer search by counts,
    which begins at the first batch's own threshold and narrows by interpolation: three or four passes over the tokens.

    Args:
      sae: the autoencoder; its threshold for at most k features per token is not looked at.
      tokens: the tokens.
      k: mean number of active features per token.
    """
    wanted = k * sum(part.n for part in tokens) + 1
    batches = itertools.chain.from_iterable(tokens)
    first = next(batches)
    own = of_batch(sae, first, k * int(first.used) + 1)
    if sum(part.n_batches for part in tokens) == 1:
        return float(own)
    del batches, first
    guess = int(np.asarray(own).view(np.int32))
    low, high, above_low, above_high = 0, _ABOVE_ALL, None, 0
    while high - low > 1:
        bounds = _bounds(guess, low, high)
        counts = _count_all(sae, tokens, bounds)
        inside = int((counts >= wanted).sum())  # counts fall from bound to bound
        if inside:
            low, above_low = int(bounds[inside - 1]), int(counts[inside - 1])
        if inside < _BOUNDS:
            high, above_high = int(bounds[inside]), int(counts[inside])
        share = 0.5 if above_low is None else (above_low - wanted) / (above_low - above_high)
        guess = low + int(share * (high - low))
    return float(np.int32(low).view(np.float32))


def _bounds(guess: int, low: int, high: int) -> np.ndarray:
    """Ascending bit patterns between `low` and `high`, both excluded. int32 [_BOUNDS]"""
    even = [low + (high - low) * i // (_EVEN + 1) for i in range(1, _EVEN + 1)]
    return np.sort(np.clip([*(guess + offset for offset in (*_NEAR, *_FAR)), *even], low + 1, high - 1)).astype(
        np.int32
    )


def _count_all(sae: StripedSae, tokens: Sequence[HeldOutTokens], bounds: np.ndarray) -> np.ndarray:
    """How many positive pre-activations of all tokens have at least each bit pattern. int64 [M]"""
    placed = jax.device_put(bounds, mesh.sharding(sae.on))
    total, pending = np.zeros(len(bounds), np.int64), []
    for batch in itertools.chain.from_iterable(tokens):
        pending.append(_counts(sae, batch, placed))
        if len(pending) > _IN_FLIGHT:
            total += np.asarray(pending.pop(0))
    return total + sum(np.asarray(counts, np.int64) for counts in pending)
