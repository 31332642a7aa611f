"""Flax parameters on disk: an orbax checkpoint, in one folder with the model's JSON and tokenizer files.

Orbax saves only what is in memory as a whole, 27 GB for MAIRA-2. So orbax writes the tree with arrays of one element,
and TensorStore, which orbax stores arrays with, replaces them by arrays of the right size that are filled a layer at a
time. Orbax loads the result like any checkpoint; here TensorStore reads it too, since orbax answers a damaged file with
a page of text that does not say which file to replace.
"""

import contextlib
import functools
import itertools
import logging
import math
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from flax import traverse_util
from jax.sharding import AbstractMesh, Mesh
from orbax.checkpoint import v1 as ocp

from maira_jax.checkpoint.layout import Entry, entries
from maira_jax.errors import UserError
from maira_jax.model import maira2, sharding
from maira_jax.model.config import Maira2Config
from maira_jax.model.int8 import Int8Kernel, Weights, input_axis
from maira_jax.model.layers import FUSED, LAYERS, ParameterPath, Params
from maira_jax.model.sites import Site
from maira_jax.run import files, processes, storage

_PARAMS = "params"
_UNFINISHED = "params.unfinished"
_WRITTEN = "written.json"
_ARRAYS = "state"  # where orbax puts the arrays of a checkpoint, a folder each
# A chunk of zeros is written too, so that a missing one is damage.
_DRIVER = {"driver": "zarr3", "store_data_equal_to_fill_value": True, "fill_missing_data_reads": False}
_IN_FLIGHT = 1 << 29  # bytes that may wait to be written
_READ_AHEAD = 1 << 28  # bytes that are read, or wait to be put to a device, at a time
_PIECE = 1 << 26  # bytes that are read together


def _context() -> ocp.Context:
    """One uncompressed zarr array per parameter: weights do not compress, and nothing is kept back in memory."""
    context = processes.own_checkpoints()
    context.array.saving.use_ocdbt = False
    context.array.saving.use_compression = False
    return context


def save(model_dir: Path, params: Params) -> None:
    """Writes `params` under `model_dir`, whole or not at all."""
    path = (model_dir / _PARAMS).absolute()
    files.remove(path)
    with _context(), _quiet():
        ocp.save(path, params)
    storage.send(path)


class CheckpointWriter:
    """Writes parameters piece by piece, as a checkpoint that `load` reads once `finish` was called.

    Every chunk carries a checksum, so that damage to it is found when it is loaded. Where the folder stands for one in
    a bucket, the arrays are written there, past the local folder.

    Attributes:
      written: what `mark` noted, also by an earlier process that was killed.

    Args:
      model_dir: the folder that `load` takes.
      cfg: the model's configuration.
      dtype: the type of all parameters.
      mesh: devices along `data` and `model` of the mesh that will load the parameters: a chunk is what one of its
        devices holds of one layer. Any other mesh can load them too.

    Raises:
      UserError: the disk is too small.
    """

    def __init__(self, model_dir: Path, cfg: Maira2Config, dtype: np.dtype, mesh: tuple[int, ...]):
        self._final = (model_dir / _PARAMS).absolute()
        self._path = (model_dir / _UNFINISHED).absolute()
        self._pending: deque[tuple[ts.WriteFutures, int]] = deque()
        self._bytes = 0
        storage.fetch(self._path / _WRITTEN)
        resumed = (self._path / _WRITTEN).is_file() and not _is_older(self._path)
        if resumed:  # the files stay cut as they are, even for another mesh
            opened = {path: _open(self._path, path) for path in maira2.parameter_specs(cfg)}
        else:
            self.discard()
            specs = _specs(cfg, dtype, mesh)
            _need(model_dir, sum(math.prod(spec["metadata"]["shape"]) for spec in specs.values()) * dtype.itemsize)
            small = {path: np.zeros((1,) * len(spec["metadata"]["shape"]), dtype) for path, spec in specs.items()}
            with _context(), _quiet():
                ocp.save(self._path, traverse_util.unflatten_dict(small))
            storage.send(self._path)
            opened = {
                path: ts.open(spec | _kvstore(self._path, path), create=True, delete_existing=True)
                for path, spec in specs.items()
            }
        self._arrays = {path: future.result() for path, future in opened.items()}
        if not resumed:
            self._write_down({})
        self.written: dict[str, Any] = files.read_json(self._path / _WRITTEN)

    def put(self, entry: Entry, value: np.ndarray) -> None:
        """Starts to write what a tensor becomes; `value` must not change any more."""
        future = self._arrays[entry.path][entry.index].write(value, can_reference_source_data_indefinitely=True)
        self._pending.append((future, value.nbytes))
        self._bytes += value.nbytes
        while self._bytes > _IN_FLIGHT:
            self._wait()

    def mark(self, name: str, note: Any) -> None:
        """Waits until everything is on disk, then adds `name` to `written`."""
        while self._pending:
            self._wait()
        self.written[name] = note
        self._write_down(self.written)

    def _write_down(self, written: Mapping[str, Any]) -> None:
        files.write_json(self._path / _WRITTEN, written)
        storage.send(self._path / _WRITTEN)

    def finish(self) -> None:
        """Makes the parameters loadable."""
        while self._pending:
            self._wait()
        files.remove(self._path / _WRITTEN)
        files.remove(self._final)
        storage.move(self._path, self._final)

    def discard(self) -> None:
        """Removes what was written, also by an orbax that was killed."""
        for path in {self._path, *self._path.parent.glob(f"{_UNFINISHED}*")}:
            files.remove(path)

    def _wait(self) -> None:
        future, size = self._pending.popleft()
        self._bytes -= size
        try:
            future.result()
        except (OSError, RuntimeError, ValueError) as error:  # as TensorStore reports what the file system says
            raise UserError(f"could not write {self._path} ({error}): free space or choose another folder") from error


