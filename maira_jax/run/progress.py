"""Progress bars: rate and time left, on standard error."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(
    iterable: Iterable[Any] | None = None, *, total: float | None = None, unit: str, desc: str, initial: int = 0
) -> Any:
    """A tqdm bar. Without a terminal it prints at most one line every ten seconds."""
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
