"""Users' own arrays, in every kind of file, become the same activation store."""

import json
import resource

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import tensorstore as ts
from safetensors.numpy import save_file

from configs import embeddings
from interp.medsae import stage as label
from maira_jax.errors import UserError
from maira_jax.run import parquet
from sae import formats
from sae.activations import harvest, imported
from sae.activations.store import HELD_OUT, TRAIN, ActivationStore
from sae.formats import export
from sae.training import stage as train
from tests.helpers.sae import activations, set_shards


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    set_shards(monkeypatch, 32, 8)


X = np.random.default_rng(0).normal(size=(70, 6)).astype(np.float32)


def write_npy(path, x, name):
    np.save(path, x)


def write_safetensors(path, x, name):
    save_file({name: x, "other": x[:, :1].copy()}, path)


def write_zarr(path, x, name, driver="zarr3"):
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(path)}}
    ts.open(spec, create=True, shape=x.shape, dtype=ts.dtype(x.dtype.name)).result().write(x).result()


def write_zarr2(path, x, name):
    write_zarr(path, x, name, "zarr")


def write_parquet(path, x, name):
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
    pq.write_table(pa.table({name: lists, "n": np.arange(len(x)) + 7}), path, row_group_size=16)


def config_of(*paths, **fields):
    config = embeddings.get_config(str(paths[0]))
    config.harvest.arrays = tuple(map(str, paths))
    config.harvest.update(fields)
    return config


@pytest.mark.parametrize(
    "write, ending, column",
    [
        (write_npy, "npy", ""),
        (write_safetensors, "safetensors", "x"),
        (write_zarr, "zarr", ""),
        (write_zarr2, "zarr", ""),
        (write_parquet, "parquet", ""),
    ],
)
def test_every_kind_of_file_gives_its_rows(tmp_path, write, ending, column):
    first, second = tmp_path / f"a.{ending}", tmp_path / f"b.{ending}"
    write(first, X[:45], "x")
    write(second, X[45:], "x")
    counts = harvest.run(config_of(first, second, column=column, held_out_fraction=0.3), tmp_path / "run")
    assert (counts["studies"], counts["tokens"], counts["d_model"]) == (70, 70, 6)
    store = ActivationStore.open(tmp_path / "run" / "activations")
    np.testing.assert_array_equal(store.read(0, 70), X)
    assert set(store.source["arrays"]) == {str(first), str(second)}
    held_out, train = (store.rows_of(split).numbers() for split in (HELD_OUT, TRAIN))
    assert len(held_out) > 5 and sorted([*held_out, *train]) == list(range(70))
    assert harvest.run(config_of(first, second, column=column, held_out_fraction=0.3), tmp_path / "run") == counts


