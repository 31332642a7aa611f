"""Progress bars: rate and time left, on standard error."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from maira_jax.run import processes


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    total: float | None = None,
    unit: str,
    desc: str,
    initial: int = 0,
    shared: bool = False,
) -> Any:
    """A tqdm bar. Without a terminal it prints at most one line every ten seconds.

    Args:
      iterable, total, unit, desc, initial: as tqdm takes them.
      shared: whether each process of the run does a share of the work, so that the bar of the first one shows its own.
    """
    if shared and processes.count() > 1:
        desc = f"{desc} (share of 1 of {processes.count()} processes)"
    return tqdm(
        iterable,
        total=total,
        unit=unit,
        desc=desc,
        initial=initial,
        file=sys.stderr,
        unit_scale=True,
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
    )
