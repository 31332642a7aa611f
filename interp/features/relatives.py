"""Which features are related: as parent and child, and by near-duplicate explanations."""

import re
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from interp.exemplars.neighbours import MIN_CONTEXTS, ROWS
from maira_jax.studies.study import SIDES, ZONES

# A parent is active in a share of the child's contexts that is larger than its share of all contexts by this much.
MIN_EXCESS = 0.5
# Explanations are near-duplicates from this cosine of their weighted word counts.
MIN_COSINE = 0.8
# One of these words more or less makes an explanation say something else, however many other words two have in common.
_TELLING = frozenset((*SIDES, "bilateral", *ZONES, "middle", "no", "not", "without", "normal"))
_WORD = re.compile(r"[^\W_]+")


def parents(active: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The feature of a narrower Matryoshka prefix in whose contexts a feature is mainly active, if there is one.

    A feature that splits in a wider prefix has children whose contexts lie within its own. Of the features of narrower
    prefixes the parent is the one whose share of the child's contexts is furthest above its share of all contexts.

    Args:
      active: which feature is active in which of the contexts, which are drawn at random. bool [contexts, F]
      group: the nested group of each feature; never falling. int [F]

    Returns:
      Parents int32 [F], -1 without one, and the parent's share of the child's contexts float32 [F].
    """
    n_contexts, n = active.shape
    each = active.astype(np.float32)  # [contexts, F]
    count = each.sum(0)  # [F]
    parent, share = np.full(n, -1, np.int32), np.zeros(n, np.float32)
    for begin in range(0, n, ROWS):
        block = np.arange(begin, min(begin + ROWS, n))
        within = (each[:, block].T @ each) / np.maximum(count[block], 1)[:, None]  # [block, F]
        excess = within - count / max(n_contexts, 1)  # [block, F]
        excess[group[None] >= group[block][:, None]] = -np.inf
        best = excess.argmax(1)
        rows = np.arange(len(block))
        found = (excess[rows, best] >= MIN_EXCESS) & (count[block] >= MIN_CONTEXTS)
        parent[block[found]], share[block[found]] = best[found], within[rows, best][found]
    return parent, share


def _words(text: str | None) -> set[str]:
    return set(_WORD.findall(text.lower())) if text else set()


def telling_words(texts: Sequence[str | None]) -> np.ndarray:
    """Which words of side, zone and negation each text has, as a number that equal choices share. int32 [texts]"""
    chosen = [frozenset(_words(text) & _TELLING) for text in texts]
    number = {words: i for i, words in enumerate(dict.fromkeys(chosen))}
    return np.array([number[words] for words in chosen], np.int32)


def weighted_words(texts: Sequence[str | None]) -> sp.csr_matrix:
    """The words of each text, weighted by inverse document frequency: those with which all begin do not count.

    Returns:
      Rows of length 1, or of zeros without words. float64 [texts, words]
    """
    words = [sorted(_words(text)) for text in texts]
    number: dict[str, int] = {}
    pairs = [(row, number.setdefault(word, len(number))) for row, group in enumerate(words) for word in group]
    row, column = np.array(pairs, int).reshape(-1, 2).T
    has = sp.csr_matrix((np.ones(len(pairs)), (row, column)), shape=(len(words), max(len(number), 1)))
    n = max(sum(map(bool, words)), 1)
    weighted = has @ sp.diags(np.log((1 + n) / (1 + has.sum(0).A1)) + 1e-3)
    return sp.diags(1 / np.maximum(np.sqrt(weighted.multiply(weighted).sum(1).A1), 1e-12)) @ weighted


def near_duplicates(explanations: Sequence[str | None]) -> np.ndarray:
    """Groups near-duplicate explanations: chains of pairs whose `weighted_words` have a high cosine.

    Words of side, zone and negation must be the same: findings on the left are not those on the right.

    Args:
      explanations: the explanation of each feature; None without one.

    Returns:
      The first feature of each feature's group; -1 without an explanation. int32 [F]
    """
    unit = weighted_words(explanations)
    out = np.where(unit.getnnz(axis=1) > 0, np.arange(len(explanations)), -1).astype(np.int32)
    if not len(out):
        return out
    edges = sp.vstack([unit[begin : begin + ROWS] @ unit.T >= MIN_COSINE for begin in range(0, len(out), ROWS)]).tocoo()
    telling = telling_words(explanations)
    same = telling[edges.row] == telling[edges.col]
    alike = sp.coo_matrix((edges.data[same], (edges.row[same], edges.col[same])), shape=edges.shape)
    _, component = connected_components(alike, directed=False)
    first = np.full(component.max() + 1, len(out))
    np.minimum.at(first, component, np.arange(len(out)))
    return np.where(out >= 0, first[component], -1).astype(np.int32)
