"""The whole path as a user runs it, small: its summary, run again, and killed again and again."""

import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from docs import files_page
from interp.features.table import schema_with
from maira_jax.run.stages.stage import read_manifest
from tests.helpers.paths import ROOT
from tests.helpers.readme_run import SMALL, WORKDIR

# One after the other, the demo is killed as soon as such a file is there: in the middle of each long stage.
KILLS = ("activations/*/*", "sae/checkpoints/*", "localize/*/*", "interp/phases/*", "steer/*/*.*", "evaluation/*/*")
RESULTS = (
    "sae/metrics.json",
    "localize/sites.parquet",
    "interp/summary.json",
    "interp/features.jsonl",
    "steer/concepts/generations.jsonl",
    "evaluation/concepts/summary.json",
    "faithfulness/scores.parquet",
)
# The folder of each stage.
FOLDERS = {
    "convert": "model",
    "generate": "reports",
    "harvest": "activations",
    "train": "sae",
    "export": "export",
    "localize": "localize",
    "interpret": "interp",
    "label": "label",
    "steer": "steer/concepts",
    "evaluate": "evaluation/concepts",
    "faithfulness": "faithfulness",
    "atlas": "atlas",
}
SIGNALS = [(command, sent) for command in FOLDERS for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
IN_CI = [("convert", signal.SIGINT), ("atlas", signal.SIGTERM)]

SMALL_OF_IMAGES = {
    "studies.n": 600,
    "sae.expansion": 2,
    "train.steps": 60,
    "train.batch_size": 128,
    "train.resample_every": 20,
    "label.bootstrap": 20,
    "label.probe_seeds": 2,
}


def demo(workdir, config="phantom", small=SMALL):
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "launch.demo",
            f"--config=configs/{config}.py",
            f"--workdir={workdir}",
            *(f"--config.{name}={value}" for name, value in small.items()),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(workdir, *which):
    process = demo(workdir, *which)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def results(workdir):
    return {name: (workdir / name).read_bytes() for name in RESULTS}


@pytest.fixture(scope="module")
def whole(first_run, tmp_path_factory):
    """A copy of a run without interruption, and what that printed."""
    folder, output = first_run
    return shutil.copytree(folder / WORKDIR, tmp_path_factory.mktemp("demo") / "run"), output


def test_the_summary_is_what_the_stages_wrote(whole, first_run):
    workdir, output = whole
    lines = output.strip().splitlines()
    sae, features, *named = lines[[line[:5] for line in lines].index("SAE, ") :]
    head = next(i for i, line in enumerate(named) if line.strip().startswith("features "))
    named, compared = named[:head], named[head:]
    *named, steering, atlas = named
    advantages = [line for line in compared if line.startswith("Features are ")]
    metrics = json.loads((workdir / "sae" / "metrics.json").read_text())
    interp = json.loads((workdir / "interp" / "summary.json").read_text())
    headline = json.loads((workdir / "evaluation" / "concepts" / "summary.json").read_text())["headline"]["add"]
    assert sae == (
        f"SAE, on {metrics['tokens']:,} held-out rows: fraction of variance unexplained {metrics['fvu']:.3f}, "
        f"L0 {metrics['l0']:.1f}, dead features {metrics['dead']:,}"
    )
    scored, above = interp["scored"], interp["detection"]["above_075"]
    assert features.startswith(f"Features: {scored} scored, {above} above 0.75, mean ")
    assert [line.split("  ")[1] for line in compared[1:3]] == [
        f"concepts found, of {interp['coverage']['concepts']}",
        "mean F1 of concepts",
    ]
    compared = compared[: -len(advantages)]
    assert advantages == lines[-len(advantages) :] and len(advantages) == len(compared) - 1
    for name in ("detection", "fuzzing", "intruder test", "faithfulness", "mean F1 of concepts"):
        assert sum(f" {name}: " in line for line in advantages) == 1
    f1_08, tested = interp["concepts"]["f1_08"], interp["concepts"]["tested"]
    assert features.endswith(f"; {f1_08} of {tested} concepts found with F1 of 0.8 or more")
    found = interp["concepts"]["found"]
    detected = [line.partition(" F1 ")[0].strip() for line in named if " F1 " in line]
    assert sorted(detected) == sorted(found)
    assert all(line.startswith("    steered by feature ") for line in named if " F1 " not in line)
    rate = headline["no_change"]["rate"]
    assert steering.endswith("no change not measured" if rate is None else f"no change {rate:.0%}")
    page = Path(atlas.removeprefix("Atlas: "))
    assert page == first_run[0] / WORKDIR / "atlas" / "index.html" and "<html" in page.read_text()
    assert [line for line in output.splitlines() if re.match(r"\[\d+/12\] \w+", line)][-1].startswith("[12/12] atlas")


def test_run_again_everything_is_finished(whole):
    workdir, output = whole
    before = results(workdir)
    again = finish(workdir)
    assert again.count("already finished") == 12
    assert again.strip().splitlines()[-4:] == output.strip().splitlines()[-4:]
    assert results(workdir) == before


def columns_of(path):
    """Name and type of each column of a parquet file, or each field of a JSON Lines file."""
    if path.suffix == ".parquet":
        return {field.name: files_page.kind_of(field.type) for field in pq.read_schema(path)}
    return set(json.loads(path.read_text().partition("\n")[0]))


def test_files_have_the_columns_of_the_page(whole):
    """Of logs and of features.jsonl, which is features.parquet again, the page says in words what they hold."""
    workdir = whole[0]
    written = {path.relative_to(workdir) for ending in ("parquet", "jsonl") for path in workdir.rglob(f"*.{ending}")}
    in_words = {Path("sae", f"{name}.jsonl") for name in ("log", "held_out", "timing")} | {
        Path("interp/features.jsonl")
    }
    seen = {re.sub("/concepts/", "/NAME/", str(path)): columns_of(workdir / path) for path in written - in_words}
    assert len(seen) == 19 and seen.keys() <= files_page.TABLES.keys()
    scored = {f"interp/{name}.parquet" for name in ("features", "controls")}  # the page says what a scorer adds
    for name, columns in seen.items():
        schema = files_page.TABLES[name][1]
        schema = schema_with(("intruder",), schema) if name in scored else schema
        declared = {field.name: files_page.kind_of(field.type) for field in schema}
        assert columns == (declared if isinstance(columns, dict) else set(declared)), name


def test_only_its_user_can_read_a_run(whole):
    assert not any(stat.S_IMODE(path.stat().st_mode) & 0o077 for path in (whole[0], *whole[0].rglob("*")))


def begun(command, workdir):
    """A stage's command, given the configuration that the run directory remembers."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where nohup has started the tests
    try:
        return subprocess.Popen(
            [sys.executable, "-m", f"launch.{command}", f"--workdir={workdir}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGHUP, before)


def written(workdir, command):
    """The checksums of a stage's files, but for those that hold times."""
    found = read_manifest(workdir / FOLDERS[command] / "manifest.json")["files"]
    timed = "timing|tensorboard|params/(commit_success|_CHECKPOINT_METADATA)"
    return {name: entry for name, entry in found.items() if not re.match(timed, name)}


@pytest.mark.parametrize(
    ("command", "sent"), [*IN_CI, *(pytest.param(*each, marks=pytest.mark.drill) for each in SIGNALS)]
)
def test_a_signal_in_any_stage_is_one_sentence_and_changes_no_result(whole, tmp_path, command, sent):
    workdir = Path(shutil.copytree(whole[0], tmp_path / "run"))
    folder = workdir / FOLDERS[command]
    manifest = read_manifest(folder / "manifest.json")
    took = [datetime.fromisoformat(manifest[name]).timestamp() for name in ("start", "end")]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests were started to ignore it
    wait = random.uniform(0, max(took[1] - took[0], 1) / 2)
    while True:  # again, sooner, where the stage was faster than the first time
        shutil.rmtree(folder)
        process = begun(command, workdir)
        while process.poll() is None and not folder.is_dir():
            time.sleep(0.005)
        time.sleep(wait)
        if process.poll() is None and not (folder / "manifest.json").exists():
            break
        assert not process.wait(200), process.communicate()[1]
        wait /= 4
    process.send_signal(sent)
    error = process.communicate(timeout=200)[1]
    assert process.returncode == 128 + sent, error
    assert re.search(
        "(error: (interrupted|terminated|the terminal was closed): .* resumes from here|terminated after step .*)\n$",
        error,
    )
    assert "Traceback" not in error and not any(workdir.rglob(".*"))
    process = begun(command, workdir)
    assert not process.communicate(timeout=300)[1].count("Traceback") and process.returncode == 0
    assert written(workdir, command) == written(whole[0], command)


@pytest.mark.drill
def test_killed_in_every_stage_it_ends_with_the_same_results(whole, tmp_path):
    workdir = tmp_path / "run"
    for pattern in KILLS:
        process = demo(workdir)
        while process.poll() is None and not any(workdir.glob(pattern)):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert any(workdir.glob(pattern))
    finish(workdir)
    assert results(workdir) == results(whole[0])


@pytest.mark.drill
def test_the_stages_of_an_image_encoder(tmp_path):
    lines = finish(tmp_path / "run", "medsae", SMALL_OF_IMAGES).strip().splitlines()
    stages = [line.split()[1] for line in lines if re.match(r"\[\d/7\] \w+", line)]
    assert stages == ["convert", "harvest", "train", "export", "label", "interpret", "atlas"]
    label = json.loads((tmp_path / "run" / "label" / "summary.json").read_text())
    bases = label["bases"].values()
    as_they_are, by_rank = (line for line in lines if line.startswith("  monosemanticity"))
    assert all(f"{basis['monosemanticity']['mean']:.3f} [" in as_they_are for basis in bases)
    assert all(f"{basis['by_rank']['monosemanticity']['mean']:.3f} [" in by_rank for basis in bases)
    assert "A control" not in lines[-2] and lines[-1].endswith("index.html")
