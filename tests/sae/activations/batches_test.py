"""The order in which activations are read."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from maira_jax.errors import UserError
from sae.activations import batches
from sae.activations.chunk_files import ChunkFiles
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


def slow_stream(store, batch_size, window, total, seed):
    """The row numbers of `total` batches in windows of `window` batches, one row at a time."""
    rows = store.rows_of(TRAIN).numbers()
    chunks = [list(chunk) for _, chunk in itertools.groupby(rows, lambda row: row // store.layout.chunk_rows)]
    orders = (np.random.default_rng((seed, 0, epoch)).permutation(len(chunks)) for epoch in itertools.count())
    stream = (row for order in orders for chunk in order for row in chunks[chunk])
    edges = [lane * batch_size // batches.LANES for lane in range(batches.LANES + 1)]
    for index, begin in enumerate(range(0, total, window)):
        found = [[] for _ in range(min(window, total - begin))]
        for lane, (first, stop) in enumerate(itertools.pairwise(edges)):
            own = list(itertools.islice(stream, len(found) * (stop - first)))
            order = list(np.random.default_rng((seed, 1, index, lane)).permutation(len(own)))
            for batch in found:
                batch += [own[order.pop(0)] for _ in range(first, stop)]
        yield from found


@pytest.mark.parametrize(
    "batch_size, group, buffer_rows, seed",
    [(16, 10, 0, 5), (16, 10, 7 * 160 + 5, 6), (150, 3, 0, 5), (128, 2, 5000, 7)],
)
def test_the_stream_is_that_of_the_slow_one(store, batch_size, group, buffer_rows, seed):
    store = dataclasses.replace(store, buffer_rows=buffer_rows)
    n_groups = 9000 // (batch_size * group)
    source = batches.ShuffledBatches(store, store.rows_of(TRAIN), batch_size, group, n_groups, seed)
    window = group * min(max(buffer_rows // (group * batch_size), 1), n_groups)
    found = np.concatenate(list(source.iterate(0)))[..., 0]
    np.testing.assert_array_equal(found, list(slow_stream(store, batch_size, window, len(found), seed)))


@pytest.mark.parametrize("batch_size, n_parts", [(128, 1), (128, 2), (128, 4), (150, 3), (16, 4)])
def test_the_parts_of_all_processes_are_the_batches(store, batch_size, n_parts):
    source = batches.ShuffledBatches(store, store.rows_of(TRAIN), batch_size, 5, 6, 5)
    edges = [batch_size * part // n_parts for part in range(n_parts + 1)]
    parts = [np.stack(list(source.iterate(2, slice(*part)))) for part in itertools.pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=2), np.stack(list(source.iterate(2))))


def test_a_part_reads_only_its_share_of_the_chunks(store, monkeypatch):
    read, chunks = ChunkFiles.read, []

    def counted(self, chunk, memory):
        chunks.append(chunk)
        return read(self, chunk, memory)

    monkeypatch.setattr(ChunkFiles, "read", counted)
    source = batches.ShuffledBatches(store, store.rows_of(TRAIN), 128, 10, 1, 5)
    counts = []
    for part in (slice(None), *(slice(begin, begin + 32) for begin in range(0, 128, 32))):
        chunks.clear()
        next(source.iterate(0, part))
        counts.append(len(chunks))
    assert len(set(chunks)) == len(chunks)
    assert sum(counts[1:]) <= counts[0] + 3 and max(counts[1:]) < 0.3 * counts[0]


def test_every_batch_holds_rows_from_all_of_its_window(store):
    """As many different chunks as without lanes, in each batch of 128 rows from 40 chunks."""
    rows = store.rows_of(TRAIN)
    source = batches.ShuffledBatches(store, rows, 128, 10, 1, 5)
    window = source.group(0)[..., 0].astype(int) // 32
    apart = np.random.default_rng(0).permutation(window.ravel()).reshape(window.shape)
    with_lanes, without = (np.mean([len(np.unique(batch)) for batch in order]) for order in (window, apart))
    assert with_lanes >= without


def test_memory_is_used_again_but_not_while_somebody_refers_to_it():
    memory = batches._ReusedMemory(400)
    first = memory.array((10, 10), np.dtype(np.float32))
    first[:] = 1
    row, place = first[3], first.ctypes.data
    del first
    other = memory.array((5, 10), np.dtype(np.float32))
    other[:] = 2
    assert (row == 1).all() and other.ctypes.data != place
    del row
    assert memory.array((2, 50), np.dtype(np.float32)).ctypes.data == place


def test_memory_of_an_array_that_jax_holds_is_not_used_again():
    memory = batches._ReusedMemory(400)
    first = memory.array((10, 10), np.dtype(np.float32))
    first[:] = 1
    on_device = jax.device_put(first)
    del first
    memory.array((10, 10), np.dtype(np.float32))[:] = 2
    assert (on_device == 1).all()


def test_a_missing_shard_ends_the_stream(tmp_path):
    make_store(tmp_path, numbered(600), shard_rows=256, chunk_rows=32)
    store = ActivationStore.open(tmp_path / "activations")
    source = batches.ShuffledBatches(store, store.rows_of(TRAIN), 16, 10, 60, seed=5)
    (store.directory / "values.zarr" / "c" / "1" / "0").unlink()
    with pytest.raises(UserError, match=rf"{store.directory} cannot be read .*: harvest again"):
        list(source.iterate(0))


def test_every_epoch_gives_every_training_row_once(store, source):
    rows = store.rows_of(TRAIN).numbers()
    stream = np.concatenate([source.group(i)[..., 0].ravel() for i in range(60)]).astype(int)
    epochs = len(stream) // len(rows)
    assert epochs >= 3
    # Groups are shuffled inside, so an epoch is complete only at the end of its last group.
    for epoch in range(1, epochs + 1):
        whole = stream[: -(-epoch * len(rows) // 160) * 160]
        counts = np.bincount(whole, minlength=3000)
        assert (counts[rows] >= epoch).all() and (counts[rows] <= epoch + 1).all()
        assert not counts[store.rows_of(HELD_OUT).numbers()].any()


def test_the_order_is_shuffled_and_follows_the_seed(store, source):
    first = source.group(0)[..., 0].ravel()
    assert np.abs(np.corrcoef(first, np.arange(160))[0, 1]) < 0.3
    other = batches.ShuffledBatches(store, store.rows_of(TRAIN), 16, 10, 60, seed=6)
    assert (other.group(0)[..., 0].ravel() != first).mean() > 0.9


@pytest.mark.parametrize("buffer_rows", [0, 7 * 160 + 5])
def test_reading_starts_anywhere(store, buffer_rows):
    store = dataclasses.replace(store, buffer_rows=buffer_rows)
    source = batches.ShuffledBatches(store, store.rows_of(TRAIN), 16, 10, 60, 5)
    groups = list(source.iterate(52))
    assert len(groups) == 8
    for index, group in zip(range(52, 60), groups, strict=True):
        np.testing.assert_array_equal(group, source.group(index))


def test_a_buffer_shuffles_its_groups_together(store):
    """The same rows as without it, in seven groups at a time."""
    rows = store.rows_of(TRAIN)
    alone = batches.ShuffledBatches(store, rows, 16, 10, 14, 5)
    together = batches.ShuffledBatches(dataclasses.replace(store, buffer_rows=7 * 160), rows, 16, 10, 14, 5)
    one, seven = (np.stack([source.group(i)[..., 0].ravel() for i in range(14)]) for source in (alone, together))
    np.testing.assert_array_equal(np.sort(one[:7], axis=None), np.sort(seven[:7], axis=None))
    np.testing.assert_array_equal(np.sort(one[7:], axis=None), np.sort(seven[7:], axis=None))
    # A chunk of the store is 32 rows; without the buffer, all of them are in one group.
    chunks = [np.mean([len(np.unique(row // 32)) for row in rows]) for rows in (one, seven)]
    assert chunks[1] > 2 * chunks[0]


def test_sequential_reading(store):
    rows = store.rows_of(HELD_OUT).numbers()
    found = list(batches.sequential(store, rows, 100))
    assert {len(batch) for batch in found[:-1]} == {100}
    np.testing.assert_array_equal(np.concatenate(found)[:, 0], rows)
