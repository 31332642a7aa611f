"""Chunks that are read past TensorStore are those that TensorStore wrote, and damage of every part is noticed."""

import os

import google_crc32c
import numpy as np
import pytest

from maira_jax.errors import UserError
from sae.activations.chunk_files import ChunkFiles
from sae.activations.store import VALUES, ActivationStore
from tests.helpers.sae import activations, make_store

ROWS, D, CHUNK, SHARD = 300, 6, 16, 64
SIZE = CHUNK * D * 4


@pytest.fixture
def store(tmp_path):
    make_store(tmp_path, activations(ROWS, D), shard_rows=SHARD, chunk_rows=CHUNK)
    return ActivationStore.open(tmp_path / "activations")


@pytest.fixture
def chunks(store):
    return ChunkFiles(store.directory / VALUES, SIZE, SHARD // CHUNK)


def test_every_chunk_is_what_tensorstore_reads(store, chunks):
    memory, values = chunks.new_memory(), store.read(0, ROWS)
    for chunk in range(-(-ROWS // CHUNK)):
        found = chunks.read(chunk, memory).view(np.float32).reshape(CHUNK, D)
        expected = values[chunk * CHUNK : (chunk + 1) * CHUNK]
        np.testing.assert_array_equal(found[: len(expected)], expected)


def test_a_file_that_is_read_in_pieces_is_whole(chunks, monkeypatch):
    expected, read = chunks.read(0, chunks.new_memory()).copy(), os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, memories, begin: read(file, [memories[0][:100]], begin))
    np.testing.assert_array_equal(chunks.read(0, chunks.new_memory()), expected)


@pytest.mark.parametrize("seed, implementation", [(0, "c"), (1, "c"), (2, "python")])
def test_rows_and_places_in_any_order_and_twice(store, monkeypatch, seed, implementation):
    monkeypatch.setattr(google_crc32c, "implementation", implementation)
    assert (store._chunks is None) == (implementation == "python")  # then TensorStore reads
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, ROWS, 120)
    out = np.full((130, D), np.nan, np.float32)
    places = rng.permutation(130)[:120]
    store.read_into(out, rows, places)
    np.testing.assert_array_equal(out[places], store.read(0, ROWS)[rows])
    assert np.isnan(np.delete(out, places, axis=0)).all()


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lambda content, begin: content[:begin] + bytes([content[begin] ^ 1]) + content[begin + 1 :], "does not match"),
        (lambda content, begin: content[: begin + SIZE] + b"\0\0\0\0" + content[begin + SIZE + 4 :], "does not match"),
        (lambda content, begin: content[:-1] + bytes([content[-1] ^ 1]), "index of .* does not match"),
        (lambda content, begin: content[:40], "index of .* does not match"),
        (lambda content, begin: b"", "index of .* does not match"),
        (lambda content, begin: None, "No such file"),
    ],
)
def test_damage_is_a_sentence(store, chunks, damage, sentence):
    path = store.directory / VALUES / "c" / "1" / "0"
    content = path.read_bytes()
    begin = int.from_bytes(content[-4 - 16 * (SHARD // CHUNK) :][:8], "little")
    damaged = damage(content, begin)
    path.write_bytes(damaged) if damaged is not None else path.unlink()
    rows = np.arange(SHARD, SHARD + CHUNK)
    with pytest.raises(UserError, match=rf"cannot be read \(.*{sentence}.*\): harvest again"):
        store.read_into(np.empty((CHUNK, D), np.float32), rows, np.arange(CHUNK))
    store.read_into(np.empty((CHUNK, D), np.float32), rows - SHARD, np.arange(CHUNK))  # of a whole shard


def test_a_chunk_that_is_not_there_is_a_sentence(store, chunks):
    """As after writing was cut off, with an index that is whole."""
    path = store.directory / VALUES / "c" / "0" / "0"
    content = path.read_bytes()
    index = b"\xff" * 16 + content[-4 - 16 * (SHARD // CHUNK) + 16 : -4]
    path.write_bytes(content[: -4 - len(index)] + index + google_crc32c.value(index).to_bytes(4, "little"))
    with pytest.raises(ValueError, match="chunk 0 of .* is missing"):
        chunks.read(0, chunks.new_memory())
    chunks.read(1, chunks.new_memory())
    index = b"\0" * 8 + (SIZE + 3).to_bytes(8, "little") + index[16:]
    path.write_bytes(content[: -4 - len(index)] + index + google_crc32c.value(index).to_bytes(4, "little"))
    with pytest.raises(ValueError, match="chunk 0 of .* is cut off"):
        chunks.read(0, chunks.new_memory())
