"""A store filled by several processes: who writes which shard, and shards that wait for the last of their rows."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np

from maira_jax.errors import UserError
from maira_jax.run import processes
from maira_jax.run.performance.loop_clock import LoopClock
from maira_jax.run.progress import progress
from sae.activations.earlier_rows import EarlierRows
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
    earlier: EarlierRows,
) -> None:
    """Computes or copies, and writes, this process's share of the shards that are missing.

    Args:
      writer: writes a whole shard.
      starts: first row of each study, and the number of all rows. int64 [studies + 1]
      batches: those of all studies that are not among the earlier ones.
      read: gives each batch with its studies' activations, [rows, d_model] each.
      clock: how busy the device is in that.
      unit: what a row is, for the progress bar.
      earlier: the rows that are copied.

    Raises:
      UserError: `read` does, the disk is full, or another process did not write its share.
    """
    missing = processes.broadcast(writer.missing() if processes.is_first() else None)
    to_compute = n_computed(writer.layout, missing, earlier)
    mine = share(missing, to_compute)
    shards = OpenShards(writer, starts, mine, earlier)
    wanted = [batch for batch in batches if any(map(shards.wants, batch.studies))]
    done, to_do = int(starts[-1]) - sum(to_compute), sum(n_computed(writer.layout, mine, earlier))
    if processes.is_first() and earlier.studies:
        n = len(starts) - 1
        print(f"harvest: activations of {len(earlier.studies)} of {n} studies are there and copied", file=sys.stderr)
    shards.write_copied()
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


def share(missing: Sequence[int], to_compute: Sequence[int]) -> list[int]:
    """The missing shards that this process writes; `to_compute` are the numbers of their rows that are not copied.

    They are neighbours: studies are batched with their neighbours, and a batch that has rows of two processes' shards
    is computed by both.
    """
    sizes = np.array(to_compute) + 1  # [missing]; copying takes little, but not nothing
    middles = np.cumsum(sizes) - sizes / 2
    owners = middles * processes.count() // sizes.sum()
    return [shard for shard, owner in zip(missing, owners, strict=True) if owner == processes.index()]


def n_computed(layout: StoreLayout, shards: Sequence[int], earlier: EarlierRows) -> list[int]:
    """Number of rows of each shard that are not copied."""
    bounds = np.array([layout.rows(shard) for shard in shards], np.int64).reshape(-1, 2)
    sizes: list[int] = (np.diff(bounds) - np.diff(earlier.rows.below(bounds)))[:, 0].tolist()
    return sizes


class OpenShards:
    """Missing shards, each written when all of its rows are there.

    Args:
      writer: writes a whole shard.
      starts: first row of each study, and the number of all rows. int64 [studies + 1]
      missing: numbers of the shards.
      earlier: the rows that are copied when all others of a shard are there.
    """

    def __init__(self, writer: StoreWriter, starts: np.ndarray, missing: Sequence[int], earlier: EarlierRows):
        self._writer, self._starts, self._earlier = writer, starts, earlier
        self._to_come = dict(zip(missing, n_computed(writer.layout, missing, earlier), strict=True))
        # The first row of each piece, and its activations, [rows, d_model].
        self._pieces: dict[int, list[tuple[int, np.ndarray]]] = {shard: [] for shard in missing}

    def write_copied(self) -> None:
        """Writes the shards of which nothing is computed."""
        for shard in [shard for shard, n in self._to_come.items() if not n]:
            self._write(shard)

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
            low, high = max(start, first), min(stop, first + len(activations))
            self._pieces[shard].append((low, activations[low - first : high - first].copy()))  # not the whole batch
            self._to_come[shard] -= high - low
            copied += high - low
            if not self._to_come[shard]:
                self._write(shard)
        return copied

    def _write(self, shard: int) -> None:
        pieces = self._pieces.pop(shard) + self._earlier.read(*self._writer.layout.rows(shard))
        self._writer.write(shard, np.concatenate([values for _, values in sorted(pieces, key=lambda piece: piece[0])]))
        del self._to_come[shard]
