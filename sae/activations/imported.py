"""The harvest stage for the user's own activations: arrays in files, copied into the activation store.

    .npy                      a NumPy array, read through a memory map
    .safetensors              one of its tensors
    .zarr                     a zarr array, version 2 or 3
    .parquet                  a column of lists of numbers

An array is [studies, d_model], one row per study (an image's embedding, say), or [studies, tokens, d_model]. The arrays
of several files are concatenated. A table may name the studies; other columns of a .parquet file do so, too.
"""

import contextlib
import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import tensorstore as ts
from safetensors import safe_open

from maira_jax.errors import UserError, first_line
from maira_jax.run import files, parquet
from maira_jax.run.progress import progress
from maira_jax.run.stages.stage import Stage
from maira_jax.studies.splits import split_of
from sae.activations.config import HarvestSection
from sae.activations.store import HELD_OUT, TRAIN, StoreLayout, StoreWriter
from sae.activations.token_rows import TokenRows

# Values per stored byte that compression is believed to reach.
_MAX_TIMES_LARGER = 64
# A study takes hundreds of bytes of memory, however small its values were compressed.
_MAX_FREE_STUDIES, _MIN_STUDY_BYTES = 2**16, 16
_MAX_CHUNK = 2**28  # bytes of a chunk, of which little may be stored
# Values of a row group of lists, of which little may be stored; reading takes up to 32 bytes for each.
_MAX_GROUP, _MAX_GROUP_TIMES_LARGER = 2**24, 2
_MAX_COLUMNS = 2**12  # of a table; pyarrow takes kilobytes for each
_NAMES = ("study_id", "patient_id", "split")


class ArrayFile(NamedTuple):
    """An array in an opened file.

    Attributes:
      shape: [studies, d_model] or [studies, tokens, d_model].
      read: `read(start, stop)` gives studies `start` to `stop` in the file's dtype.
      table: the file's other columns, one row per study; None if it has none.
    """

    shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]
    table: pa.Table | None = None


def _open_npy(path: Path, column: str) -> ArrayFile:
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    return ArrayFile(values.shape, lambda start, stop: values[start:stop])


def _open_safetensors(path: Path, column: str) -> ArrayFile:
    file = safe_open(path, framework="numpy")
    name = _only(path, list(file.keys()), column, "tensor")
    values = file.get_slice(name)
    return ArrayFile(tuple(values.get_shape()), lambda start, stop: values[start:stop])


def _open_zarr(path: Path, column: str) -> ArrayFile:
    driver = "zarr3" if (path / "zarr.json").is_file() else "zarr"
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(path.absolute())}}
    values = ts.open(spec, open=True, read=True).result()
    chunk = math.prod(size or 1 for size in values.chunk_layout.read_chunk.shape or ())
    _refuse_inflated(path, values.dtype.numpy_dtype.itemsize * chunk)
    return ArrayFile(tuple(values.shape), lambda start, stop: values[start:stop].read().result())


def _refuse_inflated(path: Path, n_bytes: int) -> None:
    """Refuses chunks that say that they hold more than `n_bytes`, a chunk's size: blosc makes room for them first."""
    stored = sum(part.stat().st_size for part in path.rglob("*") if part.is_file())
    if n_bytes > max(_MAX_CHUNK, _MAX_TIMES_LARGER * stored):
        raise UserError(f"{path} has chunks of {n_bytes:,} bytes, which its {stored:,} bytes cannot hold: restore it")
    if b"blosc" not in (path / ("zarr.json" if (path / "zarr.json").is_file() else ".zarray")).read_bytes():
        return
    for part in path.rglob("*"):
        if part.is_file() and not part.name.startswith((".", "zarr.")):
            with part.open("rb") as file:
                if int.from_bytes(file.read(8)[4:], "little") > n_bytes:
                    raise UserError(f"{part} is said to hold more bytes than a chunk has: restore it")


def _open_parquet(path: Path, column: str) -> ArrayFile:
    file = pq.ParquetFile(path)
    schema, metadata = file.schema_arrow, file.metadata
    kinds = {
        field.name: field.type.value_type
        for field in schema
        if pa.types.is_nested(field.type) and hasattr(field.type, "value_type")
    }
    name = _only(path, list(kinds), column, "column of lists")
    if not pa.types.is_floating(kinds[name]):
        raise UserError(f"{path} holds values of dtype {kinds[name]}: give floating-point numbers")
    group_rows = np.array([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)], np.int64)
    ends, rows = np.cumsum(group_rows), int(group_rows.sum())
    found = [[chunk.num_values for chunk in chunks] for _, chunks in parquet.column_chunks(path, {name})]
    values = np.max(found, axis=0, initial=0)  # of each row group
    most = max(_MAX_GROUP, _MAX_GROUP_TIMES_LARGER * path.stat().st_size)
    if (values > most).any():
        raise UserError(f"{path} has row groups of {values.max():,} values: write it with fewer rows in each")
    width = int(values.sum()) // max(rows, 1)
    if (values != group_rows * width).any():
        raise UserError(f"{path}: lists of {name} differ in length, or one is missing: give each as many numbers")

    def read(start: int, stop: int) -> np.ndarray:
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        found = file.read_row_groups(list(range(first, last + 1)), columns=[name])[name]
        offset = start - int(ends[first - 1] if first else 0)
        part = found.slice(offset, stop - start).combine_chunks()
        if part.null_count or not pc.all(pc.equal(pc.list_value_length(part), width)).as_py():
            raise UserError(f"{path}, rows {start} to {stop}: lists of {name} differ in length, or one is missing")
        return part.flatten().to_numpy(zero_copy_only=False).reshape(stop - start, width)

    return ArrayFile((rows, width), read)


