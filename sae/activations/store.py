"""The activation store: one row per token, and for every row the word and the study it comes from.

    values.zarr/      zarr3 [tokens, d_model], sharded; bfloat16 or float32
    tokens.parquet    one row per token (see `TOKEN_SCHEMA`)
    studies.parquet   one row per study (see `STUDY_SCHEMA`)
    shards/<n>.json   one file per finished shard
    store.json        shape, dtype, shard and chunk rows, and where the activations come from

The rows of a study are contiguous and in order. A shard is written in one transaction by one owner and then marked as
finished, so a killed harvest loses at most the shards that it was writing.
"""

import dataclasses
import functools
import itertools
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorstore as ts

from maira_jax.errors import UserError, first_line
from maira_jax.run import files, processes, storage
from maira_jax.run.columns import column
from sae.activations import chunk_files
from sae.activations.chunk_files import ChunkFiles
from sae.activations.row_ranges import RowRanges
from sae.activations.token_rows import TokenRows

TRAIN, HELD_OUT = "train", "held_out"
# Rows of a shard, the unit of writing: a killed harvest loses at most one; 64 MiB for 1024 float32 columns.
SHARD_ROWS = 16384
# Rows of a chunk, the unit of reading: about one study's tokens, so that reading a study reads little else.
CHUNK_ROWS = 128
STUDY_SCHEMA = pa.schema(
    [
        column("study_id", pa.string(), "the study, each once"),
        column("patient_id", pa.string(), "the patient"),
        column("split", pa.string(), "train or held_out; all studies of a patient are in one"),
        column("labels", pa.string(), "JSON of {concept: true or false}; what is not known is not there"),
        column("start", pa.int64(), "first row of the study's tokens"),
        column("stop", pa.int64(), "one past the last"),
        column("digest", pa.string(), "a hash of the texts and images that a model was given; null of your own arrays"),
    ]
)
TOKENS, STUDIES, VALUES, SHARDS = "tokens.parquet", "studies.parquet", "values.zarr", "shards"
HEADER = "store.json"
_Table = TypeVar("_Table")
_VERSION = 2  # of the tables' columns: a store with others is refused


