"""Puts the blocks of a store through the program that adds them, on all devices, without waiting for each block.

A program of the list route has a fixed capacity of active entries. A device on which a block has more leaves it out,
and also all later blocks. The host sees that some blocks later: it sends these blocks again, to a program of a larger
capacity, and each device adds those that it has not added.
"""

import dataclasses
from collections import deque
from collections.abc import Sequence

import jax
import numpy as np

from interp.exemplars.index_pass.blocks import ContextBlock
from interp.exemplars.index_pass.device_program import (
    AddedBlock,
    EntryList,
    PassState,
    Route,
    add_block,
    entry_capacity,
    state_shardings,
    suited_route,
)
from interp.exemplars.index_pass.running_index import COUNTERS, IndexConfig, RunningIndex
from interp.exemplars.index_pass.shared_sae import SharedSae, everywhere
from sae.autoencoder import Sae

# Blocks that were sent off and whose results are not looked at yet: enough to keep the devices busy.
_BEHIND = 2
_MAX_COUNT = 2**31 - 1  # of a counter of the device
_N_SPLITS = 2


@dataclasses.dataclass(frozen=True)
class _SentBlock:
    """A block that was sent off, its number among those of its split, and what comes back."""

    split: int
    number: int
    studies: np.ndarray
    block: ContextBlock
    added: AddedBlock


class DevicePass:
    """The indices of both splits while the pass runs.

    Args:
      sae: autoencoder of raw activations, with F features.
      cfg: sizes of the pass.
      max_length: number of tokens of the longest context.
      longest_study: number of tokens of the longest study.
      study_peak: largest activations so far, one row per study, which the pass raises. float32 [n_studies, F]
      devices: the devices that share the features.
      route: how they add a block; None for what suits them.

    Attributes:
      totals: for each split the counters that were drained from the devices, int64.
    """

    def __init__(
        self,
        sae: Sae,
        cfg: IndexConfig,
        max_length: int,
        longest_study: int,
        study_peak: np.ndarray,
        devices: Sequence[jax.Device],
        route: Route | None = None,
    ):
        self._cfg, self._top_k, self._n_features, self._study_peak = cfg, sae.top_k, sae.n_features, study_peak
        self._sae = SharedSae.of(sae, devices)
        self._mesh = self._sae.mesh
        self._route = route or suited_route(self._mesh.devices.tolist(), sae, cfg, max_length)
        empty = PassState.empty(self._mesh, cfg, sae.n_features)
        self._states = [self._placed(empty) for _ in range(_N_SPLITS)]
        self.totals = [
            {name: np.zeros(getattr(empty.running, name).shape, np.int64) for name in COUNTERS}
            for _ in range(_N_SPLITS)
        ]
        self._n_sent = [0] * _N_SPLITS  # blocks of each split
        self._sent: deque[_SentBlock] = deque()
        self._drain_interval = max(_MAX_COUNT // (cfg.block_tokens * longest_study), 1)  # in blocks
        self._n_undrained = 0  # blocks

    def put(self, block: ContextBlock) -> ContextBlock:
        """Begins to copy a block to every device."""
        return jax.device_put(block, everywhere(self._mesh))

    def add(self, split: int, studies: np.ndarray, block: ContextBlock) -> None:
        """Adds a block of contexts to a split; what it gives is seen some blocks later.

        Args:
          split: the split.
          studies: the rows of `study_peak` of the block's studies.
          block: the block.
        """
        self._send(split, self._n_sent[split], studies, block)
        self._n_sent[split] += 1
        while len(self._sent) > _BEHIND:
            self._look()
        self._n_undrained += 1
        if self._n_undrained >= self._drain_interval:
            self._drain()

    def _send(self, split: int, number: int, studies: np.ndarray, block: ContextBlock) -> None:
        self._states[split], added = add_block(
            self._states[split],
            self._sae.params,
            self._sae.threshold,
            block,
            np.int32(number),
            cfg=self._cfg,
            top_k=self._top_k,
            route=self._route,
            mesh=self._mesh,
        )
        for part in added:
            part.copy_to_host_async()
        self._sent.append(_SentBlock(split, number, studies, block, added))

    def _look(self) -> None:
        """Takes what the oldest block gave; if it was too large for a device, sends it and all later ones again."""
        sent = self._sent.popleft()
        self._raise_peaks(sent)
        n_entries = int(np.asarray(sent.added.n_entries).max())
        if isinstance(self._route, EntryList) and n_entries > self._route.capacity:
            limit = self._cfg.block_tokens * self._n_features // self._mesh.size
            self._route = EntryList(entry_capacity(n_entries, limit))
            again = [sent, *self._sent]
            self._sent.clear()
            for sent in again:
                self._raise_peaks(sent)
                self._send(sent.split, sent.number, sent.studies, sent.block)

    def _raise_peaks(self, sent: _SentBlock) -> None:
        peak = np.asarray(sent.added.study_peak)[: len(sent.studies)]
        self._study_peak[sent.studies] = np.maximum(self._study_peak[sent.studies], peak)

    def _drain(self) -> None:
        """Waits for all blocks, and moves the devices' counters to the totals."""
        while self._sent:
            self._look()
        for split, (running, n_blocks) in enumerate(self._states):
            for name in COUNTERS:
                self.totals[split][name] += np.asarray(getattr(running, name))
            zeros = {
                name: jax.device_put(np.zeros(leaf.shape, np.int32), leaf.sharding)
                for name, leaf in running._asdict().items()
                if name in COUNTERS
            }
            self._states[split] = PassState(running._replace(**zeros), n_blocks)
        self._n_undrained = 0

    def running(self, split: int) -> RunningIndex:
        """A split's index, after all blocks, on the host; its counters are 0, and in the totals."""
        self._drain()
        return jax.device_get(self._states[split].running)

    def _placed(self, state: PassState) -> PassState:
        """A copy of a state on the devices: the program overwrites it."""
        shardings = state_shardings(self._mesh, self._cfg, self._n_features)
        return jax.device_put(state, shardings, may_alias=False)
