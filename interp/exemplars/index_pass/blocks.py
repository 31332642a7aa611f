"""Blocks of whole contexts with static shapes, in which the pass over an activation store encodes its tokens."""

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar, cast

import jax
import numpy as np

from interp.exemplars.contexts import Contexts
from sae.activations.store import ActivationRows

STUDIES_PER_BLOCK = 64
# Neighbouring rows are read from the store together, for this many blocks at a time.
_BLOCKS_PER_READ = 16
_READ_AHEAD = 3  # blocks, and while they are used the next rows are read
_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True)
class ContextTable:
    """What is known of each of n contexts before its activations are read.

    Attributes:
      contexts: all contexts of the store.
      split: the split of each context, an index into `interp.exemplars.index.SPLITS`. int8 [n]
      pool_slot: the place of each context in its split's pool; `n_pool` outside of it. int32 [n]
      n_pool: size of the pools.
      counts_for_study: whether the context's tokens count for the largest activations of its study. bool [n]
    """

    contexts: Contexts
    split: np.ndarray
    pool_slot: np.ndarray
    n_pool: int
    counts_for_study: np.ndarray


class ContextBlock(NamedTuple):
    """Contexts of one split: T tokens in at most C contexts (`max_contexts`) of at most `STUDIES_PER_BLOCK` studies.

    The arrays are NumPy's until the block is passed to a compiled function.

    Attributes:
      x: activations, in the stored dtype; zeros in padding. [T, d_model]
      slot: the place of each token's context in the block; C in padding. int32 [T]
      kind: the `Kind` of each token; -1 in padding. int32 [T]
      position: the place of each token in its study's sequence. int32 [T]
      context: the number of each context; -1 in padding. int32 [C]
      study_slot: the place of each context's study in the block; out of range where none of its tokens count. int32 [C]
      pool_slot: the place of each context in the pool; out of range where it is not in it. int32 [C]
    """

    x: jax.Array
    slot: jax.Array
    kind: jax.Array
    position: jax.Array
    context: jax.Array
    study_slot: jax.Array
    pool_slot: jax.Array


@dataclasses.dataclass(frozen=True)
class StoreBlock:
    """A block, and where its tokens come from.

    Attributes:
      split: the split of its contexts.
      studies: the numbers of its studies, ascending.
      block: the block.
      n_tokens: number of tokens in it.
      n_done: one past the last context of the read that is finished with this block; None if the read is not.
    """

    split: int
    studies: np.ndarray
    block: ContextBlock
    n_tokens: int
    n_done: int | None


def max_contexts(block_tokens: int) -> int:
    """The largest number of contexts in a block; short contexts (single tokens) fill a block by this number first."""
    return max(block_tokens // 8, 1)


def reads(contexts: Contexts, block_tokens: int, within: range) -> list[range]:
    """The contexts that are read from the store together, in order. No block has contexts of two reads.

    Args:
      contexts: all contexts of the store.
      block_tokens: number of tokens in a block.
      within: those that are to be read; the reads of what is left when some of them are done are the others.
    """
    found, begin = [], within.start
    while begin < within.stop:
        # At least one context: the search value is above the start of `begin`.
        stop = int(np.searchsorted(contexts.start, contexts.start[begin] + _BLOCKS_PER_READ * block_tokens))
        found.append(range(begin, min(stop, within.stop)))
        begin = stop
    return found


def blocks(
    store: ActivationRows, table: ContextTable, block_tokens: int, chosen: Iterable[range]
) -> Iterator[StoreBlock]:
    """Reads contexts from the store, in order.

    Args:
      store: the activations that the contexts were cut from.
      table: all contexts of the store.
      block_tokens: number of tokens in a block.
      chosen: those of `reads` that are read.
    """
    contexts = table.contexts
    rows = ((numbers, _rows(store, contexts, numbers)) for numbers in chosen)
    for own, x in read_ahead(rows, n_ahead=1):
        first, stop = own.start, own.stop
        divided = [
            (split, numbers)
            for split in (0, 1)
            for numbers in _in_blocks(contexts, first + np.flatnonzero(table.split[first:stop] == split), block_tokens)
        ]
        for place, (split, numbers) in enumerate(divided, 1):
            studies, block = _block(table, numbers, x, int(contexts.start[first]), block_tokens)
            n_tokens = int(contexts.length[numbers].sum())
            yield StoreBlock(split, studies, block, n_tokens, stop if place == len(divided) else None)


def _rows(store: ActivationRows, contexts: Contexts, numbers: range) -> np.ndarray:
    """The activations of consecutive contexts. [rows, d_model]"""
    last = numbers[-1]
    return store.read_ranges([(int(contexts.start[numbers[0]]), int(contexts.start[last] + contexts.length[last]))])[0]


def read_ahead(items: Iterator[_Item], n_ahead: int = _READ_AHEAD) -> Iterator[_Item]:
    """The items of an iterator, which a thread asks for some items ahead."""
    end = object()
    reader = ThreadPoolExecutor(1)
    try:
        waiting = deque(reader.submit(next, items, end) for _ in range(n_ahead))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(reader.submit(next, items, end))
            yield cast(_Item, item)
    finally:
        reader.shutdown(cancel_futures=True)


def _in_blocks(contexts: Contexts, numbers: np.ndarray, block_tokens: int) -> Iterator[np.ndarray]:
    """Divides context numbers so that tokens, contexts and studies fit the static shapes of a block."""
    tokens = np.concatenate([[0], np.cumsum(contexts.length[numbers])])
    study_rank = np.unique(contexts.study[numbers], return_inverse=True)[1]
    i = 0
    while i < len(numbers):
        by_tokens = int(np.searchsorted(tokens, tokens[i] + block_tokens, side="right")) - 1
        by_studies = int(np.searchsorted(study_rank, study_rank[i] + STUDIES_PER_BLOCK))
        j = min(by_tokens, by_studies, i + max_contexts(block_tokens))
        yield numbers[i:j]
        i = j


def _block(
    table: ContextTable, chosen: np.ndarray, x: np.ndarray, first_row: int, block_tokens: int
) -> tuple[np.ndarray, ContextBlock]:
    """The studies of the contexts `chosen`, and their block; `x [rows, d_model]` begins at the store's `first_row`."""
    contexts, n_contexts = table.contexts, max_contexts(block_tokens)
    length = contexts.length[chosen]
    rows, _ = contexts.rows(chosen)
    studies, study_slot = np.unique(contexts.study[chosen], return_inverse=True)
    study_slot = np.where(table.counts_for_study[chosen], study_slot, STUDIES_PER_BLOCK)
    position = rows - np.repeat(contexts.start[chosen] - contexts.position[chosen], length)
    padded: Any = np.zeros((block_tokens, x.shape[1]), x.dtype)
    padded[: len(rows)] = x[rows - first_row]
    return studies, ContextBlock(
        x=padded,
        slot=_padded(np.repeat(np.arange(len(chosen)), length), block_tokens, n_contexts),
        kind=_padded(np.repeat(contexts.kind[chosen], length), block_tokens, -1),
        position=_padded(position, block_tokens, 0),
        context=_padded(chosen, n_contexts, -1),
        study_slot=_padded(study_slot, n_contexts, STUDIES_PER_BLOCK),
        pool_slot=_padded(table.pool_slot[chosen], n_contexts, table.n_pool),
    )


def _padded(values: np.ndarray, size: int, fill: int) -> Any:
    out = np.full(size, fill, np.int32)
    out[: len(values)] = values
    return out
