"""Blocks hold every context once, with its own tokens and activations."""

import threading

import numpy as np
import pytest

from interp.exemplars.index_pass.blocks import STUDIES_PER_BLOCK, ContextTable, blocks, max_contexts, read_ahead, reads
from maira_jax.inputs.tokens import Kind
from tests.helpers.exemplar_world import ArrayStore


def table_of(world, n_pool=8):
    contexts = world["contexts"]
    split = world["held_out"][contexts.study].astype(np.int8)
    pool_slot = np.where(np.arange(len(contexts)) < n_pool, np.arange(len(contexts)), n_pool)
    return ContextTable(contexts, split, pool_slot, n_pool, contexts.kind == Kind.FINDINGS)


@pytest.mark.parametrize("block_tokens", [64, 512])
def test_blocks_hold_every_context_once(world, block_tokens):
    table = table_of(world)
    contexts, split, pool_slot = table.contexts, table.split, table.pool_slot
    seen = []
    for part in blocks(
        ArrayStore(world["x"]), table, block_tokens, reads(contexts, block_tokens, range(len(contexts)))
    ):
        own, studies, block = part.split, part.studies, part.block
        assert len(block.x) == block_tokens and len(block.context) == max_contexts(block_tokens)
        numbers = block.context[block.context >= 0]
        seen += numbers.tolist()
        assert (split[numbers] == own).all() and len(studies) <= STUDIES_PER_BLOCK
        rows, _ = contexts.rows(numbers)
        assert part.n_tokens == len(rows)
        real = block.slot < len(block.context)
        np.testing.assert_array_equal(block.x[real], world["x"][rows])
        assert not block.x[~real].any() and (block.kind[~real] == -1).all()
        np.testing.assert_array_equal(block.kind[real], world["kind"][rows])
        np.testing.assert_array_equal(block.position[real], world["position"][rows])
        counted = contexts.kind[numbers] == Kind.FINDINGS
        np.testing.assert_array_equal(
            studies[block.study_slot[: len(numbers)][counted]], contexts.study[numbers][counted]
        )
        assert (block.study_slot[: len(numbers)][~counted] == STUDIES_PER_BLOCK).all()
        np.testing.assert_array_equal(block.pool_slot[: len(numbers)], pool_slot[numbers])
    assert sorted(seen) == list(range(len(contexts)))


def test_reading_goes_on_where_it_was_left(world):
    """From each place at which no context is left behind, the same blocks follow."""
    table, store = table_of(world), ArrayStore(world["x"])
    n = len(table.contexts)
    whole = list(blocks(store, table, 64, reads(table.contexts, 64, range(n))))
    places = [number for number, part in enumerate(whole) if part.n_done is not None]
    assert len(places) > 2 and whole[-1].n_done == n
    for number in places:
        rest = list(blocks(store, table, 64, reads(table.contexts, 64, range(whole[number].n_done, n))))
        seen = np.concatenate([part.block.context for part in whole[: number + 1]])
        assert seen.max() + 1 == whole[number].n_done == (seen >= 0).sum()
        for part, expected in zip(rest, whole[number + 1 :], strict=True):
            np.testing.assert_array_equal(part.block.x, expected.block.x)
            np.testing.assert_array_equal(part.block.context, expected.block.context)


def test_items_are_read_ahead_in_order_and_errors_are_raised():
    taken = threading.Semaphore(0)

    def items():
        for number in range(10):
            taken.release()
            yield number
        raise ValueError("the store is broken")

    ahead = read_ahead(items())
    assert next(ahead) == 0
    for _ in range(4):  # this item and three more, which nobody has asked for
        assert taken.acquire(timeout=60)
    got = []
    with pytest.raises(ValueError, match="the store is broken"):
        got.extend(ahead)
    assert got == list(range(1, 10))