def load(
    model_dir: Path,
    mesh: tuple[int, ...] = (),
    *,
    rows: int | None = 1,
    stop: Site | None = None,
    weights: Weights = "full",
) -> tuple[Params, Maira2Config]:
    """Reads parameters, straight to their places on a mesh of this host's devices.

    The vocabulary of the embedding and the head is padded with zeros; `language.logits` leaves the padding out.

    Args:
      model_dir: the folder of a converted model.
      mesh: devices along `data` and `model`; () for `sharding.chosen_mesh`.
      rows: rows of the batches that will be computed, for the choice of the mesh; None where any number will do.
      stop: the last site that is read; what comes after it is not loaded. None for the whole model.
      weights: "int8" rounds those of the language model's products (`Int8Kernel`), a layer at a time.

    Raises:
      UserError: `model_dir` holds no converted model, or a damaged one, or one that `mesh` does not divide.
    """
    reader = CheckpointReader(model_dir)
    cfg, dtype = reader.cfg, reader.dtype

    def places(on: AbstractMesh | Mesh) -> dict[ParameterPath, jax.ShapeDtypeStruct | Int8Kernel]:
        return sharding.with_weights(sharding.of_params(cfg, on, dtype, stop), weights)

    def nbytes(on: AbstractMesh) -> int:
        return sharding.bytes_per_device(places(on))

    data, model = mesh or sharding.chosen_mesh(cfg, nbytes, rows)
    on = sharding.make_mesh((data, model))
    sharding.check(cfg, on)
    return traverse_util.unflatten_dict(reader.load(places(on))), cfg


class _Part(NamedTuple):
    """A range of a parameter's leading axis that becomes one array.

    Attributes:
      path: the parameter's path.
      leaf: the array's shape and place.
      first: where it starts in the parameter.
    """

    path: ParameterPath
    leaf: jax.ShapeDtypeStruct
    first: int = 0


class _Piece(NamedTuple):
    """A piece of a part, along its leading axis, that some devices hold.

    Attributes:
      part: the part.
      devices: the devices that hold it.
      shape: the shape of what each of them holds of the part.
      start: where the piece starts in that, along the leading axis.
      stored: the piece's index in the stored parameter.
      padded: the shape of the piece with its padding.
    """

    part: _Part
    devices: tuple[jax.Device, ...]
    shape: tuple[int, ...]
    start: int
    stored: tuple[slice, ...]
    padded: tuple[int, ...]


@functools.partial(jax.jit, donate_argnums=0)
def _put(whole: jax.Array, piece: jax.Array, start: jax.Array) -> jax.Array:
    """Overwrites rows of `whole` from `start`, in place."""
    return jax.lax.dynamic_update_slice_in_dim(whole, piece, start, 0)


@functools.partial(jax.jit, donate_argnums=0, static_argnames=("axis", "places"))
def _put_rounded(whole: Int8Kernel, kernel: jax.Array, start: jax.Array, axis: int, places: Int8Kernel) -> Int8Kernel:
    """Overwrites rows of `whole` from `start` with `kernel`, rounded, in place."""
    put = jax.tree.map(lambda old, new: _put(old, new, start), whole, Int8Kernel.of(kernel, axis))
    return jax.lax.with_sharding_constraint(put, places)


