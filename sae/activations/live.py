"""Training from the running model: what a step needs is computed when it is read, and nothing is stored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pyarrow as pa

from maira_jax.run import processes
from maira_jax.run.config import RunSection
from sae.activations.config import ActivationSource, HarvestSection
from sae.activations.harvest import Harvester
from sae.activations.row_ranges import RowRanges
from sae.activations.store import ActivationRows, ActivationStore

# Tokens of the running model that are shuffled together in host memory: 4 GiB at a width of 4,096 in float32, and
# hundreds of studies, so that a batch does not hold many tokens of the same one.
BUFFER_TOKENS = 2**18


class LiveActivations:
    """Activations that are computed when they are read; `ActivationRows`.

    Attributes:
      directory: the model's folder, for messages.
      source: where the activations come from, as plain values.
      buffer_rows: rows that are shuffled together in host memory.
      readable_ahead: see `ActivationRows`. Where several processes share the programs of a training, all devices must
        be given their programs in one order, so the main thread runs the model too.
    """

    def __init__(self, harvester: Harvester, directory: Path, buffer_rows: int):
        self._harvester = harvester
        self.directory, self.source, self.buffer_rows = directory, harvester.source, buffer_rows
        self.readable_ahead = processes.count() == 1

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

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype in which activations are computed for the store."""
        return self._harvester.dtype

    def rows_of(self, split: str) -> RowRanges:
        """The rows of one split's tokens."""
        return RowRanges.of_split(self._harvester.studies.to_batches(), split)

    def chunk_bounds(self) -> np.ndarray:
        """The first row of each study, which is computed as a whole, and the number of all rows. int64 [studies + 1]"""
        return self._harvester.plan.starts

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop`, float32 [stop - start, d_model]."""
        return self.read_ranges([(start, stop)])[0].astype(np.float32)

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Rows `start` to `stop` of each range, [stop - start, d_model] in the harvest's dtype."""
        rows = np.concatenate([np.arange(start, stop) for start, stop in ranges])
        values = np.empty((len(rows), self.d_model), self.dtype)
        self.read_into(values, rows, np.arange(len(rows)))
        return np.split(values, np.cumsum([stop - start for start, stop in ranges])[:-1])

    def read_into(self, out: np.ndarray, rows: np.ndarray, places: np.ndarray) -> None:
        """Computes row `rows[i]` into `out[places[i]]`; each study that they touch is computed once."""
        plan = self._harvester.plan
        order = np.argsort(rows, kind="stable")
        study = np.searchsorted(plan.starts, rows[order], side="right") - 1
        numbers, begins = np.unique(study, return_index=True)
        wanted = dict(zip(numbers.tolist(), np.split(order, begins[1:]), strict=True))  # places in `rows` by study
        for batch, activations in self._harvester.read(self._harvester.batches.of(list(wanted))):
            for i, values in zip(batch.studies, activations, strict=True):  # values [kept, d_model]
                out[places[wanted[i]]] = values[rows[wanted[i]] - plan.starts[i]]


def open_source(
    source: ActivationSource, config: ml_collections.ConfigDict, workdir: Path, readers: int | None = None
) -> ActivationRows:
    """Opens the activations of a run. Of several processes each runs the model on its own devices, for its own rows.

    Args:
      source: "store" for those of `workdir/activations`, "model" for those of the running model.
      config: the whole configuration, with its sections `harvest` and `studies`.
      workdir: the run's folder.
      readers: threads that read the store; None: one per processor.

    Raises:
      UserError: the store or the model cannot be opened.
    """
    workdir = Path(workdir)
    if source == "store":
        return ActivationStore.open(workdir / "activations", readers)
    on_host = config.copy_and_resolve_references()
    on_host.mesh = host_mesh(RunSection.of(config).mesh)
    return LiveActivations(Harvester.open(on_host, workdir), workdir / "model", BUFFER_TOKENS)


def host_mesh(mesh: tuple[int, ...]) -> tuple[int, ...]:
    """The mesh of the model in a training: that of the run, or, of several processes, one that each chooses."""
    return mesh if processes.count() == 1 else ()


def source_identity(
    source: ActivationSource, config: ml_collections.ConfigDict
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The fields outside `train` that decide the activations, and the stages that training from them needs."""
    if source == "store":
        return {}, ("activations",)
    return {"harvest": HarvestSection.of(config).deciding(), "studies": config.studies.to_dict()}, ("model",)