class ActivationRows(Protocol):
    """Rows of activations that can be read: an `ActivationStore` on disk, or the `LiveActivations` of a running model.

    Attributes:
      directory: the store's or the model's folder, for messages.
      source: where the activations come from (site, token filter, model), as plain values.
      buffer_rows: rows that training shuffles together in host memory; 0: those of one group of batches.
      readable_ahead: whether threads may read while the main thread trains.
    """

    @property
    def directory(self) -> Path: ...

    @property
    def source(self) -> Mapping[str, Any]: ...

    @property
    def buffer_rows(self) -> int: ...

    @property
    def readable_ahead(self) -> bool: ...

    @property
    def studies(self) -> pa.Table:
        """The study table; see `STUDY_SCHEMA`."""

    @property
    def n_tokens(self) -> int:
        """Number of rows."""

    @property
    def d_model(self) -> int:
        """Number of columns."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype in which activations are stored or computed."""

    def rows_of(self, split: str) -> RowRanges:
        """The rows of one split's tokens."""

    def chunk_bounds(self) -> np.ndarray:
        """The rows at which chunks begin, and the number of all rows; a chunk is read as a whole. int64 [chunks + 1]"""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop`, float32 [stop - start, d_model]."""

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Rows `start` to `stop` of each range, [stop - start, d_model] in the stored dtype."""

    def read_into(self, out: np.ndarray, rows: np.ndarray, places: np.ndarray) -> None:
        """Reads row `rows[i]` into `out[places[i]]`; `out [places, d_model]` has the stored dtype."""


@dataclasses.dataclass(frozen=True)
class StoreLayout:
    """Shape and storage of a store.

    Attributes:
      n_tokens: number of rows.
      d_model: number of columns.
      dtype: "bfloat16" or "float32".
      shard_rows: rows of a shard, the unit of writing; a multiple of `chunk_rows`.
      chunk_rows: rows of a chunk, the unit of reading.

    Raises:
      ValueError: a size is none, the dtype is another one, or shards do not consist of whole chunks.
    """

    n_tokens: int
    d_model: int
    dtype: str
    shard_rows: int
    chunk_rows: int

    def __post_init__(self) -> None:
        sizes = (self.n_tokens, self.d_model, self.shard_rows, self.chunk_rows)
        if not all(type(size) is int and 0 <= size < 2**48 for size in sizes):
            raise ValueError(f"{sizes} are no sizes")
        if self.dtype not in ("bfloat16", "float32"):
            raise ValueError(f"activations are not stored as {self.dtype}")
        if self.chunk_rows < 1 or self.shard_rows < 1 or self.shard_rows % self.chunk_rows:
            raise ValueError(f"{self.shard_rows} rows of a shard are not a multiple of {self.chunk_rows} of a chunk")

    @classmethod
    def of(cls, n_tokens: int, d_model: int, dtype: str) -> Self:
        """The layout of a new store."""
        return cls(n_tokens, d_model, dtype, SHARD_ROWS, CHUNK_ROWS)

    @property
    def n_shards(self) -> int:
        """Number of shards that hold all rows; the last one may be short."""
        return -(-self.n_tokens // self.shard_rows)

    def rows(self, shard: int) -> tuple[int, int]:
        """First row of a shard and one past its last."""
        start = shard * self.shard_rows
        return start, min(start + self.shard_rows, self.n_tokens)

    def chunk_bounds(self) -> np.ndarray:
        """The rows at which chunks begin, and the number of all rows. int64 [chunks + 1]"""
        bounds = np.arange(0, self.n_tokens + self.chunk_rows, self.chunk_rows)
        bounds[-1] = self.n_tokens
        return bounds


def _default_readers() -> int:
    return min(os.cpu_count() or 1, 32)


def _open_values(directory: Path, layout: StoreLayout, create: bool, readers: int) -> ts.TensorStore:
    shape = [layout.n_tokens, layout.d_model]
    # Uncompressed: activations do not compress, and reading would be 3 times slower.
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [layout.chunk_rows, layout.d_model],
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
            "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        },
    }
    spec = {
        "driver": "zarr3",
        "kvstore": storage.kvstore(directory / VALUES),
        "context": {"cache_pool": {"total_bytes_limit": 0}, "file_io_concurrency": {"limit": readers}},
        # A chunk that is not there is an error: zeros are written out like other values.
        "fill_missing_data_reads": False,
        "store_data_equal_to_fill_value": True,
        "metadata": {
            "shape": shape,
            "data_type": layout.dtype,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [layout.shard_rows, layout.d_model]},
            },
            "codecs": [sharding],
        },
    }
    try:
        return ts.open(spec, create=create, open=True).result()
    except (ValueError, OSError) as error:
        raise UserError(f"{directory / VALUES} cannot be opened ({first_line(error)}): harvest again") from error


def source_of(directory: Path) -> Mapping[str, Any]:
    """Where the activations of a store come from (see `ActivationStore`); empty where no store was begun."""
    path = Path(directory) / HEADER
    storage.fetch(path.parent, (HEADER,))
    found: Mapping[str, Any] = files.read_object(path).get("source", {}) if path.is_file() else {}
    return found


def finished_shards(directory: Path) -> set[int]:
    """The numbers of the shards that are there, of a store that may be unfinished."""
    # Listed, and not asked for one by one: a network file system may remember for a while that a file was missing.
    return {int(path.stem) for path in (directory / SHARDS).glob("*.json")}


def store_header(layout: StoreLayout, studies: pa.Table, source: Mapping[str, Any]) -> dict[str, Any]:
    """What `store.json` says of a store; see `StoreWriter`. Two stores with the same one hold the same."""
    described = {"version": _VERSION, "layout": dataclasses.asdict(layout), "source": dict(source)}
    return described | {"studies": files.digest(_all_columns(studies).to_pydict())}


def _all_columns(studies: pa.Table) -> pa.Table:
    """A study table with all columns of `STUDY_SCHEMA`, null where it does not have them."""
    return pa.concat_tables([STUDY_SCHEMA.empty_table(), studies.cast(_schema_of(studies))], promote_options="default")


def _schema_of(studies: pa.Table) -> pa.Schema:
    return pa.schema([STUDY_SCHEMA.field(name) for name in studies.column_names])


class StoreWriter:
    """Writes a store shard by shard, in any order, and resumes one that was left unfinished.

    Another store in the folder is refused, unless `set_aside` has moved it out of the way.

    The processes of a run make it together; each then writes shards of its own.

    Args:
      directory: the store's folder.
      layout: shape and storage of the store.
      tokens: which tokens the `layout.n_tokens` rows are.
      studies: the study table; see `STUDY_SCHEMA`.
      source: where the activations come from (site, token filter, model), as plain values.

    Raises:
      UserError: the folder holds another store.
      ValueError: there are other numbers of tokens and of rows.
    """

    def __init__(
        self, directory: Path, layout: StoreLayout, tokens: TokenRows, studies: pa.Table, source: Mapping[str, Any]
    ):
        self.directory, self.layout, self.studies = Path(directory), layout, studies
        if len(tokens) != layout.n_tokens:
            raise ValueError(f"{len(tokens)} tokens for a store of {layout.n_tokens} rows")
        self._header = store_header(layout, studies, source)
        if processes.is_first():
            self._begin(tokens)
        processes.barrier()
        self._values = _open_values(self.directory, layout, False, _default_readers())

    def _begin(self, tokens: TokenRows) -> None:
        path = self.directory / HEADER
        if path.is_file():
            if files.read_json(path) != self._header:
                raise UserError(f"{path} describes another store: delete {self.directory} or choose another --workdir")
        else:
            with files.atomic_path(self.directory / TOKENS) as temporary:
                tokens.write(temporary, self.studies["study_id"])
            with files.atomic_path(self.directory / STUDIES) as temporary:
                pq.write_table(_all_columns(self.studies), temporary)
        _open_values(self.directory, self.layout, True, _default_readers())
        files.write_json(path, self._header)

    def _mark(self, shard: int) -> Path:
        return self.directory / SHARDS / f"{shard:06d}.json"

    def missing(self) -> list[int]:
        """Shards that are not finished."""
        storage.fetch(self.directory / SHARDS)
        finished = finished_shards(self.directory)
        return [shard for shard in range(self.layout.n_shards) if shard not in finished]

    def counts(self) -> dict[str, int]:
        """What the manifest of a finished harvest counts."""
        splits = self.studies["split"].to_pylist()
        return {
            "studies": len(splits),
            "studies_held_out": splits.count(HELD_OUT),
            "tokens": self.layout.n_tokens,
            "tokens_train": len(RowRanges.of_split(self.studies.to_batches(), TRAIN)),
            "d_model": self.layout.d_model,
        }

    def write(self, shard: int, values: np.ndarray) -> None:
        """Writes all rows of a shard, `values [rows, d_model]`, and marks it as finished.

        Raises:
          UserError: the values are not finite, or the disk is full.
          ValueError: the values have another shape than the shard.
        """
        start, stop = self.layout.rows(shard)
        if values.shape != (stop - start, self.layout.d_model):
            raise ValueError(f"shard {shard} has shape {(stop - start, self.layout.d_model)}, not {values.shape}")
        if not np.isfinite(values.astype(np.float32)).all():
            raise UserError(
                f"rows {start} to {stop} of the activations are not finite: set model.dtype to float32, or "
                "fix your arrays"
            )
        try:
            with ts.Transaction() as transaction:
                self._values.with_transaction(transaction)[start:stop] = values.astype(self._values.dtype.numpy_dtype)
        except (ValueError, OSError) as error:
            raise UserError(
                f"could not write {self.directory} ({first_line(error)}): free space and run again"
            ) from error
        files.write_json(self._mark(shard), {"start": start, "stop": stop})


@dataclasses.dataclass(frozen=True)
class ActivationStore:
    """A finished store, for reading; `ActivationRows`.

    Attributes:
      directory: the store's folder.
      layout: shape and storage of the store.
      source: where the activations come from, as plain values.
      readers: threads that read chunks.
      buffer_rows: see `ActivationRows`; 0 by default, since the rows of a group already come from all over the store.
    """

    directory: Path
    layout: StoreLayout
    source: Mapping[str, Any]
    _values: ts.TensorStore
    readers: int
    buffer_rows: int = 0
    readable_ahead: ClassVar[bool] = True

    @classmethod
    def open(cls, directory: Path, readers: int | None = None, unfinished: bool = False) -> "ActivationStore":
        """Opens the store in `directory`, to be read by this many threads; None: one per processor, at most 32.

        Raises:
          UserError: there is none, or it is not finished and `unfinished` does not allow that.
        """
        directory = Path(directory)
        found = files.read_object(directory / HEADER)
        if found.get("version") != _VERSION:
            raise UserError(
                f"{directory} was written by another version of this program, with other columns: delete it and "
                "harvest again"
            )
        try:
            layout, source = StoreLayout(**found["layout"]), dict(found["source"])
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(f"{directory / HEADER} is not an activation store's header: harvest again") from error
        finished = len(finished_shards(directory))
        if finished < layout.n_shards and not unfinished:
            raise UserError(
                f"{directory} holds {finished} of {layout.n_shards} shards: run the harvest again to finish it"
            )
        readers = readers or _default_readers()
        return cls(directory, layout, source, _open_values(directory, layout, False, readers), readers)

    @property
    def n_tokens(self) -> int:
        """Number of rows."""
        return self.layout.n_tokens

    @property
    def d_model(self) -> int:
        """Number of columns."""
        return self.layout.d_model

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype in which activations are stored."""
        return self._values.dtype.numpy_dtype

    @functools.cached_property
    def _chunks(self) -> ChunkFiles | None:
        """The chunks of files on this host; None where TensorStore is to read them, as for a store in a bucket."""
        folder = self.directory / VALUES
        if storage.is_remote(folder) or sys.byteorder != "little" or not chunk_files.is_fast():
            return None
        size = self.layout.chunk_rows * self.d_model * self.dtype.itemsize
        return ChunkFiles(folder, size, self.layout.shard_rows // self.layout.chunk_rows)

    @property
    def tokens(self) -> TokenRows:
        """Which token each row is."""
        studies = self.studies
        return self._read(TOKENS, lambda path: TokenRows.read(path, studies["start"].to_numpy()))

    @property
    def studies(self) -> pa.Table:
        """The study table; see `STUDY_SCHEMA`."""
        return self._read(STUDIES, lambda path: pq.read_table(path).select(STUDY_SCHEMA.names).cast(STUDY_SCHEMA))

    def _read(self, name: str, read: Callable[[Path], _Table]) -> _Table:
        try:
            return read(self.directory / name)
        except (OSError, LookupError, TypeError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{self.directory / name} cannot be read ({first_line(error)}): harvest again") from error

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop`, float32 [stop - start, d_model]."""
        return self.read_ranges([(start, stop)])[0].astype(np.float32)

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Rows `start` to `stop` of each range, [stop - start, d_model] in the stored dtype."""
        reads = [self._values[start:stop].read() for start, stop in ranges]
        try:
            return [read.result() for read in reads]
        except (ValueError, OSError) as error:
            raise UserError(f"{self.directory} cannot be read ({first_line(error)}): harvest again") from error

    def read_into(self, out: np.ndarray, rows: np.ndarray, places: np.ndarray) -> None:
        """Reads row `rows[i]` into `out[places[i]]`, chunk by chunk in `readers` threads.

        Raises:
          UserError: a chunk is damaged or missing.
        """
        order = np.argsort(rows, kind="stable")
        rows, places = rows[order], places[order]
        words = np.dtype(f"u{self.dtype.itemsize}")  # NumPy copies numbers of its own without holding other threads up
        out = out.view(words)
        # Neighbours are copied as they lie: mostly a chunk has but a few ranges of them.
        chunk_begins = np.flatnonzero(np.diff(rows // self.layout.chunk_rows, prepend=-1))
        ranges = np.union1d(chunk_begins, np.flatnonzero(np.diff(rows, prepend=-2) != 1))
        edges = np.append(ranges, len(rows)).tolist()
        of_chunks = np.append(np.searchsorted(ranges, chunk_begins), len(ranges)).tolist()
        waiting = deque(itertools.pairwise(of_chunks))  # the ranges of each chunk

        def copy() -> None:
            memory = self._chunks.new_memory() if self._chunks else None
            while waiting:
                try:
                    begin, end = waiting.popleft()
                except IndexError:  # another thread was faster
                    return
                first = int(rows[edges[begin]])
                values = self._rows_of_chunk(first, int(rows[edges[end] - 1]) + 1, memory, words)
                for start, stop in itertools.pairwise(edges[begin : end + 1]):
                    low = int(rows[start]) - first
                    out[places[start:stop]] = values[low : low + stop - start]

        with ThreadPoolExecutor(self.readers) as pool:
            # One task a thread: to hand over each chunk would take a third of the time that reading it does.
            tasks = [pool.submit(copy) for _ in range(min(self.readers, len(waiting)))]
            try:
                for task in tasks:
                    task.result()
            finally:
                waiting.clear()  # after an error or an interrupt the other threads end, too

    def _rows_of_chunk(
        self, start: int, stop: int, memory: np.ndarray | None, words: np.dtype[np.unsignedinteger]
    ) -> np.ndarray:
        """Rows `start` to `stop` of one chunk as `words`, valid until `memory` is used again."""
        if self._chunks is None or memory is None:
            return self.read_ranges([(start, stop)])[0].view(words)
        chunk, first = divmod(start, self.layout.chunk_rows)
        try:
            content = self._chunks.read(chunk, memory)
        except (ValueError, OSError) as error:
            raise UserError(f"{self.directory} cannot be read ({first_line(error)}): harvest again") from error
        return content.view(words).reshape(-1, self.layout.d_model)[first : first + stop - start]

    def rows_of(self, split: str) -> RowRanges:
        """The rows of one split's tokens."""
        # In parts: the whole table of a large store takes more memory than all else that reading needs.
        columns = ["split", "start", "stop"]
        return self._read(
            STUDIES, lambda path: RowRanges.of_split(pq.ParquetFile(path).iter_batches(columns=columns), split)
        )

    def chunk_bounds(self) -> np.ndarray:
        """The rows at which chunks begin, and the number of all rows. int64 [chunks + 1]"""
        return self.layout.chunk_bounds()
