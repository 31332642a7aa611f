"""Chooses each feature's exemplars from the index and writes them, with their tokens, to a parquet file.

Besides contexts in which it is active there are three kinds in which it is silent: random ones, contexts of its nearest
other features, and other sentences of the same section in studies where it is active. The last two are hard to tell
from the activating ones: they share words, or patient and place.

Exemplars of the train split are shown to the explainer, exemplars of the held-out split to the scorer; studies are
split by patient, so nothing that was explained is scored.

The longer a context, the likelier it is that some token in it is active. So silent contexts are drawn by their tokens:
each as likely as it is long. Otherwise the length alone would tell which contexts are activating.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interp.exemplars.contexts import SECTION_NAMES, Contexts
from interp.exemplars.corpus import Corpus
from interp.exemplars.index import SPLITS, SplitIndex, hashed
from maira_jax.inputs.tokens import Kind
from maira_jax.run import files
from maira_jax.run.progress import progress
from sae.activations.store import ActivationRows
from sae.autoencoder import Params, Sae, pre_activations

N_DECILES = 10
KINDS = ("top", "decile", "random", "nearest", "same study")
TOP, DECILE, RANDOM, NEAREST, STUDY = range(5)
NON_ACTIVATING_KINDS = KINDS[RANDOM:]
# Of the non-activating contexts shown together, half are random and a quarter of each hard kind, if there are so many.
HARD_SHARE = 4
# Hard contexts are looked for among so many times as many candidates: in most of them the feature is active as well.
_TRIED = 3
# The largest arrays of gathered activations and encoder columns, in float32 elements (64 MiB).
_GATHERED = 1 << 24
# Features encoded together on a context, so that its activations are gathered once for all of them.
_SHARED = 16

SCHEMA = pa.schema(
    [
        ("feature", pa.int32()),
        ("split", pa.string()),
        ("kind", pa.string()),  # one of `KINDS`
        ("decile", pa.int8()),  # 0 weakest to 9 strongest; null unless kind is "decile"
        ("study_id", pa.string()),
        ("section", pa.string()),
        ("position", pa.int32()),  # of the first token in its sequence
        ("tokens", pa.list_(pa.string())),  # a word boundary is a leading space
        ("activations", pa.list_(pa.float32())),
        ("max_activation", pa.float32()),
        ("peak", pa.int16()),  # which token has it; null without activation
    ]
)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Exemplars of many features, ordered by feature, split, kind and decile.

    Attributes:
      feature: int32 [m].
      split: int8 [m], index into `SPLITS`.
      kind: int8 [m], index into `KINDS`.
      decile: int8 [m], -1 unless kind is decile.
      context: int64 [m].
    """

    feature: np.ndarray
    split: np.ndarray
    kind: np.ndarray
    decile: np.ndarray
    context: np.ndarray

    def __len__(self) -> int:
        return len(self.feature)

    def take(self, rows: np.ndarray) -> "Chosen":
        return Chosen(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    @classmethod
    def joined(cls, parts: Sequence["Chosen"]) -> "Chosen":
        """The exemplars of all parts, in the order of the class."""
        whole = cls(
            *(np.concatenate([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(cls))
        )
        # A stable sort: the strongest stay in falling order, the others in their random order.
        return whole.take(np.lexsort((whole.decile, whole.kind, whole.split, whole.feature)))


def choose(index: dict[str, SplitIndex], contexts: Contexts, n_decile: dict[str, int], seed: int) -> Chosen:
    """Draws exemplars for every feature.

    Args:
      index: of every split.
      contexts: of the whole store.
      n_decile: for each split, how many activating contexts to draw, the same number from each decile; as many
        non-activating ones are drawn at random.
      seed: of the draw.

    Returns:
      The strongest contexts, the contexts by decile (fewer where a decile holds fewer) and random non-activating ones.
      No context is drawn twice for a feature within one split and kind.
    """
    parts = []
    for split, name in enumerate(SPLITS):
        found = index[name]
        feature, column = np.nonzero(found.top_context >= 0)
        parts.append(_part(feature, split, TOP, -1, found.top_context[feature, column]))
        parts.append(_by_decile(found, split, n_decile[name] // N_DECILES))
        parts.append(_non_activating(found, split, contexts, n_decile[name], seed))
    return Chosen.joined(parts)


def _part(feature: np.ndarray, split: int, kind: int, decile: np.ndarray | int, context: np.ndarray) -> Chosen:
    n = len(feature)
    return Chosen(
        feature.astype(np.int32),
        np.full(n, split, np.int8),
        np.full(n, kind, np.int8),
        np.broadcast_to(np.asarray(decile, np.int8), n).copy(),
        context.astype(np.int64),
    )


def _by_decile(found: SplitIndex, split: int, per_decile: int) -> Chosen:
    """Cuts the uniform sample of a feature into ten equal parts by activation and takes the first few of each.

    The sample is in random order, so the first few are a uniform draw.
    """
    valid = found.sample_context >= 0  # [F, n_sample]
    order = np.argsort(np.where(valid, found.sample_peak, np.inf), axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(order.shape[1])[None], axis=1)
    decile = rank * N_DECILES // np.maximum(valid.sum(1, keepdims=True), 1)
    feature, column = np.nonzero(valid)
    decile = decile[feature, column]
    group = feature * N_DECILES + decile
    by_group = np.argsort(group, kind="stable")
    group = group[by_group]
    within = np.arange(len(group)) - np.searchsorted(group, group)
    rows = by_group[within < per_decile]
    return _part(
        feature[rows],
        split,
        DECILE,
        decile[rows],
        found.sample_context[feature[rows], column[rows]],
    )


def _non_activating(found: SplitIndex, split: int, contexts: Contexts, count: int, seed: int) -> Chosen:
    """For each feature that is ever active, `count` contexts of the pool in which it is silent, or all there are."""
    n_features = found.pool_active.shape[1]
    # The largest u^(1 / weight) are a weighted draw without replacement (Efraimidis and Spirakis 2006).
    power = np.float32(1) / contexts.length[found.pool].astype(np.float32)
    count = min(count, len(found.pool))
    feature, context = [], []
    for begin in range(0, n_features, 256):
        block = np.arange(begin, min(begin + 256, n_features))
        priority = hashed(found.pool[None], block[:, None], seed + 1) ** power  # [features, pool]
        priority = np.where(found.pool_active[:, block].T, np.float32(-1), priority)
        order = np.argsort(-priority, axis=1, kind="stable")[:, :count]
        silent = (np.take_along_axis(priority, order, axis=1) >= 0) & (found.n_contexts[block] > 0)[:, None]
        feature.append(np.broadcast_to(block[:, None], silent.shape)[silent])
        context.append(found.pool[order[silent]])
    return _part(np.concatenate(feature), split, RANDOM, -1, np.concatenate(context))


def hard_candidates(
    index: dict[str, SplitIndex], similar: np.ndarray, contexts: Contexts, n_decile: dict[str, int], seed: int
) -> Chosen:
    """Contexts in which a feature may be silent although much speaks for it: those of its kinds that are hard to tell.

    Args:
      index: of every split.
      similar: int32 [F, neighbours], each feature's nearest other features.
      contexts: of the whole store.
      n_decile: as for `choose`.
      seed: of the draw.

    Returns:
      Contexts of the kinds `NEAREST` and `STUDY`, more than are wanted, in random order for each feature.
    """
    parts = []
    for split, name in enumerate(SPLITS):
        wanted = _TRIED * n_decile[name] // HARD_SHARE
        for kind, pairs in (
            (NEAREST, _of_neighbours(index[name], similar, wanted)),
            (STUDY, _of_same_study(index[name], contexts, wanted, seed)),
        ):
            feature, context = _without_repeats(*pairs)
            parts.append(_part(feature, split, kind, -1, context))
    return Chosen.joined(parts)


def _of_neighbours(found: SplitIndex, similar: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (feature, context): equally many sampled contexts of each of its neighbours."""
    each = min(-(-wanted // max(similar.shape[1], 1)), found.sample_context.shape[1])
    context = found.sample_context[similar, :each].swapaxes(1, 2)  # [F, each, neighbours]: the neighbours in turn
    feature = np.broadcast_to(np.arange(len(similar))[:, None, None], context.shape)
    real = (context >= 0) & (found.n_contexts > 0)[:, None, None]
    return feature[real], context[real].astype(np.int64)


def _of_same_study(found: SplitIndex, contexts: Contexts, wanted: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (feature, context): another context of the same study and section as each of its sampled ones."""
    begin, end = contexts.section_runs()
    feature, column = np.nonzero(found.sample_context[:, :wanted] >= 0)
    active = found.sample_context[feature, column].astype(np.int64)
    first, length = contexts.start[begin[active]], contexts.length[active]
    last = end[active] - 1
    others = contexts.start[last] + contexts.length[last] - first - length  # tokens
    # One token of the others: the rows from the active context on are moved by its length.
    row = first + (hashed(active, feature, seed + 2) * others).astype(np.int64)
    row += np.where(row >= contexts.start[active], length, 0)
    real = others > 0
    return feature[real], np.searchsorted(contexts.start, row[real], side="right") - 1


def _without_repeats(feature: np.ndarray, context: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _, first = np.unique(feature * (context.max(initial=0) + 1) + context, return_index=True)
    first.sort()
    return feature[first], context[first]


def non_activating_only(candidates: Chosen, active: np.ndarray, n_decile: dict[str, int]) -> Chosen:
    """Of hard candidates those in which the feature is silent, at most as many of a kind as are wanted.

    Args:
      candidates: of `hard_candidates`.
      active: bool [candidates].
      n_decile: as for `choose`.
    """
    silent = candidates.take(np.flatnonzero(~active))
    most = np.array([n_decile[name] // HARD_SHARE for name in SPLITS])[silent.split]
    group = (silent.feature.astype(np.int64) * len(SPLITS) + silent.split) * len(KINDS) + silent.kind
    within = np.arange(len(group)) - np.searchsorted(group, group)
    return silent.take(np.flatnonzero(within < most))


def shown_non_activating(rows: Iterable[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """The non-activating rows of a feature that are shown together: hard ones of each kind, the rest random.

    Args:
      rows: of `SCHEMA`, of one feature and split.
      count: at most so many.
    """
    by_kind: dict[str, list[Mapping[str, Any]]] = {kind: [] for kind in (*KINDS[NEAREST:], KINDS[RANDOM])}
    for row in rows:
        if row["kind"] in by_kind:
            by_kind[row["kind"]].append(row)
    shown: dict[tuple[str, int], Mapping[str, Any]] = {}  # by place: a context may be of several kinds
    for kind, found in by_kind.items():
        most = count if kind == KINDS[RANDOM] else len(shown) + count // HARD_SHARE
        for row in found:
            if len(shown) < most:
                shown.setdefault((row["study_id"], row["position"]), row)
    return list(shown.values())


def token_activations(sae: Sae, corpus: Corpus, feature: np.ndarray, context: np.ndarray) -> np.ndarray:
    """The activations of one feature on the tokens of one context, for many pairs of them.

    Only the encoder columns that are asked for are multiplied, so the cost is that of the exemplars, not of all tokens.

    Args:
      sae: of raw activations.
      corpus: the contexts and their activations.
      feature, context: [m].

    Returns:
      float32 [m, longest context], zeros past a context's end.
    """
    store, contexts = corpus.store, corpus.contexts
    longest = int(contexts.length.max(initial=1))
    out = np.zeros((len(feature), longest), np.float32)
    by_context = np.argsort(context, kind="stable")
    unit, place = _units(context[by_context])  # of each pair
    n_units = int(unit[-1]) + 1 if len(unit) else 0
    batch = max(_GATHERED // ((longest + _SHARED) * sae.d_model), 1)
    threshold = np.broadcast_to(np.asarray(sae.threshold, np.float32), sae.n_features)
    weights = {"encoder": sae.params["W_enc"].T, "bias": sae.params["b_enc"], "b_dec": sae.params["b_dec"]}
    for begin in progress(range(0, n_units, batch), unit="batch", desc="interpret: tokens"):
        low, high = np.searchsorted(unit, (begin, begin + batch))
        pairs, own, slot = by_context[low:high], unit[low:high] - begin, place[low:high]
        x, rows, real = _gather(store, contexts, context[pairs[slot == 0]], batch, longest)
        numbers = np.zeros((batch, _SHARED), np.int32)
        numbers[own, slot] = feature[pairs]
        limit = np.maximum(threshold[numbers][..., None], _least_kept(sae, x)[rows][:, None])
        values = np.asarray(_encode_units(**weights, limit=limit, x=x[rows], feature=numbers))
        out[pairs] = values[own, slot] * real[own]
    return out


def _units(context: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Groups pairs of one context, at most `_SHARED` together.

    Args:
      context: [m], sorted.

    Returns:
      the number of each pair's group int64 [m], never falling, and the pair's place in it int64 [m].
    """
    first = np.searchsorted(context, context)  # pair at which its context begins
    place = (np.arange(len(context)) - first) % _SHARED
    return np.cumsum(place == 0) - 1, place


def _gather(
    store: ActivationRows, contexts: Contexts, numbers: np.ndarray, batch: int, longest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of sorted contexts: activations, each read once [n, d], their numbers [batch, longest], which are real."""
    unique, place = np.unique(numbers, return_inverse=True)
    pieces = []
    begin = 0
    while begin < len(unique):  # neighbouring contexts are read together
        stop = begin + 1
        while stop < len(unique) and contexts.start[unique[stop]] - _end(contexts, unique[stop - 1]) < 256:
            stop += 1
        start, end = int(contexts.start[unique[begin]]), _end(contexts, unique[stop - 1])
        rows, _ = contexts.rows(unique[begin:stop])
        pieces.append(store.read(start, end)[rows - start])
        begin = stop
    offsets = np.concatenate([[0], np.cumsum(contexts.length[unique])])
    step = np.arange(longest)
    real = np.zeros((batch, longest), np.float32)
    rows = np.zeros((batch, longest), np.int64)
    real[: len(numbers)] = step < contexts.length[numbers][:, None]
    rows[: len(numbers)] = np.where(real[: len(numbers)] > 0, offsets[place][:, None] + step, 0)
    return np.concatenate(pieces), rows, real


def _end(contexts: Contexts, number: int) -> int:
    return int(contexts.start[number] + contexts.length[number])


@jax.jit
def _encode_units(
    encoder: jax.Array,
    bias: jax.Array,
    b_dec: jax.Array,
    limit: jax.Array,
    x: jax.Array,
    feature: jax.Array,
) -> jax.Array:
    """x: [batch, length, d_model], feature: [batch, shared] -> activations [batch, shared, length], above `limit`."""
    z = jnp.einsum("bsd,bld->bsl", encoder[feature], x - b_dec) + bias[feature][..., None]
    return jnp.where(z > limit, z, 0.0)


def _least_kept(sae: Sae, x: np.ndarray) -> np.ndarray:
    """What a feature must be above to be kept, beside its threshold, in each of the rows x [n, d_model]. float32 [n]"""
    if sae.top_k is None:
        return np.zeros(len(x), np.float32)
    block = min(max(_GATHERED // sae.n_features, 1), 4096)  # always as many, so that it is compiled once
    blocks = np.pad(x, ((0, -len(x) % block), (0, 0))).reshape(-1, block, x.shape[1])
    least = np.concatenate([np.asarray(_last_of_largest(sae.params, part, sae.top_k)) for part in blocks])[: len(x)]
    # A little below the last one kept: the same product is summed in another order.
    return least * np.float32(1 - 1e-5)


@functools.partial(jax.jit, static_argnames="count")
def _last_of_largest(params: Params, x: jax.Array, count: int) -> jax.Array:
    """x: [n, d_model] -> the last of the `count` largest activations of each row, before thresholds [n]."""
    return jax.lax.top_k(jax.nn.relu(pre_activations(params, x)), count)[0][:, -1]


def collect(
    path: Path,
    sae: Sae,
    corpus: Corpus,
    index: dict[str, SplitIndex],
    similar: np.ndarray,
    n_decile: dict[str, int],
    seed: int,
    batch: int,
) -> None:
    """Chooses every feature's exemplars, hard ones included, and writes them; arguments as for what it calls."""
    tried = hard_candidates(index, similar, corpus.contexts, n_decile, seed)
    active = token_activations(sae, corpus, tried.feature, tried.context).max(axis=1, initial=0.0) > 0
    hard = non_activating_only(tried, active, n_decile)
    chosen = Chosen.joined([choose(index, corpus.contexts, n_decile, seed), hard])
    rows = np.flatnonzero(chosen.kind < RANDOM)
    values = token_activations(sae, corpus, chosen.feature[rows], chosen.context[rows])
    write(path, chosen, values, corpus, sae.n_features, batch)


def write(path: Path, chosen: Chosen, activations: np.ndarray, corpus: Corpus, n_features: int, batch: int) -> None:
    """Writes the exemplars, a row group for each `batch` of features.

    Args:
      path: of the parquet file.
      chosen: sorted by feature.
      activations: float32 [active, longest context], a row for each exemplar of kind "top" or "decile", in order.
      corpus: the contexts and their tokens.
      n_features: of the autoencoder.
      batch: features a row group.
    """
    contexts = corpus.contexts
    place = np.concatenate([[0], np.cumsum(chosen.kind < RANDOM)])  # of each exemplar in `activations`
    words = pa.array(corpus.pieces, pa.string())
    names = corpus.studies["study_id"].combine_chunks()
    sections = pa.array([SECTION_NAMES[kind] for kind in Kind], pa.string())
    with (
        files.atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer,
    ):
        for begin in range(0, n_features, batch):
            low, high = np.searchsorted(chosen.feature, (begin, begin + batch))
            part = chosen.take(np.arange(low, high))
            rows, offsets = contexts.rows(part.context)
            offsets = pa.array(offsets.astype(np.int32))
            silent = part.kind >= RANDOM
            values = np.zeros((len(part), activations.shape[1]), np.float32)
            values[~silent] = activations[place[low] : place[high]]
            inside = np.arange(values.shape[1]) < contexts.length[part.context][:, None]
            columns = [
                pa.array(part.feature),
                pa.array(SPLITS).take(pa.array(part.split)),
                pa.array(KINDS).take(pa.array(part.kind)),
                pa.array(part.decile, mask=part.decile < 0),
                names.take(pa.array(contexts.study[part.context])),
                sections.take(pa.array(contexts.kind[part.context])),
                pa.array(contexts.position[part.context]),
                pa.ListArray.from_arrays(offsets, words.take(pa.array(corpus.token_id[rows]))),
                pa.ListArray.from_arrays(offsets, pa.array(values[inside])),
                pa.array(values.max(axis=1, initial=0)),
                pa.array(values.argmax(axis=1).astype(np.int16), mask=silent),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), row_group_size=max(high - low, 1))


def read(path: Path, begin: int, stop: int) -> pa.Table:
    """The exemplars of the features begin to stop, in the order of the file."""
    return pq.read_table(path, filters=[("feature", ">=", begin), ("feature", "<", stop)])
