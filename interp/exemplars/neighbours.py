"""The nearest other features of every feature, by the cosine of any vectors, such as the features' activity."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from interp.exemplars.index import SplitIndex, pool_activity

# Co-activity is not computed for a feature that is active in fewer contexts of the pool.
MIN_CONTEXTS = 5
ROWS = 1024  # features compared with all others together


def nearest(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other rows of every row by cosine.

    Args:
      rows: one vector per feature. float32 [F, n]
      count: number of neighbours of each row; fewer where there are fewer others.

    Returns:
      Row numbers int32 [F, count] and cosines float32 [F, count], by falling cosine; 0 for rows of zeros.
    """
    unit = jnp.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), jnp.float32)
    n = len(rows)
    count = min(count, n - 1)
    numbers, cosines = np.empty((n, count), np.int32), np.empty((n, count), np.float32)
    for wanted in range(0, n, ROWS):
        begin = max(min(wanted, n - ROWS), 0)  # the last block overlaps, so that all have one shape
        block = slice(begin, begin + ROWS)
        cosines[block], numbers[block] = _nearest(unit, begin, min(ROWS, n), count)
    return numbers, cosines


@functools.partial(jax.jit, static_argnames=("size", "count"))
def _nearest(unit: jax.Array, begin: int, size: int, count: int) -> tuple[jax.Array, jax.Array]:
    block = jax.lax.dynamic_slice_in_dim(unit, begin, size)  # [size, n]
    cosine = jnp.matmul(block, unit.T, precision="highest")  # [size, F]
    own = jnp.arange(size)
    return jax.lax.top_k(cosine.at[own, begin + own].set(-jnp.inf), count)


def centred_activity(active: np.ndarray) -> np.ndarray:
    """One vector per feature, such that the cosine of two is the correlation of the features' activity.

    Args:
      active: which feature is active in which context. bool [contexts, F]

    Returns:
      float32 [F, contexts], zeros for features that are active in too few of the contexts, or in all.
    """
    rows = active.T.astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    rows[active.sum(0) < MIN_CONTEXTS] = 0.0
    return rows


def coactive(found: Mapping[str, SplitIndex], count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other features of every feature by correlation of activity in the pools; see `nearest`."""
    return nearest(centred_activity(pool_activity(found)), count)