class CheckpointReader:
    """Reads a converted model, whose files are checked on the way.

    Attributes:
      cfg: the model's configuration.
      table: what a checkpoint of its architecture holds.
      dtype: the type of all parameters.

    Raises:
      UserError: `model_dir` holds no converted model, or, from any method, a damaged one.
    """

    def __init__(self, model_dir: Path):
        self._path = (Path(model_dir) / _PARAMS).absolute()
        if not storage.exists(self._path):
            raise UserError(f"{model_dir} holds no converted model: run launch.convert into it first")
        if _is_older(self._path):
            raise UserError(f"{model_dir} was converted by an older version: delete it and run launch.convert again")
        self.cfg = Maira2Config.from_dir(model_dir)
        self.table = entries(self.cfg)
        opened = {path: _open(self._path, path) for path in {entry.path for entry in self.table}}
        self._arrays = {path: self._result(future) for path, future in opened.items()}
        self.dtype: np.dtype = self._arrays[self.table[0].path].dtype.numpy_dtype

    def read(self, entry: Entry) -> np.ndarray:
        """What a tensor of the checkpoint became."""
        return self._result(self._arrays[entry.path][entry.index].read())

    def load(
        self, params: Mapping[ParameterPath, jax.ShapeDtypeStruct | Int8Kernel]
    ) -> dict[ParameterPath, jax.Array | Int8Kernel]:
        """Reads parameters of the given shapes to the given places, a few pieces at a time.

        A piece is read once, for all devices that hold it, and then leaves this host's memory.
        """
        arrays = self._arrays_of(part for path, leaf in params.items() for part in self._parts(path, leaf))
        return {
            path: _rounded(path, leaf, arrays) if isinstance(leaf, Int8Kernel) else next(arrays)
            for path, leaf in params.items()
        }

    def _parts(self, path: ParameterPath, leaf: jax.ShapeDtypeStruct | Int8Kernel) -> Iterator[_Part]:
        """What is read of a parameter at a time: of one that is rounded each layer, else all."""
        if not isinstance(leaf, Int8Kernel):
            yield _Part(path, leaf)
            return
        shape, rows = leaf.values.shape, 1 if input_axis(path) else leaf.values.shape[0]
        layer = jax.ShapeDtypeStruct((rows, *shape[1:]), self.dtype, sharding=leaf.values.sharding)
        yield from (_Part(path, layer, first) for first in range(0, shape[0], rows))

    def _arrays_of(self, parts: Iterable[_Part]) -> Iterator[jax.Array]:
        pieces = (piece for part in parts for piece in self._pieces(part))
        for part, read in itertools.groupby(self._read_ahead(pieces), key=lambda item: item[0].part):
            held: dict[jax.Device, jax.Array] = {}  # what each device holds so far
            for piece, future in read:
                self._place(held, piece, future)
            yield jax.make_array_from_single_device_arrays(part.leaf.shape, part.leaf.sharding, list(held.values()))

    def _read_ahead(self, pieces: Iterable[_Piece]) -> Iterator[tuple[_Piece, ts.Future[np.ndarray]]]:
        """Yields pieces, the next ones of which are being read."""
        reading: deque[tuple[_Piece, ts.Future[np.ndarray]]] = deque()
        in_flight = 0
        for piece in pieces:
            reading.append((piece, self._arrays[piece.part.path][piece.stored].read()))
            in_flight += math.prod(piece.padded) * self.dtype.itemsize
            while in_flight > _READ_AHEAD:
                yield reading[0]
                in_flight -= math.prod(reading.popleft()[0].padded) * self.dtype.itemsize
        while reading:
            yield reading.popleft()

    def _pieces(self, part: _Part) -> Iterator[_Piece]:
        path, leaf, first = part
        stored = self._arrays[path].shape
        if stored != maira2.parameter_specs(self.cfg)[path].shape:
            raise UserError(f"{self._path} was converted with another config.json: delete it and convert again")
        assert leaf.sharding is not None
        holders: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
        for device, index in leaf.sharding.addressable_devices_indices_map(leaf.shape).items():
            bounds = tuple(axis.indices(size)[:2] for axis, size in zip(index, leaf.shape, strict=True))
            holders.setdefault(bounds, []).append(device)
        for bounds, devices in holders.items():
            shape = tuple(stop - start for start, stop in bounds)
            rows = self._arrays[path].chunk_layout.read_chunk.shape[0]  # a chunk is read, and checked, as a whole
            step = max(_PIECE // (math.prod(shape[1:]) * self.dtype.itemsize) // rows, 1) * rows
            for start in range(0, shape[0], step):
                low = first + bounds[0][0] + start
                wanted = ((low, min(low + step, first + bounds[0][1])), *bounds[1:])
                index = tuple(slice(min(a, n), min(b, n)) for (a, b), n in zip(wanted, stored, strict=True))
                yield _Piece(part, tuple(devices), shape, start, index, tuple(b - a for a, b in wanted))

    def _place(self, held: dict[jax.Device, jax.Array], piece: _Piece, future: ts.Future[np.ndarray]) -> None:
        """Puts a piece that is being read to its devices; `held` has what they hold of the parameter so far."""
        value = self._result(future)
        if value.shape != piece.padded:
            value = np.pad(value, [(0, n - m) for n, m in zip(piece.padded, value.shape, strict=True)])
        for device in piece.devices:
            part = jax.device_put(value, device)
            if piece.padded != piece.shape:
                whole = held[device] if piece.start else jnp.zeros(piece.shape, self.dtype, device=device)
                part = _put(whole, part, np.int32(piece.start))
            held[device] = part
        jax.block_until_ready([held[device] for device in piece.devices])

    def _result(self, future: ts.Future[Any]) -> Any:
        return _result(self._path, future)


def _rounded(path: ParameterPath, leaf: Int8Kernel, kernels: Iterator[jax.Array]) -> Int8Kernel:
    """The int8 weights of `leaf`'s shapes and places, from the next arrays of `kernels`: one per layer, or one."""
    axis, places = input_axis(path), jax.tree.map(lambda each: each.sharding, leaf)
    assert axis is not None
    whole = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype, device=each.sharding), leaf)
    for start in range(leaf.values.shape[0] if axis else 1):
        whole = _put_rounded(whole, next(kernels), np.int32(start), axis, places)
    return whole


