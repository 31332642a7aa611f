"""Rows that an earlier store of other studies holds already: they are copied, and not computed again.

Where the studies of a harvest have changed, the store that was there, finished or not, is moved to `earlier/N` inside
of its folder. There it stays until the new one is whole, so that a killed harvest finds it again.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maira_jax.errors import UserError
from maira_jax.run import files, processes, storage
from maira_jax.run.jsonl import EARLIER
from maira_jax.run.stages.stage import MANIFEST
from sae.activations.config import HarvestSection
from sae.activations.row_ranges import RowRanges
from sae.activations.store import HEADER, SHARDS, STUDIES, TOKENS, VALUES, ActivationStore, finished_shards

_MOVING = "moving.json"  # the header of a store that is being moved
_NAMED = 5  # studies that the refusal names


def _set_aside_other(directory: Path, header: Mapping[str, Any], studies: pa.Table, remove_studies: bool) -> None:
    """Moves a store with another header out of the way of the one that is to be written."""
    earlier, path = directory / EARLIER, directory / HEADER
    if path.is_file() and files.read_json(path) != header:
        _refuse_loss(directory, studies, remove_studies)
        files.remove(directory / MANIFEST)
        target = earlier / f"{len(list(earlier.glob('*'))):03d}"
        target.mkdir(parents=True, exist_ok=True)
        path.rename(target / _MOVING)
    for mark in earlier.glob(f"*/{_MOVING}"):  # of a harvest that was killed in between, too
        for name in (VALUES, TOKENS, STUDIES, SHARDS):
            if (directory / name).exists():
                (directory / name).rename(mark.with_name(name))
        mark.rename(mark.with_name(HEADER))


def _refuse_loss(directory: Path, studies: pa.Table, remove_studies: bool) -> None:
    if storage.is_remote(directory):
        raise UserError(f"{directory} is of other studies, and in a bucket: delete it or choose another --workdir")
    there = pq.read_table(directory / STUDIES, columns=["study_id"])["study_id"].to_pylist()
    gone = sorted(set(there) - set(studies["study_id"].to_pylist()))
    if gone and finished_shards(directory) and not remove_studies:
        named = ", ".join(gone[:_NAMED]) + (f" and {len(gone) - _NAMED} more" if len(gone) > _NAMED else "")
        raise UserError(
            f"{directory} holds activations of studies that are not among the readable ones any more: {named}: give "
            "--config.harvest.remove_studies=true to have these removed and the others kept, or choose another "
            "--workdir"
        )


@dataclasses.dataclass(frozen=True)
class EarlierRows:
    """Where earlier stores have the rows of studies.

    Attributes:
      stores: the stores, which may be unfinished.
      starts: first row of each study in the new store, and the number of all rows. int64 [studies + 1]
      store: for each study the number of the store that has its rows; -1: none. int64 [studies]
      first: its first row there. int64 [studies]
    """

    stores: Sequence[ActivationStore]
    starts: np.ndarray
    store: np.ndarray
    first: np.ndarray

    @classmethod
    def take(cls, directory: Path, header: Mapping[str, Any], studies: pa.Table, harvest: HarvestSection) -> Self:
        """Makes room for a store in `directory`, and finds what other ones that are there have of its studies.

        Args:
          directory: the store's folder.
          header: `store_header` of the store that is to be written.
          studies: its study table; see `STUDY_SCHEMA`.
          harvest: the section of the configuration.

        Raises:
          UserError: studies that are there are missing and may not be, an earlier store cannot be opened, or there is
            another store and the folder is in a bucket.
        """
        processes.first_only(lambda: _set_aside_other(directory, header, studies, harvest.remove_studies))
        stores = [
            ActivationStore.open(path.parent, unfinished=True)
            for path in sorted((directory / EARLIER).glob(f"*/{HEADER}"))
        ]
        places: dict[tuple[str, int], tuple[int, int]] = {}  # store and row by digest and number of rows
        for number, store in enumerate(stores):
            finished, rows = finished_shards(store.directory), store.layout.shard_rows
            table = store.studies
            if "digest" in table.column_names:
                for study in table.select(["digest", "start", "stop"]).to_pylist():
                    start, stop = study["start"], study["stop"]
                    if finished.issuperset(range(start // rows, -(-stop // rows))):
                        places[study["digest"], stop - start] = number, start
        starts, stops = (studies[name].to_numpy() for name in ("start", "stop"))
        keys = zip(studies["digest"].to_pylist(), (stops - starts).tolist(), strict=True)
        found = np.array([places.get(key, (-1, 0)) for key in keys], np.int64).reshape(-1, 2)
        return cls(stores, np.append(starts, stops[-1:]), found[:, 0], found[:, 1])

    @property
    def studies(self) -> frozenset[int]:
        """Numbers of the studies whose rows are there."""
        return frozenset(np.flatnonzero(self.store >= 0).tolist())

    @property
    def rows(self) -> RowRanges:
        """The rows of the new store that are there."""
        there = self.store >= 0
        return RowRanges.of(self.starts[:-1][there], self.starts[1:][there])

    def read(self, start: int, stop: int) -> list[tuple[int, np.ndarray]]:
        """Those rows from `start` to `stop` of the new store that are there.

        Returns:
          The first row of each run of neighbours, and their activations, [rows, d_model] in the stored dtype.

        Raises:
          UserError: an earlier store is damaged.
        """
        runs = self._runs(start, stop)
        found = []
        for number, store in enumerate(self.stores):
            own = [(low, (low + shift, high + shift)) for of, shift, low, high in runs if of == number]
            try:
                values = store.read_ranges([rows for _, rows in own])
            except UserError as error:
                raise UserError(f"{store.directory} is damaged: delete it and harvest again") from error
            found += list(zip((low for low, _ in own), values, strict=True))
        return found

    def _runs(self, start: int, stop: int) -> list[tuple[int, int, int, int]]:
        """Neighbouring rows that are neighbours in an earlier store: its number, how far they lie apart, first, end."""
        runs: list[tuple[int, int, int, int]] = []
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        for study in range(first, int(np.searchsorted(self.starts, stop, side="left"))):
            low, high = max(start, int(self.starts[study])), min(stop, int(self.starts[study + 1]))
            if low < high and self.store[study] >= 0:
                place = int(self.store[study]), int(self.first[study] - self.starts[study])
                if runs and (*runs[-1][:2], runs[-1][3]) == (*place, low):
                    low = runs.pop()[2]
                runs.append((*place, low, high))
        return runs
