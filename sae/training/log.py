"""What a training run writes down while it runs: files of JSON lines, and TensorBoard event files.

`tensorboard --logdir=WORKDIR` shows all autoencoders together.
"""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from maira_jax.errors import UserError
from maira_jax.model.sharding import peak_memory
from maira_jax.run import jsonl
from sae.evaluation import metrics
from sae.training.step_clock import ChunkTimes
from sae.training.trainer import Metrics

# Chunks whose metrics may still be on their way: how far the host runs ahead of the device.
_IN_FLIGHT = 2


class TrainingLog:
    """`log.jsonl`, `held_out.jsonl`, `timing.jsonl` and `tensorboard/`; no device waits for a step's metrics.

    The first has every step, TensorBoard the last of each chunk; the second has evaluations; the third has, for each
    chunk, seconds per step: `total`, `feed` and `device` (see `ChunkTimes`) and `log`, in which the host wrote these
    files and checkpoints, and `peak_bytes` of a device's memory where it is known. What an attempt that was killed left
    for `step` and later ones is dropped.

    Args:
      directory: the autoencoder's folder.
      step: the step from which the run resumes.
    """

    def __init__(self, directory: Path, step: int):
        self._board = TrainingBoard(directory / "tensorboard", step)
        self._file, self._evaluations, self._timing = (
            _reopened(directory / name, step) for name in ("log.jsonl", "held_out.jsonl", "timing.jsonl")
        )
        self._writing = 0.0  # seconds since the last line of `timing.jsonl`
        self._step = step
        self._pending: collections.deque[Callable[[], None]] = collections.deque()

    def add(self, measured: Metrics, times: ChunkTimes) -> None:
        """Takes the metrics and times of a chunk of steps and writes those of earlier chunks.

        Raises:
          UserError: a loss is not finite.
        """
        self._take(lambda: self._write_steps(measured, times))

    def held_out(self, step: int, sums: metrics.Sums, n: int, group_sizes: tuple[int, ...]) -> None:
        """Takes what was measured after step `step` on `n` held-out tokens, as `metrics.summary` does."""
        self._take(lambda: self._write_evaluation(step, *metrics.summary(sums, n, group_sizes)))

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Counts the time of its body as `log`."""
        start = time.monotonic()
        yield
        self._writing += time.monotonic() - start

    def drain(self) -> None:
        """Writes what is pending, waiting for the device."""
        while self._pending:
            self._pending.popleft()()
        self._board.flush()

    def _take(self, write: Callable[[], None]) -> None:
        self._pending.append(write)
        if len(self._pending) > _IN_FLIGHT:
            self._pending.popleft()()

    def _write_evaluation(self, step: int, measured: dict[str, Any], density: np.ndarray) -> None:
        with self.writing():
            self._evaluations.write(jsonl.line({"step": step} | measured))
            self._evaluations.flush()
            self._board.held_out(step, measured, density)

    def _write_steps(self, measured: Metrics, times: ChunkTimes) -> None:
        host = {name: np.asarray(value) for name, value in measured.items()}  # waits for the devices
        with self.writing():
            for i, loss in enumerate(host["loss"]):
                if not np.isfinite(loss).all():
                    raise UserError(f"the loss is not finite at step {self._step}: lower train.lr")
                line = {"step": self._step} | {name: value[i].tolist() for name, value in host.items()}
                self._file.write(jsonl.line(line))
                self._step += 1
            self._board.train(self._step - 1, {name: value[-1] for name, value in host.items()})
            self._file.flush()
        self._write_times(len(host["loss"]), times)

    def _write_times(self, steps: int, times: ChunkTimes) -> None:
        seconds = {"total": times.total, "feed": times.feed, "device": times.device.result(), "log": self._writing}
        self._writing = 0.0
        each, peak = {name: value / steps for name, value in seconds.items()}, peak_memory()
        memory = {} if peak is None else {"peak_bytes": peak}
        self._timing.write(jsonl.line({"step": self._step - 1} | each | memory))
        self._timing.flush()
        self._board.times(self._step - 1, each, memory)

    def close(self) -> None:
        """Closes the files."""
        for file in (self._file, self._evaluations, self._timing):
            file.close()
        self._board.close()


def _reopened(path: Path, step: int) -> TextIO:
    """Opens a file of JSON lines for more of them, without those of `step` and later."""
    found = jsonl.read(path, "train again", required=("step",))
    jsonl.truncate(path, sum(record["step"] < step for record in found))
    return path.open("a")


class TrainingBoard:
    """Writes TensorBoard's scalars under `train/`, `held_out/`, `seconds_per_step/` and `memory/`.

    Args:
      directory: the folder of the event files.
      step: the step from which the run resumes; TensorBoard hides what an earlier attempt wrote for later steps.
    """

    def __init__(self, directory: Path, step: int):
        from tensorboardX import SummaryWriter  # it imports torch where that is installed: a second of every command

        self._writer = SummaryWriter(str(directory), purge_step=step, flush_secs=30)

    def train(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
        """Writes the metrics of a step; an array gives one scalar per entry."""
        for name, value in metrics.items():
            values = np.asarray(value, np.float64)
            for index, scalar in np.ndenumerate(values):
                suffix = "".join(f"/{i}" for i in index)
                self._writer.add_scalar(f"train/{name}{suffix}", float(scalar), step)

    def times(self, step: int, seconds: Mapping[str, float], memory: Mapping[str, int]) -> None:
        """Writes seconds per step, and bytes of a device's memory."""
        for name, value in seconds.items():
            self._writer.add_scalar(f"seconds_per_step/{name}", value, step)
        for name, size in memory.items():
            self._writer.add_scalar(f"memory/{name}", size, step)

    def held_out(self, step: int, metrics: Mapping[str, Any], density: np.ndarray) -> None:
        """Writes an autoencoder's metrics, and the histogram of log10 of its features' densities."""
        for name, value in _scalars(metrics):
            self._writer.add_scalar(f"held_out/{name}", value, step)
        if (density > 0).any():
            self._writer.add_histogram("held_out/log10_density", np.log10(density[density > 0]), step)

    def flush(self) -> None:
        """Writes what is pending."""
        self._writer.flush()

    def close(self) -> None:
        """Writes what is pending, and closes the file."""
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
