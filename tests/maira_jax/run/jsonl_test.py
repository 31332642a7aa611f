"""JSON Lines that a killed run resumes from."""

import pytest

from maira_jax.errors import UserError
from maira_jax.run import jsonl, processes
from maira_jax.run.stages.stage import Stage

EXPECTED = {"0": [{"study": "a"}, {"study": "b"}], "1": [{"study": "c"}, {"study": "d"}], "2": [{"study": "e"}]}
RECORDS = {name: [known | {"text": "ü\u2028"} for known in part] for name, part in EXPECTED.items()}


def parts_of(folder):
    return jsonl.PartFiles(folder, EXPECTED, "run again")


def test_parts_that_are_there_are_not_written_again(tmp_path):
    assert parts_of(tmp_path).mine == ["0", "1", "2"]
    for n, name in enumerate(("1", "2", "0")):
        parts = parts_of(tmp_path)
        assert name in parts.mine and len(parts.mine) == 3 - n and parts.n_found + parts.n_mine == 5
        parts.write(name, RECORDS[name])
    (tmp_path / "parts" / "other.jsonl").write_text("{")  # as of batches of another size
    parts = parts_of(tmp_path)
    assert parts.mine == [] and parts.n_found == 5
    assert list(parts.records()) == [record for part in RECORDS.values() for record in part]


def test_missing_parts_are_dealt_out_to_all_processes(tmp_path, monkeypatch):
    parts_of(tmp_path).write("1", RECORDS["1"])
    monkeypatch.setattr(processes, "count", lambda: 2)
    for process, mine in enumerate((["0"], ["2"])):
        monkeypatch.setattr(processes, "index", lambda process=process: process)
        monkeypatch.setattr(processes, "broadcast", lambda _: ["1"])
        assert parts_of(tmp_path).mine == mine


REFUSAL = r"1.jsonl, line [1-4], is damaged or of another run: delete .* and run again"


@pytest.mark.parametrize(
    "change", [(b"c", b"d"), (b"\xc3\xbc", b"u"), (b"}\n", b""), (b"{", b"\xff"), (b"\n", b"\n\n")]
)
def test_a_part_that_was_changed_is_refused(tmp_path, change):
    parts_of(tmp_path).write("1", RECORDS["1"])
    path = tmp_path / "parts" / "1.jsonl"
    for found in (path.read_bytes().replace(*change, 1), path.read_bytes().rpartition(b"{")[0], b""):
        path.write_bytes(found)
        with pytest.raises(UserError, match=REFUSAL):
            parts_of(tmp_path)
        assert path.read_bytes() == found


@pytest.mark.parametrize("records", [RECORDS["2"], RECORDS["1"][:1], RECORDS["1"] + RECORDS["2"], []])
def test_a_part_of_another_run_is_refused(tmp_path, records):
    parts_of(tmp_path).write("1", records)
    with pytest.raises(UserError, match=REFUSAL):
        parts_of(tmp_path)


def test_a_part_that_is_missing_in_the_end_is_named(tmp_path):
    parts = parts_of(tmp_path)
    parts.write("0", RECORDS["0"])
    with pytest.raises(UserError, match="1.jsonl, line 1, is damaged"):
        list(parts.records())


def test_a_finished_stage_has_no_parts(tmp_path):
    for _ in range(2):
        with Stage(tmp_path, "texts", {}) as stage:
            (stage.dir / jsonl.PARTS).mkdir()  # the second time as if the first one had been killed
            if not stage.finished:
                stage.finish({})
    with Stage(tmp_path, "texts", {}) as stage:
        assert stage.finished
    assert [path.name for path in stage.dir.iterdir()] == ["manifest.json"]


def test_required_keys(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(map(jsonl.line, RECORDS["0"])) + '{"stu', encoding="utf-8")  # its end left by a kill
    assert jsonl.read(path, "run again", required=("study",)) == RECORDS["0"]
    with pytest.raises(UserError, match="line 1, is damaged"):
        jsonl.read(path, "run again", required=("step",))
    jsonl.truncate(path, 1)
    assert path.read_text(encoding="utf-8") == jsonl.line(RECORDS["0"][0])
