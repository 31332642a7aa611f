"""How the time of a device loop is spent, measured without making the host wait for the device."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax

T = TypeVar("T")


class LoopClock:
    """Measures a loop that gives a device one piece of work after the other.

    Attributes:
      seconds: from the beginning until the last input or result came.
      waited: of these, how long the loop waited for its inputs.
      busy: of these, how long the device had work. A program is compiled while it has none.
    """

    def __init__(self) -> None:
        self.seconds = self.waited = self.busy = 0.0
        self._start = self._idle_since = time.monotonic()

    def feed(self, inputs: Iterable[T]) -> Iterator[T]:
        """Yields `inputs`, whose waiting counts as `waited`."""
        source = iter(inputs)
        while True:
            start = time.monotonic()
            try:
                found = next(source)
            except StopIteration:
                return
            now = time.monotonic()
            self.waited += now - start
            self.seconds = now - self._start
            yield found

    def finish(self, result: jax.Array, dispatched: float) -> float:
        """Waits for a result; for a thread of its own, in the order in which the device computes them.

        Args:
          result: what the device computes.
          dispatched: when it was given that, by `time.monotonic`.

        Returns:
          Seconds for which the device worked on it and on what it was given between the result before and this one.
        """
        jax.block_until_ready(result)
        now = time.monotonic()
        worked = now - max(dispatched, self._idle_since)
        self._idle_since = now
        self.busy += worked
        self.seconds = now - self._start
        return worked

    def share(self) -> float:
        """The share of the time in which the device had work."""
        return self.busy / max(self.seconds, 1e-9)

    def summary(self, inputs: str) -> str:
        """A sentence on the whole loop, whose inputs are called `inputs`."""
        # The loop also waits while the device still works on what it was given before.
        waited = min(self.waited, max(self.seconds - self.busy, 0.0))
        return (
            f"the device had work for {self.busy:.1f} of {self.seconds:.1f} s ({self.share():.0%}), and waited for "
            f"{inputs} for {waited:.1f} s at most"
        )
