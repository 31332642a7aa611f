"""The activations of single features on the tokens of single contexts, computed again from the stored activations.

Only the encoder columns that are asked for are multiplied, so the cost is that of the exemplars, not of all tokens.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from interp.exemplars.contexts import Contexts
from interp.exemplars.corpus import Corpus
from maira_jax.run.progress import progress
from sae.activations.store import ActivationRows
from sae.autoencoder import Params, Sae, pre_activations

# The largest arrays of gathered activations and encoder columns, in float32 elements (64 MiB).
_MAX_ELEMENTS = 1 << 24
# Features encoded together on a context, so that its activations are gathered once for all of them.
_GROUP_SIZE = 16
# Contexts that are at most this many rows apart are read from the store together.
_MAX_GAP = 255


def token_activations(sae: Sae, corpus: Corpus, feature: np.ndarray, context: np.ndarray) -> np.ndarray:
    """The activations of a feature on the tokens of a context, for m pairs of a feature and a context.

    Args:
      sae: autoencoder of raw activations.
      corpus: the contexts and their activations.
      feature, context: the numbers of each pair. [m]

    Returns:
      float32 [m, L], zeros past a context's end, where L is the length of the longest context.
    """
    contexts = corpus.contexts
    length = int(contexts.length.max(initial=1))
    out = np.zeros((len(feature), length), np.float32)
    by_context = np.argsort(context, kind="stable")
    group, place = _groups(context[by_context])  # [m]
    n_groups = int(group[-1]) + 1 if len(group) else 0
    batch = max(_MAX_ELEMENTS // ((length + _GROUP_SIZE) * sae.d_model), 1)  # groups
    threshold = np.broadcast_to(np.asarray(sae.threshold, np.float32), sae.n_features)
    weights = {"encoder": sae.params["W_enc"].T, "bias": sae.params["b_enc"], "b_dec": sae.params["b_dec"]}
    for begin in progress(range(0, n_groups, batch), unit="batch", desc="interpret: tokens"):
        low, high = np.searchsorted(group, (begin, begin + batch))
        pairs, row, slot = by_context[low:high], group[low:high] - begin, place[low:high]
        x, rows, real = _gather(corpus.store, contexts, context[pairs[slot == 0]], batch, length)
        numbers = np.zeros((batch, _GROUP_SIZE), np.int32)
        numbers[row, slot] = feature[pairs]
        cutoff = np.maximum(threshold[numbers][..., None], _top_k_cutoff(sae, x)[rows][:, None])  # [batch, group, L]
        values = np.asarray(_encode_groups(**weights, cutoff=cutoff, x=x[rows], feature=numbers))  # [batch, group, L]
        out[pairs] = values[row, slot] * real[row]
    return out


def _groups(context: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Groups pairs of one context, at most `_GROUP_SIZE` together.

    Args:
      context: the context of each pair, sorted. [m]

    Returns:
      The number of each pair's group int64 [m], never falling, and the pair's place in it int64 [m].
    """
    first = np.searchsorted(context, context)  # [m], the pair at which its context begins
    place = (np.arange(len(context)) - first) % _GROUP_SIZE
    return np.cumsum(place == 0) - 1, place


def _gather(
    store: ActivationRows, contexts: Contexts, numbers: np.ndarray, batch: int, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads the activations of contexts.

    Args:
      store: the activations.
      contexts: all contexts of the store.
      numbers: context numbers, sorted, at most `batch`; a number may be repeated.
      batch: number of contexts in the result.
      length: length of the longest context.

    Returns:
      The activations, each row once [n, d_model]; for each context its tokens' rows in them int64 [batch, length]; and
      which of these are real, 0.0 or 1.0 [batch, length].
    """
    unique, place = np.unique(numbers, return_inverse=True)
    parts, begin = [], 0
    while begin < len(unique):
        stop = begin + 1
        while stop < len(unique) and contexts.start[unique[stop]] - _end(contexts, unique[stop - 1]) <= _MAX_GAP:
            stop += 1
        start, end = int(contexts.start[unique[begin]]), _end(contexts, unique[stop - 1])
        rows, _ = contexts.rows(unique[begin:stop])
        parts.append(store.read(start, end)[rows - start])
        begin = stop
    offsets = np.concatenate([[0], np.cumsum(contexts.length[unique])])
    step = np.arange(length)
    n = len(numbers)
    real = np.zeros((batch, length), np.float32)
    rows = np.zeros((batch, length), np.int64)
    real[:n] = step < contexts.length[numbers][:, None]
    rows[:n] = np.where(real[:n] > 0, offsets[place][:, None] + step, 0)
    return np.concatenate(parts), rows, real


def _end(contexts: Contexts, number: int) -> int:
    return int(contexts.start[number] + contexts.length[number])


@jax.jit
def _encode_groups(
    encoder: jax.Array,
    bias: jax.Array,
    b_dec: jax.Array,
    cutoff: jax.Array,
    x: jax.Array,
    feature: jax.Array,
) -> jax.Array:
    """Activations of G features on each of B contexts of L tokens, 0 at or below the cut-off.

    Args:
      encoder: [F, d_model]
      bias: [F]
      b_dec: [d_model]
      cutoff: [B, G, L]
      x: [B, L, d_model]
      feature: int32 [B, G]

    Returns:
      float32 [B, G, L]
    """
    products = jnp.einsum("bgd,bld->bgl", encoder[feature], x - b_dec, precision=lax.Precision.HIGHEST)  # [B, G, L]
    z = products + bias[feature][..., None]  # [B, G, L]
    return jnp.where(z > cutoff, z, 0.0)  # [B, G, L]


def _top_k_cutoff(sae: Sae, x: np.ndarray) -> np.ndarray:
    """What an activation must exceed, besides its threshold, to be kept on each row of `x [n, d_model]`. float32 [n]"""
    if sae.top_k is None:
        return np.zeros(len(x), np.float32)
    block = min(max(_MAX_ELEMENTS // sae.n_features, 1), 4096)  # a fixed number, so that it is compiled once
    blocks = np.pad(x, ((0, -len(x) % block), (0, 0))).reshape(-1, block, x.shape[1])  # [blocks, block, d_model]
    kth = np.concatenate([np.asarray(_kth_largest(sae.params, part, sae.top_k)) for part in blocks])[: len(x)]  # [n]
    # A little below the last one kept: the same product is summed in another order.
    return kth * np.float32(1 - 1e-5)


@functools.partial(jax.jit, static_argnames="k")
def _kth_largest(params: Params, x: jax.Array, k: int) -> jax.Array:
    """The k-th largest activation of each row of `x [n, d_model]`, before thresholds. [n]"""
    return jax.lax.top_k(jax.nn.relu(pre_activations(params, x)), k)[0][:, -1]
