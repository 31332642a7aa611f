"""Selects the contexts that each feature is explained, scored and shown by: its exemplars.

Besides contexts in which the feature is active there are three kinds in which it is not: random ones, contexts of its
nearest other features, and other sentences of the same section in studies where it is active. The last two are hard to
distinguish from the activating ones: they share words, or patient and place.

Exemplars of the train split are shown to the explainer, exemplars of the held-out split to the scorer; studies are
split by patient, so nothing that was explained is scored.

The longer a context, the likelier it is that some token in it is active. Non-activating contexts are therefore drawn
with a probability proportional to their length; otherwise the length alone would reveal which contexts are activating.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from interp.exemplars.contexts import Contexts
from interp.exemplars.index import SPLITS, SplitIndex
from interp.exemplars.index_pass.running_index import hash_uniform

N_DECILES = 10
KINDS = ("top", "decile", "random", "nearest", "same study")
TOP, DECILE, RANDOM, NEAREST, STUDY = range(5)
NON_ACTIVATING_KINDS = KINDS[RANDOM:]
# Of the non-activating contexts shown together, half are random and a quarter of each hard kind, if there are enough.
HARD_SHARE = 4
# Candidates for each hard context that is wanted: in most of them the feature is active as well.
_CANDIDATES_PER_HARD = 3
# Features whose priorities are computed together; bounds the dense [features, pool] matrices.
_FEATURES = 256


@dataclasses.dataclass(frozen=True)
class Exemplars:
    """The exemplars of many features, ordered by feature, split, kind and decile.

    Attributes:
      feature: the feature of each exemplar. int32 [m]
      split: index into `SPLITS`. int8 [m]
      kind: index into `KINDS`. int8 [m]
      decile: 0 weakest to 9 strongest; -1 unless the kind is `DECILE`. int8 [m]
      context: context numbers. int64 [m]
    """

    feature: np.ndarray
    split: np.ndarray
    kind: np.ndarray
    decile: np.ndarray
    context: np.ndarray

    def __len__(self) -> int:
        return len(self.feature)

    def take(self, rows: np.ndarray) -> "Exemplars":
        """The exemplars at the places `rows`."""
        return Exemplars(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    @classmethod
    def joined(cls, parts: Sequence["Exemplars"]) -> "Exemplars":
        """The exemplars of all parts, in the order of the class."""
        whole = cls(
            *(np.concatenate([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(cls))
        )
        # A stable sort: the strongest stay in falling order, the others in their random order.
        return whole.take(np.lexsort((whole.decile, whole.kind, whole.split, whole.feature)))


def select(index: dict[str, SplitIndex], contexts: Contexts, n_activating: dict[str, int], seed: int) -> Exemplars:
    """Draws the exemplars of every feature, without the hard non-activating ones.

    Args:
      index: the index of every split.
      contexts: all contexts of the store.
      n_activating: for each split, the number of activating contexts to draw, the same number from each decile; as many
        non-activating ones are drawn at random.
      seed: seed of the draw.

    Returns:
      The strongest contexts, the contexts by decile (fewer where a decile holds fewer) and random non-activating ones.
      No context is drawn twice for a feature within one split and kind.
    """
    parts = []
    for split, name in enumerate(SPLITS):
        found = index[name]
        feature, column = np.nonzero(found.top_context >= 0)
        parts.append(_exemplars(feature, split, TOP, -1, found.top_context[feature, column]))
        parts.append(_by_decile(found, split, n_activating[name] // N_DECILES))
        parts.append(_random_non_activating(found, split, contexts, n_activating[name], seed))
    return Exemplars.joined(parts)


def _exemplars(feature: np.ndarray, split: int, kind: int, decile: np.ndarray | int, context: np.ndarray) -> Exemplars:
    n = len(feature)
    return Exemplars(
        feature.astype(np.int32),
        np.full(n, split, np.int8),
        np.full(n, kind, np.int8),
        np.broadcast_to(np.asarray(decile, np.int8), n).copy(),
        context.astype(np.int64),
    )


def _by_decile(found: SplitIndex, split: int, per_decile: int) -> Exemplars:
    """Divides the uniform sample of a feature into ten equal parts by activation and takes the first few of each.

    The sample is in random order, so the first few are a uniform draw.
    """
    valid = found.sample_context >= 0  # [F, n_sample]
    order = np.argsort(np.where(valid, found.sample_peak, np.inf), axis=1, kind="stable")  # [F, n_sample]
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(order.shape[1])[None], axis=1)
    decile = rank * N_DECILES // np.maximum(valid.sum(1, keepdims=True), 1)  # [F, n_sample]
    feature, column = np.nonzero(valid)  # [m]
    decile = decile[feature, column]  # [m]
    group = feature * N_DECILES + decile  # [m]
    by_group = np.argsort(group, kind="stable")
    group = group[by_group]
    within = np.arange(len(group)) - np.searchsorted(group, group)  # [m], place in its group
    rows = by_group[within < per_decile]
    context = found.sample_context[feature[rows], column[rows]]
    return _exemplars(feature[rows], split, DECILE, decile[rows], context)


def _random_non_activating(found: SplitIndex, split: int, contexts: Contexts, count: int, seed: int) -> Exemplars:
    """For each feature that is ever active, `count` contexts of the pool without activation, or all that there are."""
    n_features = found.pool_active.shape[1]
    # The largest u^(1 / weight) are a weighted draw without replacement (Efraimidis and Spirakis 2006).
    power = np.float32(1) / contexts.length[found.pool].astype(np.float32)  # [pool]
    count = min(count, len(found.pool))
    feature, context = [], []
    for begin in range(0, n_features, _FEATURES):
        block = np.arange(begin, min(begin + _FEATURES, n_features))
        priority = hash_uniform(found.pool[None], block[:, None], seed + 1) ** power  # [features, pool]
        priority = np.where(found.pool_active[:, block].T, np.float32(-1), priority)
        order = np.argsort(-priority, axis=1, kind="stable")[:, :count]  # [features, count]
        not_active = np.take_along_axis(priority, order, axis=1) >= 0  # [features, count]
        drawn = not_active & (found.n_contexts[block] > 0)[:, None]
        feature.append(np.broadcast_to(block[:, None], drawn.shape)[drawn])
        context.append(found.pool[order[drawn]])
    return _exemplars(np.concatenate(feature), split, RANDOM, -1, np.concatenate(context))


def hard_candidates(
    index: dict[str, SplitIndex], similar: np.ndarray, contexts: Contexts, n_activating: dict[str, int], seed: int
) -> Exemplars:
    """Contexts of the hard kinds, whether or not the feature is active in them, which the index does not tell.

    Args:
      index: the index of every split.
      similar: each feature's nearest other features. int32 [F, neighbours]
      contexts: all contexts of the store.
      n_activating: for each split, the number of activating contexts that `select` draws.
      seed: seed of the draw.

    Returns:
      Contexts of the kinds `NEAREST` and `STUDY`, more than are wanted, in random order for each feature.
    """
    parts = []
    for split, name in enumerate(SPLITS):
        wanted = _CANDIDATES_PER_HARD * n_activating[name] // HARD_SHARE
        for kind, pairs in (
            (NEAREST, _of_neighbours(index[name], similar, wanted)),
            (STUDY, _of_same_study(index[name], contexts, wanted, seed)),
        ):
            feature, context = _without_repeats(*pairs)
            parts.append(_exemplars(feature, split, kind, -1, context))
    return Exemplars.joined(parts)


def _of_neighbours(found: SplitIndex, similar: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (feature, context): equally many sampled contexts of each of the feature's neighbours."""
    each = min(-(-wanted // max(similar.shape[1], 1)), found.sample_context.shape[1])
    context = found.sample_context[similar, :each].swapaxes(1, 2)  # [F, each, neighbours]: the neighbours in turn
    feature = np.broadcast_to(np.arange(len(similar))[:, None, None], context.shape)
    real = (context >= 0) & (found.n_contexts > 0)[:, None, None]
    return feature[real], context[real].astype(np.int64)


def _of_same_study(found: SplitIndex, contexts: Contexts, wanted: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (feature, context): another context of the same study and section as each of its sampled ones."""
    begin, end = contexts.section_runs()
    feature, column = np.nonzero(found.sample_context[:, :wanted] >= 0)  # [m]
    active = found.sample_context[feature, column].astype(np.int64)  # [m]
    first, length = contexts.start[begin[active]], contexts.length[active]
    last = end[active] - 1
    others = contexts.start[last] + contexts.length[last] - first - length  # [m], tokens of the section's others
    # One token of the others: the rows from the active context on are moved by its length.
    row = first + (hash_uniform(active, feature, seed + 2) * others).astype(np.int64)  # [m]
    row += np.where(row >= contexts.start[active], length, 0)
    real = others > 0
    return feature[real], np.searchsorted(contexts.start, row[real], side="right") - 1


def _without_repeats(feature: np.ndarray, context: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first of each equal pair, in their order."""
    _, first = np.unique(feature * (context.max(initial=0) + 1) + context, return_index=True)
    first.sort()
    return feature[first], context[first]


def non_activating_only(candidates: Exemplars, active: np.ndarray, n_activating: dict[str, int]) -> Exemplars:
    """The hard candidates in which the feature is not active, of each kind at most as many as are wanted.

    Args:
      candidates: what `hard_candidates` gave.
      active: whether the feature is active in each of them. bool [candidates]
      n_activating: for each split, the number of activating contexts that `select` draws.
    """
    found = candidates.take(np.flatnonzero(~active))
    limit = np.array([n_activating[name] // HARD_SHARE for name in SPLITS])[found.split]  # [m]
    group = (found.feature.astype(np.int64) * len(SPLITS) + found.split) * len(KINDS) + found.kind  # [m]
    within = np.arange(len(group)) - np.searchsorted(group, group)  # [m], place in its group
    return found.take(np.flatnonzero(within < limit))


def shown_non_activating(rows: Iterable[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """The non-activating rows of a feature that are shown together: hard ones of each kind, the rest random.

    Args:
      rows: rows of exemplars.parquet, of one feature and split.
      count: the largest number of rows to show.
    """
    by_kind: dict[str, list[Mapping[str, Any]]] = {kind: [] for kind in (*KINDS[NEAREST:], KINDS[RANDOM])}
    for row in rows:
        if row["kind"] in by_kind:
            by_kind[row["kind"]].append(row)
    shown: dict[tuple[str, int], Mapping[str, Any]] = {}  # by place: a context may be of several kinds
    for kind, found in by_kind.items():
        limit = count if kind == KINDS[RANDOM] else len(shown) + count // HARD_SHARE
        for row in found:
            if len(shown) < limit:
                shown.setdefault((row["study_id"], row["position"]), row)
    return list(shown.values())
