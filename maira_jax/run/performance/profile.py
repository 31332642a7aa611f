"""A trace of some steps of a device loop, for TensorBoard's profiler or Perfetto."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self, TypeVar

import jax
import ml_collections

from maira_jax.run import storage
from maira_jax.run.config import RunSection

T = TypeVar("T")
FOLDER = "profile"


@dataclasses.dataclass(frozen=True)
class StepTrace:
    """Which steps of a device loop are traced.

    Attributes:
      directory: the folder that the trace is written into.
      n: number of steps in the trace; 0: none is made.
      name: what the steps are called.
    """

    directory: Path
    n: int
    name: str

    @classmethod
    def of_run(cls, config: ml_collections.ConfigDict, workdir: Path, name: str, each: int = 1) -> Self:
        """As many passes of a loop as hold the `profile` steps of the configuration, `each` of them in a pass."""
        return cls(Path(workdir) / FOLDER, -(-RunSection.of(config).profile // each), name)

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yields `items`, and traces what is done with `n` of them, after the first, for which programs are compiled.

        Args:
          items: what a loop runs over; each of them is a step, and waiting for it is annotated as `feed`.
        """
        iterator = iter(items)
        if self.n:
            first = next(iterator, iterator)
            if first is iterator:
                return
            yield first  # type: ignore[misc]
            yield from self._traced(iterator)
        yield from iterator

    def _traced(self, iterator: Iterator[T]) -> Iterator[T]:
        _wait()
        jax.profiler.start_trace(str(self.directory))
        done = 0
        try:
            for done in range(self.n):
                with jax.profiler.TraceAnnotation("feed"):
                    item = next(iterator, iterator)
                if item is iterator:
                    return
                with jax.profiler.StepTraceAnnotation(self.name, step_num=done):
                    yield item  # type: ignore[misc]
            done = self.n
        finally:
            _wait()
            jax.profiler.stop_trace()
            storage.send(self.directory)
            print(f"{self.name}: traced {done} of {self.n} passes into {self.directory}", file=sys.stderr)


OFF = StepTrace(Path(), 0, "")


def _wait() -> None:
    """Waits for what the devices were given, so that a trace has the work of its own steps."""
    for array in jax.live_arrays():
        with contextlib.suppress(RuntimeError):  # another thread has given it to a program just now
            array.block_until_ready()
