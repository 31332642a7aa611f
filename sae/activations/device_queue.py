"""What a device computes, copied to the host while it computes the next, and how much of the time it has work."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import jax
import numpy as np

Label = TypeVar("Label")
Given = TypeVar("Given")

# Batches that the device has not finished: while it computes one, the next one waits for it.
_IN_FLIGHT = 2


class DeviceQueue(Generic[Label, Given]):
    """Runs a program on one input after the other and gives its results as arrays of the host.

    Attributes:
      seconds: time since the first input was asked for.
      busy: of these, how long the device had work. A program is compiled while it has none.
      waited: of these, how long the caller's thread waited for inputs.
    """

    def __init__(self) -> None:
        self.seconds = self.busy = self.waited = 0.0
        self._start = self._idle_since = time.monotonic()

    def run(
        self, inputs: Iterable[tuple[Label, Given]], program: Callable[[Given], jax.Array]
    ) -> Iterator[tuple[Label, np.ndarray]]:
        """Yields what came with each input, and the result of its program."""
        self._start = self._idle_since = time.monotonic()
        waiting: deque[tuple[Label, Future[np.ndarray]]] = deque()
        with ThreadPoolExecutor(1, "copy") as copier:
            for label, given in self._timed(inputs):
                result = program(given)
                waiting.append((label, copier.submit(self._copy, result, time.monotonic())))
                if len(waiting) > _IN_FLIGHT:
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)

    def _next(self, waiting: deque[tuple[Label, Future[np.ndarray]]]) -> tuple[Label, np.ndarray]:
        label, result = waiting.popleft()
        found = result.result()
        self.seconds = time.monotonic() - self._start
        return label, found

    def _timed(self, inputs: Iterable[tuple[Label, Given]]) -> Iterator[tuple[Label, Given]]:
        source = iter(inputs)
        while True:
            start = time.monotonic()
            try:
                found = next(source)
            except StopIteration:
                return
            self.waited += time.monotonic() - start
            yield found

    def _copy(self, result: jax.Array, dispatched: float) -> np.ndarray:
        jax.block_until_ready(result)
        now = time.monotonic()
        self.busy += now - max(dispatched, self._idle_since)
        self._idle_since = now
        return np.asarray(result)

    def share(self) -> float:
        """The share of the time in which the device had work."""
        return min(self.busy / max(self.seconds, 1e-9), 1.0)
