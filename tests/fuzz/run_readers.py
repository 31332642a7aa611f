"""Readers of what lies in a run directory, or is brought into one: tables, arrays, answers, settings."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorstore as ts
from safetensors.numpy import save_file

from configs import base, phantom
from interp import sets
from interp.import_set import read_rows
from interp.llm.answer_cache import AnswerCache, CachedAnswer
from launch._configuration import _of_memory
from maira_jax.run import files, jsonl
from maira_jax.run.stages import checksums, run_config
from maira_jax.run.stages.stage import MANIFEST, UNFINISHED, Stage, refuse_damaged, stages_in
from maira_jax.run.stages.verify import verify
from maira_jax.studies.readers import READERS
from sae.activations import imported
from sae.activations.store import ActivationStore
from tests.fuzz.fuzzed_reader import FuzzedReader
from tests.helpers.sae import activations, make_store

_VALUES = activations(12, 4)
# What the configuration of the phantom leaves to the command line is incomplete.
_SECTIONS = [section for section in base.SECTIONS if section.section not in ("studies", "judge")]
_NAMES = {"study_id": [f"s{i}" for i in range(12)], "patient_id": ["p"] * 12, "pneumonia": [1.0, 0.0, -1.0] * 4}


def _array(name: str, write, *patterns: str) -> FuzzedReader:
    """An array of the user's own, read as `harvest` does."""

    def read(folder: Path) -> object:
        (array,) = imported._open_arrays([folder / name], "")
        tokens = int(np.prod(array.shape[1:-1], dtype=np.int64))
        rows = min(array.shape[0] * tokens, 4096)
        table = imported._study_table(imported._names("", [array], array.shape[0]), array.shape[0], tokens, 0.1, 0)
        return imported._rows([array], tokens, 0, rows).shape, table.num_rows

    return FuzzedReader(write, read, patterns or (name,))


def _zarr(version: int) -> FuzzedReader:
    def write(folder: Path) -> None:
        compressor = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}
        metadata = {"shape": [12, 4], "chunks": [5, 4], "dtype": "<f4", "compressor": compressor}
        if version == 3:
            codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "gzip"}, {"name": "crc32c"}]
            grid = {"name": "regular", "configuration": {"chunk_shape": [5, 4]}}
            metadata = {"shape": [12, 4], "data_type": "float32", "chunk_grid": grid, "codecs": codecs}
        kvstore = {"driver": "file", "path": str(folder / "values.zarr")}
        driver = "zarr3" if version == 3 else "zarr"
        spec = {"driver": driver, "kvstore": kvstore, "metadata": metadata}
        ts.open(spec, create=True).result().write(_VALUES).result()

    return _array("values.zarr", write, "values.zarr/**/*", "values.zarr/.zarray")


def _write_list_column(folder: Path) -> None:
    table = pa.table({"embedding": list(_VALUES.tolist()), **_NAMES})
    pq.write_table(table, folder / "values.parquet", row_group_size=5)


def _names(suffix: str) -> FuzzedReader:
    """The table that names the studies of an array."""

    def write(folder: Path) -> None:
        np.save(folder / "values.npy", _VALUES)
        if suffix == ".parquet":
            pq.write_table(pa.table(_NAMES), folder / "names.parquet")
        else:
            with (folder / "names.csv").open("w") as file:
                csv.writer(file).writerows([list(_NAMES), *zip(*_NAMES.values(), strict=True)])

    def read(folder: Path) -> object:
        names = imported._names(str(folder / f"names{suffix}"), [], 12)
        return imported._study_table(names, 12, 1, 0.1, 0).num_rows

    return FuzzedReader(write, read, (f"names{suffix}",))


_SET = {"feature": [0, 1, 5], "name": ["tube", None, "heart"], "explanation": ["a tube", "an effusion", None],
        "score": [0.5, None, 0.75]}  # fmt: skip


def _released(suffix: str) -> FuzzedReader:
    """Explanations that somebody released, as `import_sae --interpretations` reads them."""
    path = f"set{suffix}"

    def write(folder: Path) -> None:
        table = pa.table(_SET)
        if suffix == ".parquet":
            pq.write_table(table, folder / path)
        elif suffix == ".csv":
            pa.csv.write_csv(table, folder / path)
        else:
            (folder / path).write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))

    return FuzzedReader(write, lambda folder: read_rows(folder / path, dict(zip(_SET, _SET, strict=True)), 12), (path,))


