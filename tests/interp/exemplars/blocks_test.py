"""Blocks hold every context once, with its own tokens and activations."""

import numpy as np
import pytest

from interp.exemplars.blocks import STUDIES_PER_BLOCK, ContextTable, blocks, max_contexts
from maira_jax.inputs.tokens import Kind
from tests.helpers.exemplar_world import ArrayStore


@pytest.mark.parametrize("block_tokens", [64, 512])
def test_blocks_hold_every_context_once(world, block_tokens):
    contexts, n_pool = world["contexts"], 8
    split = world["held_out"][contexts.study].astype(np.int8)
    pool_slot = np.where(np.arange(len(contexts)) < n_pool, np.arange(len(contexts)), n_pool)
    table = ContextTable(contexts, split, pool_slot, n_pool, contexts.kind == Kind.FINDINGS)
    seen = []
    for own, studies, block in blocks(ArrayStore(world["x"]), table, block_tokens):
        assert len(block.x) == block_tokens and len(block.context) == max_contexts(block_tokens)
        numbers = block.context[block.context >= 0]
        seen += numbers.tolist()
        assert (split[numbers] == own).all() and len(studies) <= STUDIES_PER_BLOCK
        rows, _ = contexts.rows(numbers)
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
