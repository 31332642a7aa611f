"""A trace of some steps of a device loop, for TensorBoard's profiler or Perfetto."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import jax

T = TypeVar("T")
# Steps before the trace begins, in which programs are compiled.
_WARM_UP = 2


def traced(items: Iterable[T], directory: Path, n: int, name: str) -> Iterator[T]:
    """Yields `items`, and traces what is done with `n` of them, after a warm-up.

    Args:
      items: what a loop runs over; each of them is a step of the trace, and waiting for it is annotated as `feed`.
      directory: the folder that the trace is written into.
      n: number of steps in the trace; 0: none is made.
      name: what the steps are called.
    """
    tracing = False
    iterator = iter(items)
    try:
        for number in range(_WARM_UP + n) if n else ():
            if number == _WARM_UP:
                jax.profiler.start_trace(str(directory))
                tracing = True
            with jax.profiler.TraceAnnotation("feed"):
                item = next(iterator, iterator)
            if item is iterator:
                return
            with jax.profiler.StepTraceAnnotation(name, step_num=number):
                yield item  # type: ignore[misc]
    finally:
        if tracing:
            jax.block_until_ready(jax.live_arrays())
            jax.profiler.stop_trace()
    yield from iterator
