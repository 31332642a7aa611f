"""The checkpoints that a training run resumes from."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from orbax.checkpoint import v1 as ocp

from maira_jax.errors import UserError, first_line
from sae.training.trainer import Trainer, TrainState


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
    the number of steps. Writing happens in the background; a checkpoint appears whole or not at all.

    Args:
      directory: the folder that holds them.
      trainer: the trainer whose states are saved.
    """

    def __init__(self, directory: Path, trainer: Trainer):
        self._trainer, self._directory = trainer, Path(directory)
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
            self._checkpointer.save_async(int(tree["step"]), tree)

    def load_latest(self) -> tuple[TrainState, float] | None:
        """The latest state, striped for the trainer's mesh, and the normalisation factor; None if there is none."""
        if self._checkpointer.latest is None:
            return None
        abstract = self._trainer.abstract_state()
        abstract_scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=abstract.threshold.sharding)
        tree = self._checkpointer.load(None, _as_tree(abstract) | {"scale": abstract_scale})
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
