"""The checkpoints that a training run resumes from.

    STEP/NAME/                zarr3: one array of the state, its features in order
    STEP/whole.I-of-N.json    process I of N has written its parts; holds the normalisation factor

Each process writes what lies on its devices, to the run directory's folder or straight to its bucket, and then its
mark: a checkpoint is whole when all marks are there, and no process waits for another one.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts

from maira_jax.errors import UserError, first_line
from maira_jax.run import files, processes, storage
from sae.training.trainer import Trainer, TrainState

_MARK = re.compile(r"(\d+)/whole\.\d+-of-(\d+)\.json")
_CHUNK_BYTES = 1 << 26

Parts = Sequence[tuple[tuple[slice, ...], np.ndarray]]  # places in an array, and what is there


class Checkpoints:
    """The two latest states of a training run.

    States are kept with their features in order, so a run may resume on another mesh, and with another number of
    processes. The position in the data is the number of steps. Writing happens in the background; a checkpoint that was
    not written to its end is removed when the run resumes.

    Args:
      directory: the folder that holds them; it may stand for one in a bucket.
      trainer: the trainer whose states are saved.
    """

    def __init__(self, directory: Path, trainer: Trainer):
        self._trainer, self._directory = trainer, Path(directory)
        self._writer, self._writing = ThreadPoolExecutor(1, "checkpoint"), list[Future[None]]()

    def save(self, state: TrainState, scale: float) -> None:
        """Starts to write `state` (striped, as it trains) and the normalisation factor.

        Raises:
          UserError: the checkpoint before this one could not be written.
        """
        self._wait()
        leaves = jax.tree_util.tree_leaves_with_path(self._trainer.ordered(state))
        for _, leaf in leaves:
            leaf.copy_to_host_async()
        folder = self._directory / str(int(state.step))
        written = [(_spec(folder / _name(path), leaf), _own_parts(leaf)) for path, leaf in leaves]
        self._writing.append(self._writer.submit(self._write, int(state.step), written, scale))

    def load_latest(self) -> tuple[TrainState, float] | None:
        """The latest state, striped for the trainer's mesh, and the normalisation factor; None if there is none.

        Raises:
          UserError: it is damaged.
        """
        latest = processes.broadcast(self._latest() if processes.is_first() else None)
        if latest is None:
            return None
        step, scale = latest
        folder = self._directory / str(step)
        try:
            state = jax.tree_util.tree_map_with_path(
                lambda path, leaf: _read(_spec(folder / _name(path), leaf), leaf), self._trainer.abstract_state()
            )
        except (ValueError, OSError) as error:
            raise UserError(
                f"{folder} is damaged ({first_line(error)}): delete it and run again, which resumes from the "
                "checkpoint before it"
            ) from error
        return self._trainer.striped(state), scale

    def close(self) -> None:
        """Waits for what is being written, by all processes.

        Raises:
          UserError: it could not be written.
        """
        try:
            self._wait()
        finally:
            self._writer.shutdown()
        processes.barrier()

    def _wait(self) -> None:
        """A checkpoint is written in the background, so what goes wrong shows when the next one begins."""
        while self._writing:
            try:
                self._writing.pop().result()
            except (ValueError, OSError) as error:
                raise UserError(
                    f"could not write a checkpoint in {self._directory} ({first_line(error)}): free space and run "
                    "again, which resumes from the checkpoint before it"
                ) from error

    def _write(self, step: int, arrays: Sequence[tuple[dict[str, Any], Parts]], scale: float) -> None:
        """Writes this process's parts of the arrays, each with its specification, and then its mark."""
        if processes.is_first():
            for old in self._whole()[:-1]:
                files.remove(self._directory / str(old))
        writes = []
        for spec, parts in arrays:
            # All processes know what the first one writes about an array.
            opened = ts.open(spec, open=True, create=processes.is_first(), assume_metadata=not processes.is_first())
            writes += [opened.result()[index].write(values) for index, values in parts]
        for write in writes:
            write.result()
        self._mark(step, scale)

    def _mark(self, step: int, scale: float) -> None:
        name = f"{step}/whole.{processes.index()}-of-{processes.count()}.json"
        self._store().write(name, json.dumps({"scale": scale})).result()

    def _store(self) -> ts.KvStore:
        return ts.KvStore.open(storage.kvstore(self._directory)).result()

    def _whole(self) -> list[int]:
        """The steps of all checkpoints that every process has written to the end."""
        marks: dict[tuple[int, int], int] = defaultdict(int)  # step, processes -> marks
        for key in self._store().list().result():
            if found := _MARK.fullmatch(key.decode()):
                marks[int(found[1]), int(found[2])] += 1
        return sorted(step for (step, count), there in marks.items() if there == count)

    def _latest(self) -> tuple[int, float] | None:
        """The latest whole checkpoint's step and normalisation factor; removes those that are not whole."""
        store, whole = self._store(), self._whole()
        keys = [key.decode() for key in store.list().result()]
        for folder in {key.partition("/")[0] for key in keys} - {str(step) for step in whole}:
            files.remove(self._directory / folder)
        if not whole:
            return None
        mark = next(key for key in keys if key.startswith(f"{whole[-1]}/whole."))
        return whole[-1], json.loads(store.read(mark).result().value)["scale"]


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _own_parts(array: jax.Array) -> Parts:
    """What this process writes of an array: copies, as the devices' own memory is used again."""
    return [(shard.index, np.array(shard.data)) for shard in array.addressable_shards if shard.replica_id == 0]


def _spec(folder: Path, array: jax.Array | jax.ShapeDtypeStruct) -> dict[str, Any]:
    """TensorStore's specification of an array, in which no two devices write to one chunk."""
    assert array.sharding is not None
    chunk = list(array.sharding.shard_shape(array.shape))
    while math.prod(chunk) * array.dtype.itemsize > _CHUNK_BYTES and chunk[0] % 2 == 0:
        chunk[0] //= 2
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    grid = {"name": "regular", "configuration": {"chunk_shape": chunk}}
    return {
        "driver": "zarr3",
        "kvstore": storage.kvstore(folder),
        # A chunk that is not there is an error: zeros are written out like other values.
        "fill_missing_data_reads": False,
        "store_data_equal_to_fill_value": True,
        "metadata": {"shape": array.shape, "data_type": array.dtype.name, "chunk_grid": grid, "codecs": codecs},
    }


def _read(spec: dict[str, Any], leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """An array with the shape, dtype and sharding of `leaf`, from chunks of any shape."""
    del spec["metadata"]["chunk_grid"]
    opened = ts.open(spec, open=True).result()
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: opened[index].read().result())
