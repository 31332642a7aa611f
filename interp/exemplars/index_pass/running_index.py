"""What devices hold of one split's index while the pass runs. Features are the last axis of every array.

Nothing that is kept of a feature depends on another feature, so each device keeps some of the features and adds every
block to them: the devices never wait for each other.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from interp.exemplars.index_pass import streaming_top_k
from interp.exemplars.index_pass.streaming_top_k import StreamingTopK
from maira_jax.inputs.tokens import Kind

# Half octaves, 2^-10 to 2^14, around any scale of residual stream; the outer bins are open.
EDGES = 2.0 ** (np.arange(-20, 29) / 2)
N_KINDS = len(Kind)
# Counters are int32 on the device; before one could overflow, all are added to int64 totals of the host.
COUNTERS = ("n_contexts", "n_tokens", "position_sum", "histogram")
NO_PEAK, NO_PRIORITY = 0.0, -1.0


@dataclasses.dataclass(frozen=True)
class IndexConfig:
    """Sizes of the pass.

    Attributes:
      n_top: number of strongest contexts kept for each feature and split.
      n_sample: size of the uniform sample of activating contexts for each feature and split.
      n_pool: number of contexts of each split whose activity is kept for all features; non-activating contexts are
        drawn from them.
      block_tokens: number of tokens encoded at a time, at most 2^15.
      seed: seed of the samples.
    """

    n_top: int
    n_sample: int
    n_pool: int
    block_tokens: int
    seed: int


class RunningIndex(NamedTuple):
    """One split's index of F features so far.

    Attributes:
      top: contexts by peak activation, with the value "context".
      sample: contexts by random priority, with the values "context" and "peak".
      n_contexts: number of contexts in which each feature is active, since the counters were last drained. int32 [F]
      n_tokens: number of tokens on which it is active, by kind. int32 [kinds, F]
      position_sum: sum of those tokens' positions. int32 [F]
      histogram: peak activations of the activating contexts, by bin. int32 [len(EDGES) + 1, F]
      pool_active: whether each feature is active in each context of the pool. bool [n_pool, F]
    """

    top: StreamingTopK
    sample: StreamingTopK
    n_contexts: jax.Array
    n_tokens: jax.Array
    position_sum: jax.Array
    histogram: jax.Array
    pool_active: jax.Array

    @classmethod
    def empty(cls, cfg: IndexConfig, n_features: int) -> "RunningIndex":
        """The index of no contexts."""
        context, peak = (-1, jnp.int32), (0, jnp.float32)
        return cls(
            top=streaming_top_k.empty(n_features, cfg.n_top, NO_PEAK, {"context": context}),
            sample=streaming_top_k.empty(n_features, cfg.n_sample, NO_PRIORITY, {"context": context, "peak": peak}),
            n_contexts=jnp.zeros(n_features, jnp.int32),
            n_tokens=jnp.zeros((N_KINDS, n_features), jnp.int32),
            position_sum=jnp.zeros(n_features, jnp.int32),
            histogram=jnp.zeros((len(EDGES) + 1, n_features), jnp.int32),
            pool_active=jnp.zeros((cfg.n_pool, n_features), bool),
        )


def hash_uniform(context: Any, feature: Any, seed: int) -> Any:
    """Pseudo-random numbers in [0, 1) in steps of 2^-24, for NumPy and JAX arrays alike.

    Args:
      context, feature: integer arrays that broadcast against each other.
      seed: seed of the numbers.
    """
    h = context.astype(np.uint32) * np.uint32(0x9E3779B1) ^ (
        feature.astype(np.uint32) * np.uint32(0x85EBCA77) + np.uint32((seed * 0x27D4EB2F) % 2**32)
    )
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # the finalizer of MurmurHash3
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    return ((h ^ (h >> np.uint32(16))) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)
