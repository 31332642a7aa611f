"""The activation store and the order in which it is read."""

import dataclasses

import numpy as np
import pytest

from maira_jax.errors import UserError
from sae.activations import batches
from sae.activations.store import HELD_OUT, TRAIN, ActivationStore, StoreLayout, StoreWriter
from sae.training import held_out
from tests.helpers.sae import make_store, tables


def numbered(n: int, d: int = 3) -> np.ndarray:
    """Row i holds i in its first column."""
    values = np.zeros((n, d), np.float32)
    values[:, 0] = np.arange(n)
    return values


def writer(path, n: int, layout: StoreLayout | None = None) -> StoreWriter:
    return StoreWriter(path, layout or StoreLayout(n, 3, "float32", 64, 16), *tables(n), {"site": "here"})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip(tmp_path, dtype):
    values = np.random.default_rng(0).normal(size=(1000, 5)).astype(np.float32)
    make_store(tmp_path, values, dtype, shard_rows=128)
    store = ActivationStore.open(tmp_path / "activations")
    assert (store.n_tokens, store.d_model, store.layout.dtype) == (1000, 5, dtype)
    tolerance = 0 if dtype == "float32" else 2**-8  # bfloat16 keeps 8 bits
    np.testing.assert_allclose(store.read(0, 1000), values, rtol=tolerance)
    np.testing.assert_array_equal(store.read(100, 300), store.read(0, 1000)[100:300])
    assert store.read(7, 9).dtype == np.float32
    tokens, studies = tables(1000)
    assert store.tokens.equals(tokens.cast(store.tokens.schema))
    assert store.studies["study_id"].to_pylist() == studies["study_id"].to_pylist()
    rows = np.concatenate([store.rows_of(TRAIN), store.rows_of(HELD_OUT)])
    np.testing.assert_array_equal(np.sort(rows), np.arange(1000))


def test_a_killed_writer_resumes_with_the_missing_shards(tmp_path):
    values = numbered(200)
    first = writer(tmp_path, 200)
    for shard in (0, 2):
        start, stop = first.layout.rows(shard)
        first.write(shard, values[start:stop])
    with pytest.raises(UserError, match="2 of 4 shards"):
        ActivationStore.open(tmp_path)
    second = writer(tmp_path, 200)
    assert second.missing() == [1, 3]
    for shard in second.missing():
        start, stop = second.layout.rows(shard)
        second.write(shard, values[start:stop])
    np.testing.assert_array_equal(ActivationStore.open(tmp_path).read(0, 200), values)


def test_what_is_refused(tmp_path):
    writer(tmp_path / "a", 200)
    with pytest.raises(UserError, match="another store"):
        writer(tmp_path / "a", 200, StoreLayout(200, 3, "bfloat16", 64, 16))
    with pytest.raises(ValueError, match="not a multiple"):
        StoreLayout(200, 3, "float32", 64, 15)
    with pytest.raises(ValueError, match="float16"):
        StoreLayout(200, 3, "float16", 64, 16)
    with pytest.raises(UserError, match="not finite"):
        writer(tmp_path / "b", 200).write(0, np.full((64, 3), np.nan, np.float32))


def test_a_damaged_shard_is_reported(tmp_path):
    make_store(tmp_path, numbered(200), shard_rows=64)
    shard = next(path for path in (tmp_path / "activations" / "values.zarr" / "c").rglob("*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        ActivationStore.open(tmp_path / "activations").read(0, 200)


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


def test_a_sample_of_held_out_tokens_is_of_whole_chunks(store, monkeypatch):
    monkeypatch.setattr(held_out, "_SAMPLE", 100)
    rows = store.rows_of(HELD_OUT)
    drawn, other = (np.concatenate(held_out.sample(store, seed))[:, 0].astype(int) for seed in (0, 1))
    assert 100 <= len(drawn) < 132 and set(drawn) != set(other)
    np.testing.assert_array_equal(drawn, rows[np.isin(rows // 32, drawn // 32)])
    monkeypatch.setattr(held_out, "_SAMPLE", 10**6)
    np.testing.assert_array_equal(np.concatenate(held_out.sample(store, 0))[:, 0], rows)


def test_a_header_that_is_none_is_refused(tmp_path):
    make_store(tmp_path, numbered(200), shard_rows=64)
    header = tmp_path / "activations" / "store.json"
    header.write_text(header.read_text().replace('"float32"', '"float16"'))
    with pytest.raises(UserError, match="not an activation store's header"):
        ActivationStore.open(tmp_path / "activations")
