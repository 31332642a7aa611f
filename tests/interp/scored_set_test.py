"""Explanations of a set are scored as our own are: the same ones score the same."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from interp import import_set, sets, stage
from interp.features.table import schema_with
from maira_jax.errors import UserError
from maira_jax.run import files
from tests.helpers.interp_run import config, make_workdir
from tests.helpers.judge import serve

FIELDS = {"n_explain": 20, "n_score": 20, "min_contexts": 5, "n_control": 2, "bootstrap": 20}
FOREIGN = "A device, in the words of another program."


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A run with a set that has our own explanations, but for feature 5, and not of feature 4; and its scores."""
    workdir = make_workdir(tmp_path_factory.mktemp("set") / "run", 120)
    cfg = config(**FIELDS)
    stage.run(cfg, workdir)
    own = pq.read_table(workdir / "interp" / "features.parquet").to_pylist()
    rows = [{"feature": row["feature"], "explanation": row["explanation"]} for row in own if row["feature"] != 4]
    rows[4]["explanation"] = FOREIGN
    path = workdir.parent / "ours.parquet"
    pq.write_table(pa.Table.from_pylist([row for row in rows if row["explanation"]]), path)
    cfg.import_set.update({"files": (str(path),), "set": "ours"})
    import_set.run(cfg, workdir)
    cfg.interpret.set = "ours"
    return workdir, own, stage.run(cfg, workdir)


def test_the_same_explanations_score_the_same(scored):
    workdir, own, counts = scored
    rows = {row["feature"]: row for row in sets.read_set(workdir, "ours").to_pylist()}
    same = [row for row in own if row["detection"] is not None and row["feature"] not in (4, 5)]
    assert {row["feature"] for row in same} >= {0, 1, 2, 3}
    for row in same:
        found = rows[row["feature"]]
        for name in ("detection", "detection_interval", "detection_hard", "fuzzing", "by_decile", "n_examples"):
            assert found[name] == row[name], (row["feature"], name)
    assert 4 not in rows
    assert rows[5]["detection"] is None and rows[5]["reason"] == "the judge gave no answers"
    assert counts["scored"] == len(same)


def test_the_files_have_the_columns_of_our_own(scored):
    folder = scored[0] / "interpretations" / "ours" / "scored"
    assert sorted(path.name for path in folder.iterdir()) == [
        "comparison.parquet", "features.parquet", "manifest.json", "summary.json"
    ]  # fmt: skip
    schema = pq.read_schema(folder / "features.parquet")
    ours = schema_with(("fuzzing", "intruder"))
    assert all(ours.field(name).type == schema.field(name).type for name in schema.names)
    summary = files.read_json(folder / "summary.json")
    values = [row["detection"] for row in pq.read_table(folder / "features.parquet").to_pylist()]
    assert summary["detection"]["mean"] == pytest.approx(np.mean([value for value in values if value is not None]))
    assert summary["not_scored"]["the judge gave no answers"] == 1
    assert summary["comparison"]["spearman"]["detection"] == pytest.approx(1)
    compared = {row["feature"]: row for row in pq.read_table(folder / "comparison.parquet").to_pylist()}
    assert compared[5]["explanation"] == FOREIGN and compared[5]["other_detection"] is not None
    assert compared[4]["explanation"] is None and compared[0]["agreement"] == pytest.approx(1)


def test_our_own_stay_as_they_were(scored):
    workdir, own, _ = scored
    assert pq.read_table(workdir / "interp" / "features.parquet").to_pylist() == own
    assert sets.set_names(workdir)[:2] == ["interp", "ours"]


def test_run_again_it_is_finished(scored, capsys):
    cfg = config(**FIELDS, set="ours")
    assert stage.run(cfg, scored[0]) == scored[2]
    assert "scored: already finished" in capsys.readouterr().err


def test_a_set_or_an_interpretation_that_is_not_there_is_refused(scored, tmp_path):
    with pytest.raises(UserError, match="interpretations/other, which no .* launch.import_sae .* --set=other`"):
        stage.run(config(**FIELDS, set="other"), scored[0])
    workdir = make_workdir(tmp_path / "run", 10)
    with pytest.raises(UserError, match="interp, which no finished stage wrote"):
        stage.run(config(**FIELDS, set="ours"), workdir)


def added(workdir, path, own, features, cfg):
    rows = [{"feature": f, "explanation": own[f]["explanation"]} for f in features]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg.import_set.update({"files": (str(path),), "set": "two"})
    import_set.run(cfg, workdir)


def test_features_that_are_asked_for_and_a_set_that_is_added_to(scored, tmp_path, capsys):
    workdir, own, _ = scored
    cfg = config(**FIELDS, set="two", features=(1, 2))
    added(workdir, tmp_path / "first.jsonl", own, (0, 1), cfg)
    assert stage.run(cfg, workdir)["features"] == 1
    assert [row["detection"] for row in sets.read_set(workdir, "two").to_pylist()] == [None, own[1]["detection"]]
    added(workdir, tmp_path / "second.jsonl", own, (2,), cfg)
    found = [None, own[1]["detection"], None]
    assert [row["detection"] for row in sets.read_set(workdir, "two").to_pylist()] == found
    assert "written anew" not in capsys.readouterr().err
    stage.run(cfg, workdir)
    found[2] = own[2]["detection"]
    assert [row["detection"] for row in sets.read_set(workdir, "two").to_pylist()] == found
    assert "is of the set before it was added to: it is written anew" in capsys.readouterr().err


def test_a_language_model_scores_explanations_of_its_kind(scored, tmp_path, capsys):
    workdir = scored[0]
    words = {0: 'Text that mentions "effusion".', 5: 'Text that mentions "pacemaker".'}
    path = tmp_path / "words.jsonl"
    path.write_text("".join(json.dumps({"feature": f, "explanation": text}) + "\n" for f, text in words.items()))
    cfg = config(**FIELDS, judge="llm", set="words")
    cfg.import_set.update({"files": (str(path),), "set": "words"})
    import_set.run(cfg, workdir)
    with serve(fault_text="example", fault_status=400) as server:
        cfg.judge.update({"base_url": server.url, "model": "rule", "attempts": 1})
        cfg.interpret.features = (0,)
        with pytest.raises(UserError, match=r"none of \d+ requests to .* had a usable answer, .*HTTP 400\): fix that"):
            stage.run(cfg, workdir)
    cfg.interpret.features, cfg.judge.attempts = (), 4
    with serve() as server:
        capsys.readouterr()
        cfg.judge.base_url = server.url
        assert stage.run(cfg, workdir)["scored"] == 2
        asked = server.record()["requests"]
    announced = int(re.search(r"about (\d+) requests to rule", capsys.readouterr().err)[1])
    assert asked <= announced <= 1.1 * asked + 1  # the same question is asked once
    rows = sets.read_set(workdir, "words").to_pylist()
    assert min(row["detection"] for row in rows) > 0.9 and {row["judge"] for row in rows} == {"rule"}
