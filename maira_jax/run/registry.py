"""Registries: what can be chosen by name, and extended by one file and one registration.

A configuration file may import a module that registers something of its own; every command then knows it.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from maira_jax.errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """Objects by name.

    Args:
      field: the configuration field that names one of them, or another phrase for it; for messages.
    """

    def __init__(self, field: str):
        self.field = field
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that registers its object under `name`.

        Raises:
          ValueError: another object has this name.
        """

        def add(entry: T) -> T:
            if self._entries.setdefault(name, entry) is not entry:
                raise ValueError(f"{self.field} {name!r} is registered twice: give one of them another name")
            return entry

        return add

    def names(self) -> tuple[str, ...]:
        """All names, in the order of their registration."""
        return tuple(self._entries)

    def get(self, name: str) -> T:
        """The object of this name.

        Raises:
          UserError: nothing has this name.
        """
        if name not in self._entries:
            raise UserError(f"{self.field} is {name!r}: choose from {', '.join(self._entries)}")
        return self._entries[name]
