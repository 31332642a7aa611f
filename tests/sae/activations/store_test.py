"""The activation store."""

import json

import numpy as np
import pytest

from maira_jax.errors import UserError
from sae.activations.store import HELD_OUT, TRAIN, ActivationStore, StoreLayout, StoreWriter
from tests.helpers.sae import assert_same_tokens, make_store, numbered, tables


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
    assert_same_tokens(store.tokens, tokens)
    assert store.studies["study_id"].to_pylist() == studies["study_id"].to_pylist()
    rows = np.concatenate([store.rows_of(split).numbers() for split in (TRAIN, HELD_OUT)])
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


def test_a_flipped_bit_is_reported(tmp_path):
    make_store(tmp_path, numbered(200), shard_rows=64)
    shard = tmp_path / "activations" / "values.zarr" / "c" / "1" / "0"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1  # of the values, which begin the file
    shard.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        ActivationStore.open(tmp_path / "activations").read(0, 200)


def test_a_missing_shard_is_reported_and_not_read_as_zeros(tmp_path):
    make_store(tmp_path, numbered(200), shard_rows=64)
    (tmp_path / "activations" / "values.zarr" / "c" / "1" / "0").unlink()
    store = ActivationStore.open(tmp_path / "activations")
    assert store.read(0, 64).any()
    with pytest.raises(UserError, match=f"{store.directory} cannot be read"):
        store.read(0, 200)


def test_zeros_are_stored_like_other_values(tmp_path):
    make_store(tmp_path, np.zeros((200, 3), np.float32), shard_rows=64)
    assert not ActivationStore.open(tmp_path / "activations").read(0, 200).any()


@pytest.mark.parametrize("readers", [1, 3, None])
def test_rows_are_read_to_their_places(tmp_path, readers):
    make_store(tmp_path, numbered(200), shard_rows=64)
    store = ActivationStore.open(tmp_path / "activations", readers)
    rows = np.random.default_rng(0).integers(0, 200, 300)  # in any order, some of them twice
    places = np.random.default_rng(1).permutation(400)[:300]
    found = np.full((400, 3), -1, np.float32)
    store.read_into(found, rows, places)
    np.testing.assert_array_equal(found[places, 0], rows)
    assert (np.delete(found, places, axis=0) == -1).all()


def test_a_header_that_is_none_is_refused(tmp_path):
    make_store(tmp_path, numbered(200), shard_rows=64)
    header = tmp_path / "activations" / "store.json"
    header.write_text(header.read_text().replace('"float32"', '"float16"'))
    with pytest.raises(UserError, match="not an activation store's header"):
        ActivationStore.open(tmp_path / "activations")


def test_a_store_with_other_columns_is_refused(tmp_path):
    make_store(tmp_path, numbered(40))
    header = tmp_path / "activations" / "store.json"
    written = json.loads(header.read_text())
    header.write_text(json.dumps({name: written[name] for name in ("layout", "source")}))  # as it was before
    with pytest.raises(UserError, match="written by another version .* delete it and harvest again"):
        ActivationStore.open(tmp_path / "activations")
    with pytest.raises(UserError, match="describes another store: delete"):
        writer(tmp_path / "activations", 40)
