"""Sections of the configuration: defaults, checks, and the sentences that refuse a value."""

from typing import Literal

import pytest
from ml_collections import ConfigDict

from maira_jax.errors import UserError
from maira_jax.run.config import Section, setting


class ToySection(Section, name="toy"):
    """A section with a field of every kind."""

    steps: int = setting(10, "Updates.", ge=1)
    rate: float | None = setting(None, "Learning rate.", gt=0)
    kind: Literal["a", "b"] = setting("a", "What it is.")
    mesh: tuple[int, int] = setting((1, 1), "Devices.", ge=1, decides=False)
    fractions: tuple[float, ...] = setting((0.5,), "Shares.", gt=0)
    format: str = setting("x", "As what it is written.", choices=lambda: ("x", "y"))
    extra: dict[str, object] = setting({"a": 1}, "Anything.")
    on: bool = setting(False, "Whether.")

    def check(self) -> None:
        if self.on and self.kind == "b":
            raise UserError("toy.on and toy.kind 'b' exclude each other: change one")


def test_a_configuration_may_leave_fields_out_and_json_has_lists_for_tuples():
    assert ToySection.of({}) == ToySection()
    assert ToySection.parse({"mesh": [2, 4], "fractions": [1, 2], "rate": 1}).mesh == (2, 4)


def test_defaults_take_changes_of_the_fields_type_alone():
    config = ToySection.defaults()
    config.rate = 1e-3
    assert ToySection.parse(config).rate == 1e-3
    with pytest.raises(TypeError):
        config.rate = "fast"


def test_what_decides_is_told_apart_from_how_it_is_computed():
    assert ToySection().computing() == {"mesh": (1, 1)}
    assert ToySection().deciding().keys() == ToySection.model_fields.keys() - {"mesh"}


def test_every_field_is_explained_with_its_value_and_its_choices():
    config = ConfigDict({"toy": ToySection.defaults()})
    config.toy.rate = 0.5
    fields = {name: (value, meaning) for name, value, meaning in ToySection.explained(config)}
    assert fields["toy.rate"] == (0.5, "Learning rate.")
    assert fields["toy.extra"] == ({"a": 1}, "Anything.")
    assert fields["toy.kind"] == ("a", "What it is. One of: a, b.")
    assert fields["toy.format"] == ("x", "As what it is written. One of: x, y.")
    assert fields.keys() == {f"toy.{name}" for name in ToySection.model_fields}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"steps": 0}, "toy.steps is 0, but must be at least 1: change it"),
        ({"steps": 1.5}, "toy.steps is 1.5, which is not an integer: change it"),
        ({"steps": True}, "toy.steps is True, which is not an integer: change it"),
        ({"rate": 0.0}, "toy.rate is 0.0, but must be above 0: change it"),
        ({"rate": float("nan")}, "toy.rate is nan, which is not a finite number: change it"),
        ({"kind": "c"}, "toy.kind is 'c': choose from a or b"),
        ({"mesh": (1,)}, "toy.mesh is 1, but must have 2 entries: change it"),
        ({"mesh": (1, 2, 3)}, "toy.mesh is 1,2,3, but must have 2 entries: change it"),
        ({"mesh": (1, 0)}, "toy.mesh is 1,0, but must be at least 1: change it"),
        ({"fractions": ("x",)}, "toy.fractions holds 'x', which is not a number: change it"),
        ({"format": "z"}, "toy.format is 'z': choose from x, y"),
        ({"extra": 3}, "toy.extra is 3, which is not a ConfigDict: change it"),
        ({"on": 1}, "toy.on is 1, which is not True or False: change it"),
        ({"on": True, "kind": "b"}, "toy.on and toy.kind 'b' exclude each other: change one"),
        ({"step": 1}, "toy.step is unknown: the fields of toy are " + ", ".join(ToySection.model_fields)),
    ],
)
def test_a_wrong_value_is_one_sentence(values, sentence):
    with pytest.raises(UserError) as error:
        ToySection.parse(values)
    assert str(error.value) == sentence
