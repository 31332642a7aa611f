"""Training from the model on the fly: what a step needs is computed when it is read, and nothing is stored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pyarrow as pa

from maira_jax.errors import UserError
from sae.activations.harvest import Harvester, touching
from sae.activations.store import ActivationRows, ActivationStore, rows_of


class LiveActivations:
    """Activations that are computed when they are read; nothing is stored. `ActivationRows`.

    Attributes:
      directory: of the model, for messages.
      source: where the activations come from.
      buffer_rows: rows that are shuffled together in host memory.
    """

    def __init__(self, harvester: Harvester, directory: Path, buffer_rows: int):
        self._reader = harvester
        self.directory, self.source, self.buffer_rows = directory, harvester.source, buffer_rows

    @property
    def studies(self) -> pa.Table:
        """The study table; see `STUDY_SCHEMA`."""
        return self._reader.studies

    @property
    def n_tokens(self) -> int:
        """Rows."""
        return self._reader.plan.n_tokens

    @property
    def d_model(self) -> int:
        """Columns."""
        return self._reader.d_model

    def rows_of(self, split: str) -> np.ndarray:
        """Row numbers of the tokens of one split, ascending. int64 [n]"""
        return rows_of(self._reader.studies, split)

    def chunk_of(self, rows: np.ndarray) -> np.ndarray:
        """The study of each row: what is computed together."""
        return np.searchsorted(self._reader.plan.starts, rows, side="right") - 1

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop`, float32 [stop - start, d_model]."""
        return self.read_ranges([(start, stop)])[0].astype(np.float32)

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Several row ranges at once, in the harvest's dtype; a study that many of them touch is computed once."""
        plan = self._reader.plan
        wanted = sorted({i for rows in ranges for i in touching(plan, rows)})
        found: dict[int, np.ndarray] = {}
        for batch, activations in self._reader.read(self._reader.batches(wanted)):
            found |= zip(batch.studies, activations, strict=True)
        return [
            np.concatenate(
                [
                    found[i][max(start - int(plan.starts[i]), 0) : stop - int(plan.starts[i])]
                    for i in touching(plan, (start, stop))
                    if i in found
                ]
            )
            for start, stop in ranges
        ]


def open_source(config: ml_collections.ConfigDict, workdir: Path) -> ActivationRows:
    """What `config.train.source` names: the activation store, or the model run on the fly.

    Raises:
      UserError: there is no such source, or it cannot be opened.
    """
    source, workdir = config.train.source, Path(workdir)
    if source == "store":
        return ActivationStore.open(workdir / "activations")
    if source != "model":
        raise UserError(f"train.source is {source!r}: choose store or model")
    if config.train.buffer_tokens < 1:
        raise UserError(f"train.buffer_tokens is {config.train.buffer_tokens}, but must be positive: change it")
    return LiveActivations(Harvester.open(config, workdir), workdir / "model", int(config.train.buffer_tokens))


def source_identity(config: ml_collections.ConfigDict) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What of the configuration decides the activations beside the `train` section, and the stages that they need."""
    if config.train.source != "model":
        return {}, ("activations",)
    return {"harvest": config.harvest.to_dict(), "studies": config.studies.to_dict()}, ("model",)
