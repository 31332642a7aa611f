"""What of an exception is quoted in a sentence, and what a sentence may hold."""

import pickle

import pytest

from maira_jax.errors import UserError, first_line


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


def test_what_a_file_holds_cannot_break_the_line_or_command_the_terminal():
    error = UserError("rows.csv: 'é\n\x1b[2J\u202e\ud800' is no label: correct it")
    assert str(error) == r"rows.csv: 'é\n\x1b[2J\u202e\ud800' is no label: correct it"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
