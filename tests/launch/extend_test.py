"""A user's own variant, reader, method and scorer, each one file and one registration, through the commands."""

import json

import pyarrow.parquet as pq
import pytest
from PIL import Image

from maira_jax.studies.readers import phantom
from sae import formats
from tests.helpers import readme_run
from tests.helpers.commands import launch
from tests.helpers.paths import ROOT

# What has no part in the toys.
SMALL = [
    f"--config.{name}={value}"
    for name, value in {
        "generate.studies": 1,
        "label.bootstrap": 20,
        "label.probe_seeds": 1,
        "evaluate.bootstrap": 50,
        "faithfulness.n": 2,
        "faithfulness.studies": 1,
        **{name: value for name, value in readme_run.SMALL.items() if name.startswith("localize.")},
    }.items()
]
TOYS = ROOT / "tests" / "helpers" / "toys"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run directory after all stages, in one command, called in the folder in which the files of the toys are."""
    folder, workdir = tmp_path_factory.mktemp("studies"), tmp_path_factory.mktemp("run")
    rows = []
    for study in phantom.studies(0, 120, seed=3, size=112):
        Image.fromarray(study.frontal).save(folder / f"{study.study_id}.png")
        rows.append((study.study_id, study.patient_id, study.findings, json.dumps(dict(study.labels))))
    (folder / "reports.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    done = launch("demo", f"--workdir={workdir}", f"--config=toy_config.py:{folder}", *SMALL, cwd=TOYS)
    assert done.returncode == 0, done.stderr
    return workdir


def test_studies_of_the_reader_are_harvested(finished):
    studies = pq.read_table(finished / "activations" / "studies.parquet")
    assert studies.num_rows == 120 and studies["study_id"][0].as_py().startswith("phantom-3-")


def test_the_variant_is_trained_and_exported(finished):
    assert json.loads((finished / "sae" / "manifest.json").read_text())["section"]["sae"]["kind"] == "half_of_strongest"
    config = json.loads((finished / "export" / "saelens" / "cfg.json").read_text())
    assert config["metadata"]["training_architecture"] == "standard"
    assert "HalfOfStrongest" in (finished / "export" / "saelens" / "README.md").read_text()
    assert formats.load(finished / "export" / "dictionary_learning").n_features == 256


def test_the_scorer_has_columns_and_a_summary_of_its_own(finished):
    rows = pq.read_table(finished / "interp" / "features.parquet").to_pylist()
    scored = [row for row in rows if row["quoted_words"] is not None]
    assert scored and all(0 <= row["quoted_words"] <= 1 for row in scored)
    assert all(row["fuzzing"] is None for row in rows)  # which was not asked for
    summary = json.loads((finished / "interp" / "summary.json").read_text())
    assert summary["quoted_words"]["scored"] == len(scored)


def test_the_method_steers_and_is_evaluated(finished):
    lines = (finished / "steer" / "concepts" / "generations.jsonl").read_text().splitlines()
    methods = [json.loads(line)["settings"]["method"] for line in lines]
    assert methods.count("add_encoder") == methods.count("add") == 4  # 2 studies, 2 features
    results = pq.read_table(finished / "evaluation" / "concepts" / "results.parquet")
    assert "add_encoder" in results["method"].to_pylist()


def test_a_command_without_the_file_does_not_know_the_names(tmp_path):
    done = launch("train", f"--workdir={tmp_path}", "--config.sae.kind=half_of_strongest")
    assert done.returncode == 1
    assert "sae.kind is 'half_of_strongest': choose from batch_top_k, relu, top_k" in done.stderr
