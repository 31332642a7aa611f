"""Amplified features on a small random model, against the steer stage; and what is made of a judge's answers."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import phantom
from interp.scorers.judge import Verdict
from maira_jax.errors import UserError
from maira_jax.run import files
from maira_jax.run.stages.stage import Stage
from steer import stage as steer
from steer.faithfulness import stage
from steer.faithfulness.stage import ReportChange, summarised
from steer.program.sweep_writer import SweepWriter
from tests.helpers.judge import serve
from tests.helpers.steer_run import N_FEATURES, lines_of, make_config


def config_of():
    config, own = phantom.get_config(), make_config()
    config.studies.update(own.studies)
    config.steer.update(own.steer.to_dict() | {"strengths": (-4.0, 2.0), "methods": ("add",), "concepts": ()})
    config.faithfulness.update({"n": 3, "studies": 2, "bootstrap": 20})
    return config


@pytest.fixture()
def workdir(inputs, tmp_path):
    """A run directory on the inputs of the steer stage's tests, with explained features and controls."""
    for name in ("model", "activations", "sae"):
        (tmp_path / name).symlink_to(inputs / name)
    with Stage(tmp_path, "interp", {"test": "interp"}) as written:
        detection = [None] * 4 + [0.6] * (N_FEATURES - 4)
        text = 'Offline judge: text that mentions "{}".'
        features = {
            "feature": range(N_FEATURES),
            "name": [f"word {i}" for i in range(N_FEATURES)],
            "explanation": [None] * 4 + [text.format(f"w{i}") for i in range(4, N_FEATURES)],
            "detection": detection,
            "max_activation": np.full(N_FEATURES, 6.0),
            "concept": pa.nulls(N_FEATURES, pa.string()),
            "concept_f1": pa.nulls(N_FEATURES, pa.float64()),
        }
        pq.write_table(pa.table(features), written.dir / "features.parquet")
        concepts = {"concept": ["oedema"], "feature": [9], "f1": [0.8], "runners_up": [[2]], "runners_up_f1": [[0.1]]}
        pq.write_table(pa.table(concepts), written.dir / "concepts.parquet")
        kinds = ["random directions"] * 2 + ["raw dimensions"] * 2 + ["shuffled activations"]
        controls = {
            "control": kinds,
            "direction": ["", "", "-3", "+1", ""],
            "matched_feature": [5, 9, 5, 9, 5],
            "name": ["a"] * 5,
            "explanation": [text.format("the")] * 5,
            "detection": [0.6, None, 0.6, 0.7, 0.6],
        }
        pq.write_table(pa.table(controls), written.dir / "controls.parquet")
        written.finish({})
    return tmp_path


def test_each_direction_is_amplified_in_one_report_as_steering_would(workdir, monkeypatch):
    whole, calls = SweepWriter.write, []

    def killed(self, studies, *rest):
        calls.append(studies)
        return whole(self, studies, *rest) if len(calls) < 2 else pytest.fail("killed")

    with monkeypatch.context() as patch, pytest.raises(pytest.fail.Exception, match="killed"):
        patch.setattr(SweepWriter, "write", killed)
        stage.run(config_of(), workdir)
    monkeypatch.setattr(SweepWriter, "write", lambda self, *rest: calls.append(rest[0]) or whole(self, *rest))
    counts = stage.run(config_of(), workdir)
    assert calls == [[0], [1], [1]], "what was written is not written again"
    rows = pq.read_table(workdir / "faithfulness" / stage.SCORES).to_pylist()
    bases = [row["basis"] for row in rows]
    assert counts["reports"] == 6 and len(rows) == 9
    assert (
        sorted(bases)
        == ["features"] * 3 + ["random directions"] + ["raw dimensions"] * 2 + ["shuffled explanations"] * 3
    )
    assert len({row["study_id"] for row in rows}) == 2 and {row["strength"] for row in rows} == {4.0}
    own = [row for row in rows if row["basis"] == "features"]
    assert all(row["explanation"].endswith(f'"w{row["feature"]}".') for row in own)
    config = config_of()
    config.steer.update({"features": tuple(row["feature"] for row in own), "strengths": (4.0,), "studies": 2})
    steer.run(config, workdir)
    written = {(line["study_id"], line["direction"]): line for line in lines_of(workdir)}
    for row in own:
        line = written[row["study_id"], f"add-{row['feature']}"]
        assert (row["original"], row["amplified"]) == (line["original"], line["steered"])
    summary = files.read_json(workdir / "faithfulness" / stage.SUMMARY)
    assert set(summary["bases"]) == set(bases) and summary["judge"].startswith("offline judge")
    assert stage.run(config_of(), workdir) == counts


