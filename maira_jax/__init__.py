"""MAIRA-2 in Flax: model, checkpoints, preprocessing, studies and generation; and sessions for notebooks.

`open_run`, `open_checkpoint` and `Session` are of `steer.session`, on the top floor: they are imported when they are
asked for, and this package imports nothing above it before.
"""

import importlib
from typing import TYPE_CHECKING, Any

from maira_jax.errors import UserError
from maira_jax.studies.study import Study

if TYPE_CHECKING:
    from steer.session import Session, open_checkpoint, open_run

__all__ = ["Session", "Study", "UserError", "open_checkpoint", "open_run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("steer.session"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
