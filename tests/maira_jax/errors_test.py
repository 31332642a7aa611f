"""What of an exception is quoted in a sentence."""

import pytest

from maira_jax.errors import first_line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("NOT_FOUND: no file [tensorstore_spec='{}'] [source locations='a.cc:1']"), "NOT_FOUND: no file"),
        (ValueError("shape [3, 4] is wrong"), "shape [3, 4] is wrong"),
        (EOFError(), "EOFError"),
        (ValueError("x" * 1000), "x" * 200),
    ],
)
def test_the_first_line_of_an_error(error, expected):
    assert first_line(error) == expected
