"""Exemplars read batch by batch, and results that are saved batch by batch, so that a killed run resumes."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow.compute as pc

from interp.exemplars import exemplar_table
from interp.explainers import explainer
from maira_jax.run import files
from maira_jax.run.progress import progress

Records: TypeAlias = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class ExemplarBatches:
    """The exemplars of features, in batches of `explainer.FEATURE_BATCH`.

    Attributes:
      path: the parquet file of exemplars.
      n_features: number of features in it.
      phases: folder of the results that are saved batch by batch.
      not_read: columns of the file that `read` leaves out.
      of: which controls the features are; empty for those of the autoencoder.
    """

    path: Path
    n_features: int
    phases: Path
    not_read: tuple[str, ...] = ()
    of: str = ""

    def read(self, batches: Iterable[range], wanted: pc.Expression) -> Iterator[tuple[int, Records]]:
        """Each feature of the batches, with those of its exemplars that are wanted."""
        for batch in batches:
            rows: dict[int, Records] = {feature: [] for feature in batch}
            table = exemplar_table.read(self.path, batch.start, batch.stop)
            for row in table.filter(wanted).drop_columns(list(self.not_read)).to_pylist():
                rows[row["feature"]].append(row)
            yield from rows.items()

    def named(self, work: str) -> str:
        """A piece of work on these features, as progress bars name it."""
        return f"{work} ({self.of})" if self.of else work

    def saved(
        self, folder: str, description: str, compute: Callable[[Sequence[range]], Iterator[dict[str, Any]]]
    ) -> Records:
        """The records of all features; a batch whose file is there is read and not computed again.

        Args:
          folder: where in `phases` the files are.
          description: for the progress bar.
          compute: gives one record for each feature of the batches that it is called with.
        """
        size = explainer.FEATURE_BATCH
        batches = [range(begin, min(begin + size, self.n_features)) for begin in range(0, self.n_features, size)]
        paths = {batch: self.phases / folder / f"{batch.start:08d}.json" for batch in batches}
        missing = [batch for batch in batches if not paths[batch].is_file()]
        records = compute(missing)
        joined: Records = []
        with progress(total=self.n_features, unit="features", desc=f"interpret: {self.named(description)}") as bar:
            for batch in batches:
                if batch in missing:
                    files.write_json(paths[batch], list(itertools.islice(records, len(batch))))
                joined += files.read_json(paths[batch])
                bar.update(len(batch))
        assert next(records, None) is None  # also lets it end what it opened
        return joined
