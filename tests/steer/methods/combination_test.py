"""Combinations of features."""

import pytest

from maira_jax.errors import UserError
from steer.methods.combination import members


def test_members_of_a_combination() -> None:
    assert members("12+3-4") == [(12, 1.0), (3, 1.0), (4, -1.0)]


@pytest.mark.parametrize("text", ["12", "5*7", "-3+4", "3+", ""])
def test_what_is_not_a_combination_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"steer\.combinations"):
        members(text)
