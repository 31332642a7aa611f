"""A scorer of one's own is one file and one registration, which a configuration file imports."""

import subprocess
import sys

import pyarrow.parquet as pq

from maira_jax.run import files
from tests.helpers.interp_run import PLANTED, make_workdir
from tests.helpers.paths import ROOT

SCORER = '''
import re

from interp.scorers import detection
from interp.scorers.judge import Verdict
from interp.scorers.scorer import SCORERS


@SCORERS.register("toy")
class ToyScorer(detection.DetectionScorer):
    """Says that a feature is active where a context has a quoted phrase of the explanation."""

    def answer(self, questions):
        for question in questions:
            phrases = re.findall('"([^"]+)"', question.explanation)
            yield Verdict(tuple(int(any(p in line.lower() for p in phrases)) for line in question.lines))
'''
CONFIG = """
import toy_scorer

from tests.helpers.interp_run import config


def get_config():
    cfg = config(n_control=1)
    cfg.interpret.scorers = ("detection", "fuzzing", "toy")
    return cfg
"""


def test_a_toy_scorer_runs_through_the_command(tmp_path):
    make_workdir(tmp_path / "run", 240)
    (tmp_path / "toy_scorer.py").write_text(SCORER)
    (tmp_path / "toy_config.py").write_text(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n{CONFIG}")
    command = [sys.executable, "-m", "launch.interpret", f"--config={tmp_path / 'toy_config.py'}"]
    subprocess.run([*command, f"--workdir={tmp_path / 'run'}"], cwd=ROOT, check=True)
    rows = pq.read_table(tmp_path / "run" / "interp" / "features.parquet").to_pylist()
    scored = [row for row in rows if row["toy"] is not None]
    assert len(scored) == len(PLANTED) + 1
    assert rows[0]["toy"] > 0.8 and rows[0]["toy_interval"][0] <= rows[0]["toy"] <= rows[0]["toy_interval"][1]
    assert all(row["toy_n_examples"] == row["n_examples"] and row["toy_n_failed"] == 0 for row in scored)
    summary = files.read_json(tmp_path / "run" / "interp" / "summary.json")
    assert summary["toy"]["scored"] == len(scored) and summary["fuzzing"]["scored"] > 0
    manifest = files.read_json(tmp_path / "run" / "interp" / "manifest.json")
    assert manifest["section"]["interpret"]["scorers"] == ["detection", "fuzzing", "toy"]
