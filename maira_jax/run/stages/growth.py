"""How a stage's result grows: what its fields become when more is asked for than is there.

Each function takes a field's value in the result that is there and the one that is wanted, as JSON has them, and gives
that of a result that holds both; None where one cannot grow into the other.
"""

from collections.abc import Callable, Mapping
from typing import Any

Growth = Callable[[Any, Any], Any]


def largest(there: int, wanted: int) -> int:
    """A number of things that are counted from the first."""
    return max(there, wanted)


def union(there: list[Any], wanted: list[Any]) -> list[Any] | None:
    """A list of things; an empty one stands for a choice of another kind."""
    return list(dict.fromkeys((*there, *wanted))) if bool(there) == bool(wanted) else None


def union_or_all(there: list[Any], wanted: list[Any]) -> list[Any]:
    """A list of things; an empty one stands for all."""
    return list(dict.fromkeys((*there, *wanted))) if there and wanted else []


def newest(there: Any, wanted: Any) -> Any:
    """Whatever the stage itself compares with the records that are there."""
    return wanted


def grown(
    there: Mapping[str, Any], wanted: Mapping[str, Any], fields: Mapping[str, Growth]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The section `wanted` with those of its `fields`, by dotted name, that can hold the result `there` too.

    Returns:
      That section, and the one of what is there with the same values in these fields.
    """
    section, before = dict(wanted), dict(there)
    for name, growth in fields.items():
        first, _, rest = name.partition(".")
        if first not in before or first not in section:
            continue
        if rest:
            section[first], before[first] = grown(before[first], section[first], {rest: growth})
        else:
            together = growth(before[first], section[first])
            if together is not None:
                section[first] = before[first] = together
    return section, before
