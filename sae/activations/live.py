"""Training from the running model: what a step needs is computed when it is read, and nothing is stored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pyarrow as pa

from sae.activations.config import ActivationSource, HarvestSection
from sae.activations.harvest import Harvester
from sae.activations.store import ActivationRows, ActivationStore, rows_of

# Tokens of the running model that are shuffled together in host memory: 4 GiB at a width of 4,096 in float32, and
# hundreds of studies, so that a batch does not hold many tokens of the same one.
BUFFER_TOKENS = 2**18


class LiveActivations:
    """Activations that are computed when they are read; `ActivationRows`.

    Attributes:
      directory: the model's folder, for messages.
      source: where the activations come from, as plain values.
      buffer_rows: rows that are shuffled together in host memory.
    """

    def __init__(self, harvester: Harvester, directory: Path, buffer_rows: int):
        self._harvester = harvester
        self.directory, self.source, self.buffer_rows = directory, harvester.source, buffer_rows

    @property
    def studies(self) -> pa.Table:
        """The study table; see `STUDY_SCHEMA`."""
        return self._harvester.studies

    @property
    def n_tokens(self) -> int:
        """Number of rows."""
        return self._harvester.plan.n_tokens

    @property
    def d_model(self) -> int:
        """Number of columns."""
        return self._harvester.d_model

    def rows_of(self, split: str) -> np.ndarray:
        """Row numbers of the tokens of one split, ascending. int64 [n]"""
        return rows_of(self._harvester.studies, split)

    def chunk_of(self, rows: np.ndarray) -> np.ndarray:
        """For each row, the number of its study, which is computed as a whole. int64 [n]"""
        return np.searchsorted(self._harvester.plan.starts, rows, side="right") - 1

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop`, float32 [stop - start, d_model]."""
        return self.read_ranges([(start, stop)])[0].astype(np.float32)

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Rows `start` to `stop` of each range, [stop - start, d_model] in the harvest's dtype.

        A study that several ranges touch is computed once.
        """
        plan = self._harvester.plan
        wanted = sorted({i for rows in ranges for i in plan.touching(rows)})
        computed: dict[int, np.ndarray] = {}  # [kept, d_model] by number of the study
        for batch, activations in self._harvester.read(self._harvester.batches.of(wanted)):
            computed |= zip(batch.studies, activations, strict=True)

        def rows(start: int, stop: int) -> np.ndarray:
            touched = [i for i in plan.touching((start, stop)) if i in computed]
            first = {i: int(plan.starts[i]) for i in touched}
            return np.concatenate([computed[i][max(start - first[i], 0) : stop - first[i]] for i in touched])

        return [rows(start, stop) for start, stop in ranges]


def open_source(source: ActivationSource, config: ml_collections.ConfigDict, workdir: Path) -> ActivationRows:
    """Opens the activations of a run.

    Args:
      source: "store" for those of `workdir/activations`, "model" for those of the running model.
      config: the whole configuration, with its sections `harvest` and `studies`.
      workdir: the run's folder.

    Raises:
      UserError: the store or the model cannot be opened.
    """
    workdir = Path(workdir)
    if source == "store":
        return ActivationStore.open(workdir / "activations")
    return LiveActivations(Harvester.open(config, workdir), workdir / "model", BUFFER_TOKENS)


def source_identity(
    source: ActivationSource, config: ml_collections.ConfigDict
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The fields outside `train` that decide the activations, and the stages that training from them needs."""
    if source == "store":
        return {}, ("activations",)
    return {"harvest": HarvestSection.of(config).deciding(), "studies": config.studies.to_dict()}, ("model",)
