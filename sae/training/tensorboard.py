"""TensorBoard event files of a training run: `tensorboard --logdir=WORKDIR` shows them, all autoencoders together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter


class TrainingBoard:
    """Writes scalars under `train/` and `held_out/`.

    Args:
      directory: the folder of the event files.
      step: the step from which the run resumes; TensorBoard hides what an earlier attempt wrote for later steps.
    """

    def __init__(self, directory: Path, step: int):
        self._writer = SummaryWriter(str(directory), purge_step=step, flush_secs=30)

    def train(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
        """Writes the metrics of a step; an array gives one scalar per entry."""
        for name, value in metrics.items():
            values = np.asarray(value, np.float64)
            for index, scalar in np.ndenumerate(values):
                suffix = "".join(f"/{i}" for i in index)
                self._writer.add_scalar(f"train/{name}{suffix}", float(scalar), step)

    def held_out(self, step: int, metrics: Mapping[str, Any], density: np.ndarray) -> None:
        """Writes an autoencoder's metrics, and the histogram of log10 of its features' densities."""
        for name, value in _scalars(metrics):
            self._writer.add_scalar(f"held_out/{name}", value, step)
        if (density > 0).any():
            self._writer.add_histogram("held_out/log10_density", np.log10(density[density > 0]), step)

    def close(self) -> None:
        """Writes what is pending."""
        self._writer.close()


def _scalars(metrics: Mapping[str, Any]) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in metrics.items():
        if isinstance(value, int | float):
            found.append((name, float(value)))
        elif name == "prefixes":
            found += [(f"prefix/{part['features']}/{key}", float(part[key])) for part in value for key in ("fvu", "l0")]
        elif name == "loss" and value is not None:
            found += [(f"loss/{key}", float(number)) for key, number in value.items() if number is not None]
    return found
