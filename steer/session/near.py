"""Errors that name what was probably meant."""

import difflib
from collections.abc import Iterable

from maira_jax.errors import UserError

_SHOWN = 4


def unknown(kind: str, given: object, known: Iterable[str], remedy: str) -> UserError:
    """The error for a name that does not exist, with the known names that are most like it.

    Args:
      kind: what the name is of, e.g. "study".
      given: the name.
      known: all names that exist.
      remedy: what to do, e.g. "see `run.study_ids`".
    """
    names = list(known)
    lower = {name.lower(): name for name in reversed(names)}
    word = str(given).lower()
    close = [lower[name] for name in difflib.get_close_matches(word, lower, n=_SHOWN, cutoff=0.5)]
    close += [name for name in names if word and word in name.lower() and name not in close][: _SHOWN - len(close)]
    if not names:
        return UserError(f"there is no {kind} {given!r}: {remedy}")
    words = f"the nearest is {close[0]!r}" if len(close) == 1 else f"the nearest are {_listed(close)}"
    return UserError(f"there is no {kind} {given!r}, {words if close else f'but {_listed(names)}'}: {remedy}")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