def _write_set(folder: Path) -> None:
    for path in ("interpretations/theirs/features.parquet", "interpretations/theirs/scored/features.parquet"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(_SET, schema=sets.SCHEMA), folder / path)


def _write_stage(folder: Path) -> None:
    config = phantom.get_config()
    with Stage(folder, "activations", {"studies": {"source": "phantom"}}, config=config) as stage:
        files.write_json(stage.dir / "numbers.json", {"n": [1, 2, 3]})
        stage.finish({"tokens": 3})


def _read_stage(folder: Path) -> object:
    refuse_damaged(folder, "activations")
    with Stage(folder, "sae", {"k": 2}, inputs=("activations",)) as stage:
        found = stages_in(folder)
    assert not stage.finished
    return verify(folder), found


def _read_config(folder: Path) -> object:
    memory = run_config.RunMemory.read(folder / run_config.FILE)
    config = _of_memory(memory, str(folder))
    return READERS.get(config.studies.source).parse(config.studies), [section.of(config) for section in _SECTIONS]


def _write_unfinished(folder: Path) -> None:
    _write_stage(folder)
    manifest = files.read_object(folder / "activations" / MANIFEST)
    (folder / "activations" / MANIFEST).unlink()
    begun = {name: value for name, value in manifest.items() if name not in ("end", "counts", "files")}
    files.write_json(folder / "activations" / UNFINISHED, checksums.sign(begun))


def _read_unfinished(folder: Path) -> object:
    with Stage(folder, "activations", {"studies": {"source": "phantom"}}) as stage:
        return stage.finished


def _read_store(folder: Path) -> object:
    opened = ActivationStore.open(folder / "activations", 1)
    rows = opened.rows_of("train")
    return opened.read(0, min(opened.n_tokens, 40)), opened.tokens, opened.studies.num_rows, len(rows)


def _write_answers(folder: Path) -> None:
    cache = AnswerCache(folder / "answers.sqlite")
    for i in range(20):
        cache.add(f"key{i % 7}", i // 7, "model", "detect-1", {"n": i}, CachedAnswer(f"answer {i}", 3, 4, 0.5))
    cache.record_batch("b1", "digest", False)
    cache.close()


def _read_answers(folder: Path) -> object:
    cache = AnswerCache(folder / "answers.sqlite")
    try:
        return cache.get("key0"), cache.batches(False), cache.verify()
    finally:
        cache.close()


def _write_lines(folder: Path) -> None:
    rows = [{"study_id": f"s{i}", "text": "No effusion.", "strength": 0.5} for i in range(4)]
    (folder / "lines.jsonl").write_text("".join(map(jsonl.line, rows)))


RUN_READERS = {
    ".npy": _array("values.npy", lambda folder: np.save(folder / "values.npy", _VALUES)),
    "array in safetensors": _array("v.safetensors", lambda folder: save_file({"v": _VALUES}, folder / "v.safetensors")),
    "zarr 2": _zarr(2),
    "zarr 3": _zarr(3),
    "array in parquet": _array("values.parquet", _write_list_column),
    "names in CSV": _names(".csv"),
    "names in parquet": _names(".parquet"),
    "explanations in CSV": _released(".csv"),
    "explanations in JSON Lines": _released(".jsonl"),
    "explanations in parquet": _released(".parquet"),
    "set of interpretations": FuzzedReader(
        _write_set, lambda folder: sets.read_set(folder, "theirs"), ("interpretations/**/*.parquet",)
    ),
    "manifest.json": FuzzedReader(_write_stage, _read_stage, (f"activations/{MANIFEST}",), writes=True),
    "unfinished.json": FuzzedReader(_write_unfinished, _read_unfinished, (f"activations/{UNFINISHED}",), writes=True),
    "config.json of a run": FuzzedReader(_write_stage, _read_config, (run_config.FILE,)),
    "activation store": FuzzedReader(
        lambda folder: make_store(folder, activations(80, 4), shard_rows=64, chunk_rows=16),
        _read_store,
        ("activations/store.json", "activations/*.parquet", "activations/values.zarr/**/*"),
    ),
    "answers.sqlite": FuzzedReader(_write_answers, _read_answers, ("answers.sqlite",), writes=True),
    "JSON Lines of a stage": FuzzedReader(
        _write_lines, lambda folder: jsonl.read(folder / "lines.jsonl", "steer again", ["study_id"]), ("lines.jsonl",)
    ),
}