def test_several_tokens_a_study_and_bfloat16(tmp_path):
    x = X.reshape(14, 5, 6).astype(ml_dtypes.bfloat16)
    save_file({"patches": x}, tmp_path / "x.safetensors")
    harvest.run(config_of(tmp_path / "x.safetensors", dtype="bfloat16"), tmp_path / "run")
    store = ActivationStore.open(tmp_path / "run" / "activations")
    np.testing.assert_array_equal(store.read(0, 70), x.reshape(70, 6).astype(np.float32))
    assert store.studies["stop"].to_pylist() == list(range(5, 75, 5))
    tokens = store.tokens
    assert tokens.study[4:6].tolist() == [0, 1] and tokens.position[4:6].tolist() == [4, 0]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_names_the_studies(tmp_path, ending):
    np.save(tmp_path / "x.npy", X[:4])
    table = pa.table(
        {
            "study_id": ["a", "b", "c", "d"],
            "patient_id": [1, 1, 2, 3],
            "split": ["train", "train", "held_out", "train"],
            "Edema": pa.array([1.0, 0.0, -1.0, None]),
            "age": [50, 61, 1, 0],
            "view": ["PA"] * 4,
        }
    )
    path = tmp_path / f"table.{ending}"
    pq.write_table(table, path) if ending == "parquet" else pyarrow.csv.write_csv(table, path)
    harvest.run(config_of(tmp_path / "x.npy", table=str(path)), tmp_path / "run")
    studies = ActivationStore.open(tmp_path / "run" / "activations").studies
    assert studies["study_id"].to_pylist() == ["a", "b", "c", "d"]
    assert studies["patient_id"].to_pylist() == ["1", "1", "2", "3"]
    assert studies["split"].to_pylist() == ["train", "train", "held_out", "train"]
    assert [json.loads(row) for row in studies["labels"].to_pylist()] == [{"Edema": True}, {"Edema": False}, {}, {}]
    with pytest.raises(UserError, match="4 rows for 3 studies"):
        np.save(tmp_path / "y.npy", X[:3])
        harvest.run(config_of(tmp_path / "y.npy", table=str(path)), tmp_path / "other")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("x.npy", lambda path: path.write_bytes(b"nothing"), "cannot be read"),
        ("x.npy", lambda path: np.save(path, np.array([{"a": 1}], object)), "cannot be read"),
        ("x.npy", lambda path: np.save(path, np.zeros(7)), r"shape \(7,\)"),
        ("x.npy", lambda path: np.save(path, np.zeros((7, 2), np.int64)), "type int64"),
        ("x.npy", lambda path: np.save(path, np.full((7, 2), np.nan)), "not finite"),
        ("x.safetensors", lambda path: write_safetensors(path, X, "x"), "name one with harvest.column"),
        ("x.csv", lambda path: path.write_text("1,2"), "is not one of"),
        ("x.zarr", lambda path: None, "does not exist"),
    ],
)
def test_what_is_no_array_is_refused(tmp_path, name, content, message):
    content(tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        harvest.run(config_of(tmp_path / name), tmp_path / "run")
    assert "\n" not in str(caught.value)


def _lists(lengths, values=None):
    """A column of lists of zeros, or of `values`."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(np.zeros(offsets[-1], np.float32) if values is None else values))


PARQUET_REFUSED = {
    "large row group": ({"x": _lists([100] * 9)}, r"has row groups of 900 values: write it with fewer rows in each"),
    "other lengths": ({"x": _lists([2, 4])}, "lists of x differ in length, or one is missing"),
    "other lengths in all": ({"x": _lists([2, 5])}, "lists of x differ in length, or one is missing"),
    "texts": ({"x": _lists([2, 2], pa.array(["a"] * 4))}, "holds values of dtype string: give floating-point numbers"),
    "long names": (
        {"x": _lists([3] * 12), "study_id": pa.DictionaryArray.from_arrays([0] * 12, ["a" * 2**16])},
        "its texts are far larger than the file",
    ),
}


@pytest.mark.parametrize(("columns", "message"), PARQUET_REFUSED.values(), ids=PARQUET_REFUSED)
def test_of_a_parquet_file_no_more_is_unpacked_than_its_bytes_can_hold(tmp_path, monkeypatch, columns, message):
    monkeypatch.setattr(imported, "_MAX_GROUP", 600)
    monkeypatch.setattr(imported, "_MAX_GROUP_TIMES_LARGER", 0)
    monkeypatch.setattr(parquet, "_MAX_TEXTS", 2**10)
    pq.write_table(pa.table(columns), tmp_path / "x.parquet", compression="zstd")
    with pytest.raises(UserError, match=message):
        harvest.run(config_of(tmp_path / "x.parquet"), tmp_path / "run")


def test_more_studies_than_bytes_can_hold_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(imported, "_MAX_FREE_STUDIES", 2**10)
    pq.write_table(pa.table({"x": _lists([1] * 2000)}), tmp_path / "x.parquet", compression="zstd")
    with pytest.raises(UserError, match=r"is said to have shape \(2000, 1\), which its \d+ bytes cannot hold"):
        harvest.run(config_of(tmp_path / "x.parquet"), tmp_path / "run")


def test_of_a_table_only_names_and_labels_are_read(tmp_path):
    columns = {"x": _lists([2] * 3), "study_id": pa.array(["a", "b", "c"]).dictionary_encode(), "Edema": [0, 1, -1]}
    pq.write_table(pa.table(columns | {"report": ["long"] * 3, "points": [[1], [2, 3], []]}), tmp_path / "x.parquet")
    found = imported.open_array(tmp_path / "x.parquet", "x")
    assert found.table.to_pydict() == {"study_id": ["a", "b", "c"], "Edema": [0, 1, -1]}
    assert imported._names(str(tmp_path / "x.parquet"), [], 3).equals(found.table)


@pytest.mark.parametrize(
    ("name", "message"),
    [("x.parquet", "has 9 rows for 3 studies"), ("x.csv", "has 5,000 columns: leave those of names and labels alone")],
)
def test_tables_that_are_too_large_are_refused(tmp_path, monkeypatch, name, message):
    pq.write_table(pa.table({"study_id": ["a"] * 9}), tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_text(",".join(map(str, range(5000))) + "\n")
    monkeypatch.setattr(parquet, "read_columns", None)
    monkeypatch.setattr(pyarrow.csv, "read_csv", None)
    with pytest.raises(UserError, match=f"{name} {message}"):
        imported._names(str(tmp_path / name), [], 3)


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@pytest.mark.parametrize("version", [2, 3])
def test_of_a_zarr_chunk_no_more_is_decompressed_than_its_shape_says(tmp_path, version, codec):
    kvstore = {"driver": "file", "path": str(tmp_path / "x.zarr")}
    spec = {"driver": "zarr3" if version == 3 else "zarr", "kvstore": kvstore}
    compressor = {"codecs": ["bytes", codec]} if version == 3 else {"compressor": {"id": codec}}
    array = ts.open(spec | {"metadata": compressor}, create=True, shape=(7, 2), dtype=ts.float32).result()
    array.write(X[:7, :2]).result()
    (chunk,) = (path for path in (tmp_path / "x.zarr").rglob("*") if path.is_file() and path.name in ("0.0", "0"))
    with pa.CompressedOutputStream(str(chunk), codec) as file:
        for _ in range(64):  # 512 MiB
            file.write(bytes(2**23))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="cannot be read") as caught:
        harvest.run(config_of(tmp_path / "x.zarr"), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


def test_the_whole_way_from_embeddings_to_measured_features(tmp_path, monkeypatch):
    """The commands of configs/embeddings.py; one direction of the embedding decides the label."""
    set_shards(monkeypatch, 256, 16)
    x = activations(400, 16)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 16)
    pq.write_table(pa.table({"embedding": lists, "Edema": x[:, 0] > np.median(x[:, 0])}), tmp_path / "x.parquet")
    config = config_of(tmp_path / "x.parquet", held_out_fraction=0.2)
    config.sae.k = 4
    config.train.update({"steps": 300, "batch_size": 64, "checkpoint_every": 300})
    harvest.run(config, tmp_path / "run")
    counts = train.run(config, tmp_path / "run")
    assert (counts["n_features"], counts["l0"]) == (256, pytest.approx(4, abs=0.02))
    assert counts["fvu"] < 0.45
    export.run(config, tmp_path / "run")
    expected = np.asarray(formats.load(tmp_path / "run" / "sae").encode(x))
    for name in config.export.to:
        found = np.asarray(formats.load(tmp_path / "run" / "export" / name).encode(x))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=name)
    assert label.run(config, tmp_path / "run")["studies"] == 400
    rows = pq.read_table(tmp_path / "run" / "label" / "neurons.parquet").to_pylist()
    dimensions = [row for row in rows if row["basis"] == "raw dimensions"]
    # Features, random directions and shuffled weights; raw dimensions and principal components.
    assert len(rows) == 3 * 256 + 2 * 16 and max(dimensions, key=lambda row: row["f1"]["Edema"] or 0)["neuron"] == 0
