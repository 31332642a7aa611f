"""The rate of matrix products that this device reaches, which its peak on paper is not."""

import statistics
import time

import jax
import jax.numpy as jnp

_WIDTH, _TIMES, _TURNS = 8192, 10, 5


def matrix_rate(dtype: str = "bfloat16", width: int = _WIDTH) -> float:
    """Operations per second of products of two matrices, a multiply-add counted as two: the median of five turns.

    Args:
      dtype: type of the matrices, which are random: products of zeros take less power and are faster.
      width: both sides of the matrices.
    """
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (width, width), dtype) for key in keys)
    product = jax.jit(jnp.dot)
    product(a, b).block_until_ready()
    seconds = []
    for _ in range(_TURNS):
        start = time.perf_counter()
        for _ in range(_TIMES):
            last = product(a, b)
        last.block_until_ready()
        seconds.append((time.perf_counter() - start) / _TIMES)
    return 2 * width**3 / statistics.median(seconds)
