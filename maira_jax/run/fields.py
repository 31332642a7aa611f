"""Fields of a configuration whose values the configuration's own types do not check: the members of a tuple."""

from collections.abc import Iterable
from typing import Any

from maira_jax.errors import UserError

_WORDS = {int: "an integer", float: "a number", str: "text"}


def tuple_of(kind: type, name: str, values: Iterable[Any]) -> tuple[Any, ...]:
    """`values` as a tuple.

    Args:
      kind: int, float (integers are taken, too) or str.
      name: of the field, with its section.
      values: of the field.

    Raises:
      UserError: a value is of another kind.
    """
    found = tuple(values)
    for value in found:
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise UserError(f"{name} holds {value!r}, which is not {_WORDS[kind]}: change it")
    return found