def _study_columns(path: Path) -> pa.Table:
    """What a .parquet file says of its studies: their names, and numbers, which may be labels."""
    names = [field.name for field in pq.read_schema(path) if field.name in _NAMES or _may_be_label(field.type)]
    return parquet.read_columns(path, names)


def _may_be_label(kind: pa.DataType) -> bool:
    return pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)


_OPENERS = {".npy": _open_npy, ".safetensors": _open_safetensors, ".zarr": _open_zarr, ".parquet": _open_parquet}


def _only(path: Path, names: Sequence[str], wanted: str, what: str) -> str:
    """The wanted name among those that a file has, or the only one."""
    if wanted in names:
        return wanted
    if wanted or len(names) != 1:
        raise UserError(
            f"{path} has {', '.join(map(repr, names)) or 'none'} for a {what}"
            f"{f', not {wanted!r}' if wanted else ''}: name one with harvest.column"
        )
    return names[0]


def open_array(path: Path, column: str = "") -> ArrayFile:
    """Opens a file of activations.

    Args:
      path: the file, whose ending says of which kind it is.
      column: name of the tensor or column; empty for the only one.

    Raises:
      UserError: the file cannot be read, holds no array of two or three dimensions of floating-point numbers, or says
        that it holds far more than its bytes.
    """
    path = Path(path).expanduser()
    opener = _OPENERS.get(path.suffix)
    if opener is None:
        raise UserError(f"{path} is not one of {', '.join(_OPENERS)}: convert it, or rename it")
    if not path.exists():
        raise UserError(f"{path} does not exist: check harvest.arrays")
    with _one_sentence(path):
        found = opener(path, column)
    if len(found.shape) not in (2, 3) or not min(found.shape):
        raise UserError(f"{path} has shape {found.shape}: give [studies, d_model] or [studies, tokens, d_model]")
    stored = sum(part.stat().st_size for part in (path, *path.rglob("*")) if part.is_file())
    most_studies = max(_MAX_FREE_STUDIES, stored // _MIN_STUDY_BYTES)
    if found.shape[0] > most_studies or math.prod(found.shape) > _MAX_TIMES_LARGER * stored:
        raise UserError(
            f"{path} is said to have shape {found.shape}, which its {stored:,} bytes cannot hold: restore it"
        )

    def read(start: int, stop: int) -> np.ndarray:
        with _one_sentence(path):
            return np.asarray(found.read(start, stop))

    kind = read(0, 1).dtype
    if not np.issubdtype(kind, np.floating) and kind.name != "bfloat16":
        raise UserError(f"{path} holds values of dtype {kind}: give floating-point numbers")
    if path.suffix != ".parquet":
        return found._replace(read=read)
    with _one_sentence(path):
        table = _study_columns(path)
    return found._replace(read=read, table=table if table.num_columns else None)


@contextlib.contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    """Turns whatever a library raises for a damaged file, each its own classes, into a sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): restore the file") from error


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Copies `config.harvest.arrays` into the activation store of `workdir`.

    Returns:
      What the manifest counts.

    Raises:
      UserError: a field is out of range, a file cannot be read, or the disk is full.
    """
    harvest = HarvestSection.of(config)
    fields = {name: getattr(harvest, name) for name in ("arrays", "column", "table", "held_out_fraction", "dtype")}
    with Stage(Path(workdir), "activations", {"harvest": fields, "seed": config.seed}, config=config) as stage:
        if stage.finished:
            return stage.manifest["counts"]
        paths = [Path(path).expanduser() for path in harvest.arrays]
        arrays = _open_arrays(paths, harvest.column)
        n, d_model = sum(array.shape[0] for array in arrays), arrays[0].shape[-1]
        tokens = int(np.prod(arrays[0].shape[1:-1], dtype=np.int64))  # per study
        studies = _study_table(_names(harvest.table, arrays, n), n, tokens, harvest.held_out_fraction, config.seed)
        layout = StoreLayout.of(n * tokens, d_model, harvest.dtype)
        source = {"arrays": {str(path): files.content_digest(path) for path in paths}}
        writer = StoreWriter(stage.dir, layout, TokenRows.without_tokens(n, tokens), studies, source)
        with progress(total=layout.n_tokens, unit="tok", desc="arrays") as bar:
            missing = set(writer.missing())
            for shard in range(layout.n_shards):
                start, stop = layout.rows(shard)
                if shard in missing:
                    writer.write(shard, _rows(arrays, tokens, start, stop))
                bar.update(stop - start)
        stage.finish(writer.counts())
        return stage.manifest["counts"]


def _open_arrays(paths: Sequence[Path], column: str) -> list[ArrayFile]:
    """Opens all files; refuses arrays of different shapes."""
    arrays = [open_array(path, column) for path in paths]
    for path, array in zip(paths, arrays, strict=True):
        if array.shape[1:] != arrays[0].shape[1:]:
            raise UserError(f"{path} has shape {array.shape}, but {paths[0]} has {arrays[0].shape}: leave one out")
    return arrays


def _rows(arrays: Sequence[ArrayFile], tokens: int, start: int, stop: int) -> np.ndarray:
    """Rows `start` to `stop` of the concatenated arrays, with `tokens` rows per study. [stop - start, d_model]"""
    first, last = start // tokens, -(-stop // tokens)  # studies
    parts, offset = [], 0
    for array in arrays:
        low, high = max(first - offset, 0), min(last - offset, array.shape[0])
        if low < high:
            part = array.read(low, high)
            parts.append(part.reshape(-1, part.shape[-1]))  # [studies * tokens, d_model]
        offset += array.shape[0]
    return np.concatenate(parts)[start - first * tokens :][: stop - start]


def _names(table: str, arrays: Sequence[ArrayFile], n: int) -> pa.Table | None:
    """The table that names the studies: the user's, or the other columns of the arrays' own files."""
    own = [array.table for array in arrays if array.table is not None]
    if not table and (not own or len(own) < len(arrays)):
        return None
    path = Path(table).expanduser()
    origin = str(path) if table else "what the arrays' own files say of their studies"
    try:
        read = _read_table(path, n) if table else pa.concat_tables(own, promote_options="default")
        read.validate(full=True)  # that texts are UTF-8
        names = read.column_names
    except (OSError, pa.ArrowException, ValueError, csv.Error) as error:
        raise UserError(f"{origin} cannot be read ({first_line(error)}): check harvest.table") from error
    if len(set(names)) < len(names):
        raise UserError(f"{origin} has two columns of one name: rename one of them")
    _refuse_rows(origin, read.num_rows, n)
    return read


def _read_table(path: Path, n: int) -> pa.Table:
    if path.suffix == ".parquet":
        _refuse_rows(str(path), pq.read_metadata(path).num_rows, n)
        return _study_columns(path)
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        n_columns = len(next(filter(None, csv.reader(file)), []))
    if n_columns > _MAX_COLUMNS:
        raise UserError(f"{path} has {n_columns:,} columns: leave those of names and labels alone")
    return pyarrow.csv.read_csv(path)


def _refuse_rows(origin: str, rows: int, n: int) -> None:
    if rows != n:
        raise UserError(f"{origin} has {rows} rows for {n} studies: give one per study, in the arrays' order")


def _study_table(names: pa.Table | None, n: int, tokens: int, held_out: float, seed: int) -> pa.Table:
    """The study table (see `STUDY_SCHEMA`), with the names, splits and labels that the table `names` holds."""
    columns = {} if names is None else {name: names[name] for name in names.column_names}

    def text(name: str, default: Sequence[str]) -> list[str]:
        return [str(value) for value in columns[name].to_pylist()] if name in columns else list(default)

    studies = text("study_id", [str(i) for i in range(n)])
    patients = text("patient_id", studies)
    splits = text("split", [split_of(patient, held_out, seed) for patient in patients])
    wrong = sorted(set(splits) - {TRAIN, HELD_OUT})
    if wrong:
        raise UserError(f"harvest.table has the split {wrong[0]!r}: give {TRAIN} or {HELD_OUT}")
    labels = _labels({name: values for name, values in columns.items() if name not in _NAMES}, n)
    return pa.table(
        {
            "study_id": studies,
            "patient_id": patients,
            "split": splits,
            "labels": labels,
            "start": np.arange(n, dtype=np.int64) * tokens,
            "stop": np.arange(1, n + 1, dtype=np.int64) * tokens,
        }
    )


def _labels(columns: Mapping[str, pa.ChunkedArray], n: int) -> list[str]:
    """The labels of each study as JSON: columns of truth values, or of 0 and 1; -1 and missing values are unknown."""
    found = {}
    for name, values in columns.items():
        if not _may_be_label(values.type):
            continue
        known = np.nan_to_num(pc.cast(values, pa.float64(), safe=False).to_numpy(), nan=-1.0)  # [studies]
        # CheXpert's labellers write -1 for uncertain findings.
        if np.isin(known, (0.0, 1.0, -1.0)).all() and (known >= 0).any():
            found[name] = known.astype(np.int8)
    rows = np.reshape(list(found.values()), (len(found), n)).T  # [studies, labels]
    return [
        json.dumps({name: value == 1 for name, value in zip(found, row.tolist(), strict=True) if value >= 0})
        for row in rows
    ]