def load_unembedding(model_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads what turns the residual stream into logits, and nothing else.

    Returns:
      the final norm's weights [d_model] and the language model's head [d_model, vocab], both float32.

    Raises:
      UserError: `model_dir` holds no converted model, or a damaged one.
    """
    path = (Path(model_dir) / _PARAMS).absolute()
    if not storage.exists(path):
        raise UserError(f"{model_dir} holds no converted model: run launch.convert into it first")
    arrays = [_result(path, _open(path, keys)) for keys in (("language", "norm", "scale"), ("language", "lm_head"))]
    scale, head = (np.asarray(_result(path, array.read()), np.float32) for array in arrays)
    return scale, head


def _is_older(params: Path) -> bool:
    """Whether parameters have the form of versions that computed queries, keys and values apart."""
    return storage.exists(params / _ARRAYS / "language.layers.query.kernel")


def _open(params: Path, path: ParameterPath) -> ts.Future[ts.TensorStore]:
    return ts.open(_DRIVER | _kvstore(params, path), open=True)


def _result(params: Path, future: ts.Future[Any]) -> Any:
    try:
        return future.result()
    except (OSError, RuntimeError, ValueError) as error:  # as TensorStore reports what is missing or damaged
        what = str(error).partition(" [")[0]
        raise UserError(f"{params} is damaged or incomplete ({what}): delete it and convert again") from error


def _kvstore(checkpoint: Path, path: ParameterPath) -> dict[str, Any]:
    return {"kvstore": storage.kvstore(checkpoint / _ARRAYS / ".".join(path))}


def _specs(cfg: Maira2Config, dtype: np.dtype, mesh: tuple[int, ...]) -> dict[ParameterPath, dict[str, Any]]:
    """TensorStore specifications of all parameters. A chunk is one device's part of one layer; layers that are computed
    together have chunks of their own, since their tensors may come from different files."""
    places = sharding.of_params(cfg, sharding.abstract_mesh(*mesh))
    specs = {}
    for path, (shape, axes) in maira2.parameter_specs(cfg).items():
        shard = places[path].sharding.shard_shape(places[path].shape)
        chunk = [1 if axis in (LAYERS, FUSED) else min(each) for axis, *each in zip(axes, shard, shape, strict=True)]
        metadata = {
            "shape": shape,
            "data_type": dtype.name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": chunk},
            },
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        }
        specs[path] = _DRIVER | {"metadata": metadata}
    return specs


def _need(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if not storage.is_remote(folder) and free < size:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, but the model takes {size / 1e9:.1f} GB: free space or choose "
            "another folder"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops a warning of orbax, which misses the files of its other layout."""
    logger = logging.getLogger("absl")

    def wanted(record: logging.LogRecord) -> bool:
        return "Skipping merge of OCDBT" not in record.getMessage()

    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)
