"""A store filled by several processes: who writes which shard, and shards that wait for the last of their rows."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np

from maira_jax.errors import UserError
from maira_jax.run import processes
from maira_jax.run.performance.loop_clock import LoopClock
from maira_jax.run.progress import progress
from sae.activations.store import StoreLayout, StoreWriter


class StudyBatch(Protocol):
    """Studies whose activations are computed together."""

    @property
    def studies(self) -> tuple[int, ...]:
        """Their numbers in the study table."""


B = TypeVar("B", bound=StudyBatch)


def fill(
    writer: StoreWriter,
    starts: np.ndarray,
    batches: Iterable[B],
    read: Callable[[list[B]], Iterator[tuple[B, list[np.ndarray]]]],
    clock: Callable[[], LoopClock],
    unit: str,
) -> None:
    """Computes and writes this process's share of the shards that are missing.

    Args:
      writer: writes a whole shard.
      starts: first row of each study, and the number of all rows. int64 [studies + 1]
      batches: those of all studies.
      read: gives each batch with its studies' activations, [rows, d_model] each.
      clock: how busy the device is in that.
      unit: what a row is, for the progress bar.

    Raises:
      UserError: `read` does, the disk is full, or another process did not write its share.
    """
    missing = processes.broadcast(writer.missing() if processes.is_first() else None)
    mine = share(writer.layout, missing)
    shards = OpenShards(writer, starts, mine)
    wanted = [batch for batch in batches if any(map(shards.wants, batch.studies))]
    done, to_do = int(starts[-1]) - sum(_sizes(writer.layout, missing)), sum(_sizes(writer.layout, mine))
    with progress(total=done + to_do, initial=done, unit=unit, desc="harvest", shared=True) as bar:
        for batch, activations in read(wanted):
            copied = sum(map(shards.place, batch.studies, activations))
            bar.set_postfix_str(f"device busy {clock().share():.0%}", refresh=False)
            bar.update(copied)
    print(f"harvest: {clock().summary('images')}", file=sys.stderr)
    processes.barrier()
    # Not by the first one, whose view of a network file system may be that of the start.
    if processes.index() == processes.count() - 1 and writer.missing():
        raise UserError(
            f"{writer.directory} lacks shard {writer.missing()[0]}, which a process of this run has written: see that "
            "all hosts share the folder, and harvest again"
        )


def share(layout: StoreLayout, missing: Sequence[int]) -> list[int]:
    """The missing shards that this process writes.

    They are neighbours: studies are batched with their neighbours, and a batch that has rows of two processes' shards
    is computed by both.
    """
    sizes = np.array(_sizes(layout, missing))  # [missing]
    middles = np.cumsum(sizes) - sizes / 2
    owners = middles * processes.count() // sizes.sum()
    return [shard for shard, owner in zip(missing, owners, strict=True) if owner == processes.index()]


def _sizes(layout: StoreLayout, shards: Sequence[int]) -> list[int]:
    """Number of rows of each shard."""
    return [stop - start for start, stop in map(layout.rows, shards)]


class OpenShards:
    """Missing shards, each written when all of its rows are there.

    Args:
      writer: writes a whole shard.
      starts: first row of each study, and the number of all rows. int64 [studies + 1]
      missing: numbers of the shards.
    """

    def __init__(self, writer: StoreWriter, starts: np.ndarray, missing: Sequence[int]):
        self._writer, self._starts = writer, starts
        self._to_come = dict(zip(missing, _sizes(writer.layout, missing), strict=True))
        self._values: dict[int, np.ndarray] = {}  # [rows of the shard, d_model]

    def _of(self, study: int) -> list[int]:
        """The missing shards that hold rows of a study."""
        rows = self._writer.layout.shard_rows
        start, stop = self._starts[study : study + 2]
        return [shard for shard in range(start // rows, -(-stop // rows)) if shard in self._to_come]

    def wants(self, study: int) -> bool:
        """Whether rows of a study are missing."""
        return bool(self._of(study))

    def place(self, study: int, activations: np.ndarray) -> int:
        """Copies a study's activations, [kept, d_model], to their rows; returns how many were missing."""
        layout, first, copied = self._writer.layout, int(self._starts[study]), 0
        for shard in self._of(study):
            start, stop = layout.rows(shard)
            if shard not in self._values:
                self._values[shard] = np.empty((stop - start, layout.d_model), activations.dtype)
            low, high = max(start, first), min(stop, first + len(activations))
            self._values[shard][low - start : high - start] = activations[low - first : high - first]
            self._to_come[shard] -= high - low
            copied += high - low
            if not self._to_come[shard]:
                self._writer.write(shard, self._values.pop(shard))
                del self._to_come[shard]
        return copied
