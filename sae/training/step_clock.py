"""Where the time of a training goes."""

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import jax

from maira_jax.run.performance.loop_clock import LoopClock

T = TypeVar("T")


class ChunkTimes(NamedTuple):
    """Where the time of a chunk of steps went, in seconds.

    Attributes:
      total: since the chunk before came.
      feed: of these, how long the host waited for this chunk's activations and began to copy them to the devices.
      device: how long the devices worked on this chunk, and on an evaluation before it; they do while the host waits.
    """

    total: float
    feed: float
    device: Future[float]


class StepClock:
    """Times the chunks of a training; a thread waits for the devices.

    Attributes:
      loop: the clock of the whole loop.
    """

    def __init__(self) -> None:
        self.loop = LoopClock()
        self._watcher = ThreadPoolExecutor(1, "clock")
        self._total = self._feed = 0.0  # of the latest chunk

    def feed(self, chunks: Iterable[T]) -> Iterator[T]:
        """Yields `chunks`, and takes their times."""
        began, waited = time.monotonic(), 0.0
        for chunk in self.loop.feed(chunks):
            now = time.monotonic()
            self._total, self._feed = now - began, self.loop.waited - waited
            began, waited = now, self.loop.waited
            yield chunk

    def sent(self, result: jax.Array, began: float) -> ChunkTimes:
        """The times of the latest chunk, from which the devices compute `result` since `began`, by `time.monotonic`."""
        return ChunkTimes(self._total, self._feed, self._watcher.submit(self.loop.finish, result, began))

    def close(self) -> None:
        """Waits for the devices."""
        self._watcher.shutdown()
