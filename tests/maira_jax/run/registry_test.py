"""Registries: names, refusals."""

import pytest

from maira_jax.errors import UserError
from maira_jax.run.registry import Registry


def test_what_is_registered_is_found_by_its_name():
    registry: Registry[type] = Registry("toy.kind")
    assert registry.register("text")(str) is str
    registry.register("number")(int)
    assert registry.names() == ("text", "number")
    assert registry.get("number") is int


def test_an_unknown_name_is_one_sentence_with_the_known_ones():
    registry: Registry[type] = Registry("toy.kind")
    registry.register("text")(str)
    with pytest.raises(UserError, match="toy.kind is 'x': choose from text"):
        registry.get("x")


def test_a_name_is_given_once():
    registry: Registry[type] = Registry("toy.kind")
    registry.register("text")(str)
    registry.register("text")(str)  # a module that is imported anew
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("text")(bytes)
