"""JSON Lines that a killed run resumes from."""

import json

import pytest

from maira_jax.errors import UserError
from maira_jax.run import jsonl

EXPECTED = [{"study": name} for name in "abcde"]
RECORDS = [{"study": name, "text": "ü\u2028"} for name in "abcde"]


def write(path, records, tail=""):
    with path.open("wb", buffering=0) as file:
        jsonl.append(file, records)
        file.write(tail.encode())


def test_whole_parts_are_kept_and_the_rest_is_cut_off(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert jsonl.resume(path, EXPECTED, (2, 2, 1), "run again") == [] and not path.exists()
    for n, tail, kept in ((0, "", 0), (1, "", 0), (2, '{"stu', 2), (3, '{"study": "d"}', 2), (4, "", 4), (5, "", 5)):
        write(path, RECORDS[:n], tail)
        assert jsonl.resume(path, EXPECTED, (2, 2, 1), "run again") == RECORDS[:kept]
        assert path.read_text() == "".join(jsonl.line(record) for record in RECORDS[:kept])


@pytest.mark.parametrize("line", ["{", "[]", "null", "\xff", '{"study": "x"}'])
def test_a_damaged_line_and_one_of_another_run_are_refused(tmp_path, line):
    path = tmp_path / "lines.jsonl"
    text = f"{json.dumps(RECORDS[0])}\n{line}\n".encode("latin-1")
    path.write_bytes(text)
    with pytest.raises(UserError, match=r"jsonl, line 2, is damaged or of another run: delete .* and run again"):
        jsonl.resume(path, EXPECTED, (1,) * 5, "run again")
    assert path.read_bytes() == text


def test_more_lines_than_there_can_be_are_refused(tmp_path):
    write(tmp_path / "lines.jsonl", RECORDS)
    with pytest.raises(UserError, match="line 5, is damaged"):
        jsonl.resume(tmp_path / "lines.jsonl", EXPECTED[:4], (2, 2), "run again")


def test_required_keys(tmp_path):
    write(tmp_path / "lines.jsonl", RECORDS)
    assert jsonl.read(tmp_path / "lines.jsonl", "run again", required=("study",)) == RECORDS
    with pytest.raises(UserError, match="line 1, is damaged"):
        jsonl.read(tmp_path / "lines.jsonl", "run again", required=("step",))
