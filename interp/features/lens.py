"""What weights and co-activity say about features: promoted tokens, nearest features, families, alike explanations."""

import functools
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

_ROWS = 1024  # features compared with all others at a time
# A feature that is active in fewer contexts of the pool says nothing of what it is active together with.
LEAST_CONTEXTS = 5
# A feature belongs to another's family where the other is in this much more of its contexts than of all contexts.
LEAST_EXCESS = 0.5
# Cosine of weighted word counts from which two explanations say the same.
ALIKE = 0.8
_WORD = re.compile(r"[^\W_]+")


def nearest(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other rows of every row by cosine.

    Args:
      rows: float32 [F, n].
      count: neighbours of each row; fewer where there are fewer others.

    Returns:
      row numbers int32 [F, count] and cosines float32 [F, count], by falling cosine; 0 for rows of zeros.
    """
    unit = jnp.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), jnp.float32)
    n = len(rows)
    count = min(count, n - 1)
    numbers, cosines = np.empty((n, count), np.int32), np.empty((n, count), np.float32)
    for wanted in range(0, n, _ROWS):
        begin = max(min(wanted, n - _ROWS), 0)  # the last block overlaps, so that all have one shape
        block = slice(begin, begin + _ROWS)
        cosines[block], numbers[block] = _nearest(unit, begin, min(_ROWS, n), count)
    return numbers, cosines


@functools.partial(jax.jit, static_argnames=("size", "count"))
def _nearest(unit: jax.Array, begin: int, size: int, count: int) -> tuple[jax.Array, jax.Array]:
    block = jax.lax.dynamic_slice_in_dim(unit, begin, size)
    cosine = jnp.matmul(block, unit.T, precision="highest")  # [size, F]
    own = jnp.arange(size)
    return jax.lax.top_k(cosine.at[own, begin + own].set(-jnp.inf), count)


def activity(active: np.ndarray) -> np.ndarray:
    """Rows whose cosine is the correlation of two features' activity.

    Args:
      active: bool [contexts, F].

    Returns:
      float32 [F, contexts], zeros for features that are active in too few of the contexts, or in all.
    """
    rows = active.T.astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    rows[active.sum(0) < LEAST_CONTEXTS] = 0.0
    return rows


def parents(active: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The feature of a narrower Matryoshka prefix in whose contexts a feature is mostly active, if there is one.

    A feature that splits in a wider prefix has children whose contexts lie within its own. Of the features of narrower
    prefixes the parent is the one whose share of the child's contexts is furthest above its share of all contexts.

    Args:
      active: bool [contexts, F], of contexts drawn at random.
      group: int [F], each feature's nested group; never falling.

    Returns:
      parents int32 [F], -1 without one, and the parent's share of the child's contexts float32 [F].
    """
    n_contexts, n = active.shape
    each = active.astype(np.float32)
    count = each.sum(0)
    parent, share = np.full(n, -1, np.int32), np.zeros(n, np.float32)
    for begin in range(0, n, _ROWS):
        block = np.arange(begin, min(begin + _ROWS, n))
        within = (each[:, block].T @ each) / np.maximum(count[block], 1)[:, None]  # [block, F]
        excess = within - count / max(n_contexts, 1)
        excess[group[None] >= group[block][:, None]] = -np.inf
        best = excess.argmax(1)
        rows = np.arange(len(block))
        found = (excess[rows, best] >= LEAST_EXCESS) & (count[block] >= LEAST_CONTEXTS)
        parent[block[found]], share[block[found]] = best[found], within[rows, best][found]
    return parent, share


def alike(explanations: Sequence[str | None]) -> np.ndarray:
    """Groups explanations that say nearly the same: chains of pairs whose weighted word counts have a high cosine.

    Words are weighted by how few explanations have them (tf-idf), so that what all begin with does not count.

    Returns:
      int32 [F]: the first feature of each one's group; -1 without an explanation.
    """
    words = [sorted(set(_WORD.findall(text.lower()))) if text else [] for text in explanations]
    number: dict[str, int] = {}
    pairs = [(row, number.setdefault(word, len(number))) for row, group in enumerate(words) for word in group]
    out = np.array([row if group else -1 for row, group in enumerate(words)], np.int32)
    if not pairs:
        return out
    row, column = np.array(pairs).T
    has = sp.csr_matrix((np.ones(len(pairs)), (row, column)), shape=(len(words), len(number)))
    n = max(int((out >= 0).sum()), 1)
    weighted = has @ sp.diags(np.log((1 + n) / (1 + has.sum(0).A1)) + 1e-3)
    unit = sp.diags(1 / np.maximum(np.sqrt(weighted.multiply(weighted).sum(1).A1), 1e-12)) @ weighted
    edges = [unit[begin : begin + _ROWS] @ unit.T >= ALIKE for begin in range(0, len(words), _ROWS)]
    _, component = connected_components(sp.vstack(edges), directed=False)
    first = np.full(component.max() + 1, len(words))
    np.minimum.at(first, component, np.arange(len(words)))
    return np.where(out >= 0, first[component], -1).astype(np.int32)


def promoted(
    w_dec: np.ndarray, scale: np.ndarray, lm_head: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The tokens that each decoder row promotes and suppresses most (logit lens).

    A row goes through the final norm's weights and the unembedding; the norm's division only scales all logits alike.
    Logits are taken from their mean over the vocabulary, which no softmax sees.

    Args:
      w_dec: float32 [F, d_model].
      scale: [d_model], weights of the final norm.
      lm_head: [d_model, vocab].
      count: tokens of each.

    Returns:
      promoted token ids int32 [F, count] and their logits float32, by falling logit; suppressed ones, by rising logit.
    """
    head = jnp.asarray(lm_head, jnp.float32) * jnp.asarray(scale, jnp.float32)[:, None]
    head = head - head.mean(1, keepdims=True)
    count = min(count, head.shape[1])
    parts = [_extremes(jnp.asarray(w_dec[i : i + _ROWS]), head, count) for i in range(0, len(w_dec), _ROWS)]
    high, high_id, low, low_id = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in range(4))
    return high_id, high, low_id, -low


@functools.partial(jax.jit, static_argnames="count")
def _extremes(rows: jax.Array, head: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    logits = rows @ head  # [rows, vocab]
    return *jax.lax.top_k(logits, count), *jax.lax.top_k(-logits, count)
