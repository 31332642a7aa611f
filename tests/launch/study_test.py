"""The whole study of the paper by its own configuration, small, on the phantom, with a server that answers by rule."""

import json

import pyarrow.parquet as pq

from configs import phantom
from tests.helpers import readme_run
from tests.helpers.commands import launch
from tests.helpers.judge import serve

DEFAULTS = phantom.get_config()
# What the configuration sets for MAIRA-2 is as for the phantom again, so that programs are those of the demo's test.
SMALL = readme_run.SMALL | {
    "studies.n": 80,
    "model.dtype": "float32",
    "harvest.site": DEFAULTS.harvest.site,
    "harvest.dtype": "float32",
    "generate.batch_size": DEFAULTS.generate.batch_size,
    "generate.studies": 1,
    "sae.expansion": 1,
    "sae.k": 8,
    "train.steps": 30,
    "train.batch_size": 256,
    "train.decay_start": 20,
    "train.dtype": "float32",
    "interpret.n_control": 8,
    "steer.studies": 2,
    "steer.workers": DEFAULTS.steer.workers,
    "steer.max_new_tokens": DEFAULTS.steer.max_new_tokens,
    "evaluate.judge_studies": 2,
}


def test_the_study_ends_with_the_papers_table(tmp_path):
    with serve() as server:
        fields = {"studies.source": "phantom", "judge.model": "rules", "judge.base_url": server.url} | SMALL
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        done = launch("demo", "--config=configs/maira2_study.py:phantom,", f"--workdir={tmp_path}", *flags)
        assert done.returncode == 0, done.stdout + done.stderr
    table = launch("study_report", f"--workdir={tmp_path}").stdout
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    shown = {row[0]: row[1:] for row in cells}
    summary = json.loads((tmp_path / "interp" / "summary.json").read_text())
    scores = summary["detection_random"]
    for name, count in (("detection above 0.75", scores["above_075"]), ("detection below 0.5", scores["below_05"])):
        assert shown[name][1] == f"{count:,} ({count / scores['scored']:.1%})"
    assert shown["detection above 0.75"][0] == "288 (1.8 %)" and shown["no observable change"][0] == "35 %"
    assert scores["scored"] > 10 and shown["interpreted"][1] != "none"
    rows = pq.read_table(tmp_path / "evaluation" / "concepts" / "results.parquet").to_pylist()
    for column, method in ((1, "add"), (2, "random")):
        judged = [row for row in rows if row["method"] == method and row["judge_on_target"] is not None]
        unchanged = [row["judge_on_target"] + row["judge_off_target"] == 0 for row in judged]
        assert len(judged) > 5 and shown["no observable change"][column] == f"{sum(unchanged) / len(judged):.0%}"
        off = sum(row["judge_off_target"] for row in judged) / len(judged)
        assert shown["off-target changes in a report"][column] == f"{off:.2f}"
    assert "Explained and scored by rules" in table
