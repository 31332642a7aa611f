"""The order in which activations are read."""

import dataclasses

import numpy as np
import pytest

from sae.activations import batches
from sae.activations.store import HELD_OUT, TRAIN, ActivationStore
from tests.helpers.sae import make_store, numbered


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    make_store(workdir, numbered(3000), shard_rows=256, chunk_rows=32)
    return ActivationStore.open(workdir / "activations")


@pytest.fixture(scope="module")
def source(store):
    return batches.ShuffledBatches(store, store.rows_of(TRAIN), batch_size=16, group=10, n_groups=60, seed=5)


def test_every_epoch_gives_every_training_row_once(store, source):
    rows = store.rows_of(TRAIN)
    stream = np.concatenate([source[i][..., 0].ravel() for i in range(60)]).astype(int)
    epochs = len(stream) // len(rows)
    assert epochs >= 3
    # Groups are shuffled inside, so an epoch is complete only at the end of its last group.
    for epoch in range(1, epochs + 1):
        whole = stream[: -(-epoch * len(rows) // 160) * 160]
        counts = np.bincount(whole, minlength=3000)
        assert (counts[rows] >= epoch).all() and (counts[rows] <= epoch + 1).all()
        assert not counts[store.rows_of(HELD_OUT)].any()


def test_the_order_is_shuffled_and_follows_the_seed(store, source):
    first = source[0][..., 0].ravel()
    assert np.abs(np.corrcoef(first, np.arange(160))[0, 1]) < 0.3
    other = batches.ShuffledBatches(store, store.rows_of(TRAIN), 16, 10, 60, seed=6)
    assert (other[0][..., 0].ravel() != first).mean() > 0.9


@pytest.mark.parametrize("buffer_rows", [0, 7 * 160 + 5])
def test_reading_starts_anywhere(store, buffer_rows):
    store = dataclasses.replace(store, buffer_rows=buffer_rows)
    source = batches.ShuffledBatches(store, store.rows_of(TRAIN), 16, 10, 60, 5)
    groups = list(source.iterate(52))
    assert len(groups) == 8
    for index, group in zip(range(52, 60), groups, strict=True):
        np.testing.assert_array_equal(group, source[index])


def test_a_buffer_shuffles_its_groups_together(store):
    """The same rows as without it, in seven groups at a time."""
    rows = store.rows_of(TRAIN)
    alone = batches.ShuffledBatches(store, rows, 16, 10, 14, 5)
    together = batches.ShuffledBatches(dataclasses.replace(store, buffer_rows=7 * 160), rows, 16, 10, 14, 5)
    one, seven = (np.stack([source[i][..., 0].ravel() for i in range(14)]) for source in (alone, together))
    np.testing.assert_array_equal(np.sort(one[:7], axis=None), np.sort(seven[:7], axis=None))
    np.testing.assert_array_equal(np.sort(one[7:], axis=None), np.sort(seven[7:], axis=None))
    # A chunk of the store is 32 rows; without the buffer, all of them are in one group.
    chunks = [np.mean([len(np.unique(row // 32)) for row in rows]) for rows in (one, seven)]
    assert chunks[1] > 2 * chunks[0]


def test_sequential_reading(store):
    rows = store.rows_of(HELD_OUT)
    found = list(batches.sequential(store, rows, 100))
    assert {len(batch) for batch in found[:-1]} == {100}
    np.testing.assert_array_equal(np.concatenate(found)[:, 0], rows)
