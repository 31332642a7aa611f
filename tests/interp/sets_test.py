"""Sets of interpretations, read: our own as it is, imported ones with the scores that still belong to them."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from interp import sets
from maira_jax.errors import UserError


def written(folder, **columns):
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / sets.FEATURES)


@pytest.fixture
def workdir(tmp_path):
    written(tmp_path / "interp", feature=[0, 1], name=["heart", None], explanation=["a large heart", None])
    known = {"feature": [1, 3, 7], "name": [None] * 3, "explanation": ["tubes", "wires", "effusions"]}
    written(tmp_path / "interpretations" / "released", **known, score=[0.5, 0.6, 0.7])
    return tmp_path


def test_names_are_our_own_first(workdir):
    written(workdir / "interpretations" / "a", feature=[0])
    (workdir / "interpretations" / "unfinished").mkdir()
    assert sets.set_names(workdir) == ["interp", "a", "released"]


def test_a_run_without_any_has_none(tmp_path):
    assert sets.set_names(tmp_path) == []
    with pytest.raises(UserError, match=r"no set of interpretations 'interp': run launch\.interpret first"):
        sets.read_set(tmp_path, "interp")


def test_an_unknown_set_is_refused_with_those_there_are(workdir):
    with pytest.raises(UserError, match="'other': choose from interp, released"):
        sets.read_set(workdir, "other")


def test_our_own_is_read_as_it_is(workdir):
    assert sets.read_set(workdir, "interp").to_pydict()["name"] == ["heart", None]


def test_scores_are_those_of_the_explanations_in_the_table(workdir):
    scored = {"feature": [0, 1, 3], "name": [None] * 3, "explanation": ["x", "tubes", "other wires"]}
    folder = workdir / "interpretations" / "released" / "scored"
    written(folder, **scored, detection=[0.1, 0.8, 0.9], detection_interval=[[0.0, 1.0]] * 3)
    assert sets.read_set(workdir, "released").to_pydict() == {
        "feature": [1, 3, 7],
        "name": [None] * 3,
        "explanation": ["tubes", "wires", "effusions"],
        "score": [0.5, 0.6, 0.7],
        "detection": [0.8, None, None],  # the explanation of 3 has changed, and 7 was not scored
        "detection_interval": [[0.0, 1.0], None, None],
    }


def test_a_damaged_table_is_refused(workdir):
    (workdir / "interp" / sets.FEATURES).write_text("no parquet")
    with pytest.raises(UserError, match=r"features\.parquet cannot be read .*: interpret or import again"):
        sets.read_set(workdir, "interp")
