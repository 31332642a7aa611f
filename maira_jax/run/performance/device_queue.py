"""What a device computes, copied to the host while it computes the next."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import jax
import numpy as np

from maira_jax.run.performance.loop_clock import LoopClock

Label = TypeVar("Label")
Given = TypeVar("Given")

# Batches that the device has not finished: while it computes one, the next one waits for it.
_IN_FLIGHT = 2


class DeviceQueue(Generic[Label, Given]):
    """Runs a program on one input after the other and gives its results as arrays of the host.

    Attributes:
      clock: times the latest `run`.
    """

    def __init__(self) -> None:
        self.clock = LoopClock()

    def run(
        self, inputs: Iterable[tuple[Label, Given]], program: Callable[[Given], jax.Array]
    ) -> Iterator[tuple[Label, np.ndarray]]:
        """Yields what came with each input, and the result of its program."""
        self.clock = LoopClock()
        waiting: deque[tuple[Label, Future[np.ndarray]]] = deque()
        with ThreadPoolExecutor(1, "copy") as copier:
            for label, given in self.clock.feed(inputs):
                result = program(given)
                waiting.append((label, copier.submit(self._copy, result, time.monotonic())))
                if len(waiting) > _IN_FLIGHT:
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)

    def _next(self, waiting: deque[tuple[Label, Future[np.ndarray]]]) -> tuple[Label, np.ndarray]:
        label, result = waiting.popleft()
        return label, result.result()

    def _copy(self, result: jax.Array, dispatched: float) -> np.ndarray:
        self.clock.finish(result, dispatched)
        return np.asarray(result)
