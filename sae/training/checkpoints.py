"""The checkpoints that a training run resumes from."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from orbax.checkpoint import v1 as ocp

from maira_jax.errors import UserError, first_line
from maira_jax.run import files, processes, storage
from sae.training.trainer import Trainer, TrainState

_WHOLE = "_CHECKPOINT_METADATA"  # the file that orbax writes last


def _as_tree(state: TrainState) -> dict[str, Any]:
    return {
        "params": state.params,
        "adam": {"count": state.adam.count, "mu": state.adam.mu, "nu": state.adam.nu},
        "threshold": state.threshold,
        "tokens_since_fired": state.tokens_since_fired,
        "step": state.step,
    }


class Checkpoints:
    """The two latest states of a training run.

    States are kept with their features in order, so a run may resume on another mesh. The position in the data is
    the number of steps. Writing happens in the background; a checkpoint appears whole or not at all. Where the folder
    stands for one in a bucket, a checkpoint is sent there when it is whole.

    Args:
      directory: the folder that holds them.
      trainer: the trainer whose states are saved.

    Raises:
      UserError: the folder stands for one in a bucket, and there are several processes.
    """

    def __init__(self, directory: Path, trainer: Trainer):
        self._trainer, self._directory = trainer, Path(directory)
        self._sender, self._sent = ThreadPoolExecutor(1), list[Future[None]]()
        if storage.is_remote(directory):
            self._fetch()
        self._checkpointer = ocp.training.Checkpointer(
            Path(directory).absolute(),
            # The caller decides when; without this every save but a few would be skipped.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(2),
            cleanup_tmp_directories=True,
        )

    def save(self, state: TrainState, scale: float) -> None:
        """Starts to write `state` (striped, as it trains) and the normalisation factor.

        Raises:
          UserError: the checkpoint before this one could not be written.
        """
        # On every device, as several processes need it.
        placed = jax.device_put(np.float32(scale), self._trainer.shardings.threshold)
        tree = _as_tree(self._trainer.ordered(state)) | {"scale": placed}
        with self._disk():
            self._await_sent()
            saving = self._checkpointer.save_async(int(tree["step"]), tree)
        if storage.is_remote(self._directory):
            self._sent.append(self._sender.submit(self._send, saving, int(tree["step"])))

    def load_latest(self) -> tuple[TrainState, float] | None:
        """The latest state, striped for the trainer's mesh, and the normalisation factor; None if there is none."""
        latest = self._checkpointer.latest
        step = processes.broadcast(None if latest is None else latest.step)
        if step is None:
            return None
        abstract = self._trainer.abstract_state()
        abstract_scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=abstract.threshold.sharding)
        tree = self._checkpointer.load(step, _as_tree(abstract) | {"scale": abstract_scale})
        scale = float(tree.pop("scale"))
        state = TrainState(**tree | {"adam": optax.ScaleByAdamState(**tree["adam"])})
        return self._trainer.striped(state), scale

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
          UserError: it could not be written.
        """
        with self._disk():
            self._checkpointer.close()
            self._sender.shutdown()
            self._await_sent()

    def _fetch(self) -> None:
        """Brings the checkpoints of the bucket, but not one that was being sent when its process was killed."""
        if processes.count() > 1:
            raise UserError(
                "checkpoints of several processes are not written to a bucket: choose a --workdir that all hosts share"
            )
        storage.fetch(self._directory)
        for step in self._directory.glob("*"):
            if not (step / _WHOLE).is_file():
                files.remove(step)

    def _send(self, saving: Any, step: int) -> None:
        saving.result()
        parts = list((self._directory / str(step)).iterdir())
        for part in sorted(parts, key=lambda part: part.name == _WHOLE):
            storage.send(part)
        storage.prune(self._directory)

    def _await_sent(self) -> None:
        while self._sent:
            self._sent.pop().result()

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        """A checkpoint is written in the background, so what goes wrong shows when the next one begins."""
        try:
            yield
        except (OSError, ValueError) as error:
            # tensorstore raises ValueError with the system's own message.
            if isinstance(error, ValueError) and "os_error_code" not in str(error):
                raise
            raise UserError(
                f"could not write a checkpoint in {self._directory} ({first_line(error)}): free space and run again, "
                "which resumes from the checkpoint before it"
            ) from error