def change(text="more tube", original="lungs", why="", basis="features"):
    return ReportChange(basis, 0, "tube", "tubes", "s", 1.0, original, text, why)


class WordJudge:
    """Favours the report with the word "more"; no answer where "?" is in one, and never asked about equal ones."""

    def __init__(self):
        self.firsts = []

    def favour(self, questions):
        for question in questions:
            if any("more" in line for line in question.lines):
                self.firsts.append("more" in question.lines[0])
            assert question.explanation == "tubes" and question.lines[0] != question.lines[1]
            yes = tuple(int("more" in line) for line in question.lines)
            yield None if any("?" in line for line in question.lines) else Verdict(yes, 0.25)


def test_the_judge_sees_reports_in_random_order_and_only_those_that_differ():
    judge = WordJudge()
    kinds = {
        1.0: change(),
        0.0: change("lungs", "more tube"),
        0.5: change("lungs clear"),
        None: change("lungs?"),
    }
    unasked = [change("more more more", why="repetition"), change("lungs")]
    changes = [*kinds.values()] * 30 + unasked
    rows = stage._judged(judge, [], changes, 0)[: len(changes)]
    assert [row["score"] for row in rows] == [*kinds] * 30 + [0.5, 0.5]
    assert [row["cost"] for row in rows[:4]] == [0.25, 0.25, 0.25, 0.0]
    assert 0.3 < np.mean(judge.firsts) < 0.7


def test_a_language_model_is_asked_for_each_explanation_once_its_number_of_requests_is_told(
    workdir, monkeypatch, capsys
):
    changes = [change(f"A tube {i}.", f"Clear {i}.")._replace(explanation='Text with "tube".') for i in range(4)]
    changes.append(change("Clear.", "A tube.", basis="raw dimensions")._replace(explanation='Text with "tube".'))
    monkeypatch.setattr(stage, "_changes", lambda *_: changes)
    config = config_of()
    config.interpret.judge = "llm"
    with serve() as server:
        config.judge.update({"base_url": server.url, "model": "rule", "price_in": 1e6, "price_out": 1e6})
        stage.run(config, workdir)
    told = capsys.readouterr().err
    assert "about 9 requests to rule" in told, "those of shuffled explanations are among them"
    rows = pq.read_table(workdir / "faithfulness" / stage.SCORES).to_pylist()
    assert [row["score"] for row in rows] == [1.0] * 4 + [0.0] + [1.0] * 4 and all(row["cost"] > 0 for row in rows)
    config.judge.model = "other"
    with pytest.raises(UserError, match="judge.model"):
        stage.run(config, workdir)


def test_explanations_of_other_features_are_judged_on_the_same_reports():
    own = [change(f"text {i}")._replace(explanation=f"e{i}") for i in range(5)]
    shuffled = stage._shuffled([*own, change(basis="raw dimensions")], 0)
    assert sorted(each.amplified for each in shuffled) == [f"text {i}" for i in range(5)]
    assert sorted(each.explanation for each in shuffled) == [f"e{i}" for i in range(5)]
    assert all(each.explanation[1:] != each.amplified[5:] for each in shuffled)


def test_the_summary_compares_features_with_each_control():
    def rows(basis, scores, why=""):
        return [{"basis": basis, "score": score, "degenerate": why} for score in scores]

    found = summarised(rows("features", [1, 1, 0.5, None]) + rows("raw dimensions", [0.5, 0], "empty"), 50)
    assert found["bases"]["features"]["mean"] == pytest.approx(2.5 / 3) and found["bases"]["features"]["failed"] == 1
    assert found["bases"]["raw dimensions"]["degenerate"] == 1
    gained = found["differences"]["features minus raw dimensions"]
    assert gained["difference"] == pytest.approx(2.5 / 3 - 0.25) and gained["interval"][0] > 0
