"""A released autoencoder and its interpretations through the commands; an exported one gives the results of its run."""

import shutil

import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict

from interp import sets
from launch import demo
from maira_jax.run import files
from sae import formats
from sae.saved import load_sae
from tests.helpers.commands import launch
from tests.helpers.readme_run import SMALL
from tests.helpers.sae import activations, make_store, random_sae

D = 16
FORMATS = ("dictionary_learning", "saelens")
# What a run that has imported the autoencoder of another one has in common with it, byte for byte.
SAME = (
    "sae/weights.safetensors",
    "sae/metrics.json",
    "sae/density.npy",
    "interp/features.jsonl",
    "interp/concepts.parquet",
    "interp/controls.parquet",
    "interp/coverage.parquet",
    "interp/exemplars.parquet",
    "interp/summary.json",
    "label/neurons.parquet",
    "steer/concepts/generations.jsonl",
    "steer/concepts/directions.npy",
    "evaluation/concepts/summary.json",
    "evaluation/concepts/results.parquet",
    "export/dictionary_learning/ae.pt",
    "export/saelens/sae_weights.safetensors",
)


def call(command, workdir, *flags):
    done = launch(command, f"--workdir={workdir}", *flags)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done


def test_an_autoencoder_and_its_names_in_one_command_and_names_alone(tmp_path):
    workdir, x = tmp_path / "run", activations(600, D)
    make_store(workdir, x)
    sae = random_sae(x, (32,), 3, 0.5)
    formats.writers()["dictionary_learning"].save(tmp_path / "released", sae, True)
    (tmp_path / "names.csv").write_text("latent,what\n3,heart\n7,lungs\n")
    (tmp_path / "more.csv").write_text("feature,explanation\n4,wires\n")
    where = (f"--sae={tmp_path / 'released'}", f"--interpretations={tmp_path / 'names.csv'}", "--set=theirs")
    done = call(
        "import_sae", workdir, *where, "--columns=feature=latent,name=what", "--config.train.loss_recovered_studies=0"
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("import_sae: d_model 16, n_features 32, k 3") and second == "import_sae: features 2"
    assert load_sae(workdir / "sae").n_features == 32
    assert dict(demo.STAGES)["train"](ConfigDict(), workdir)["n_features"] == 32  # nothing is trained in its place
    done = call("import_sae", workdir, f"--interpretations={tmp_path / 'more.csv'}", "--set=theirs")
    assert done.stdout == "import_sae: features 3\n"
    assert sets.read_set(workdir, "theirs")["explanation"].to_pylist() == ["heart", "wires", "lungs"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run directory of a small demo."""
    workdir = tmp_path_factory.mktemp("demo") / "run"
    call("demo", workdir, *flags_of(SMALL))
    call("label", workdir, *flags_of(SMALL))
    return workdir


def flags_of(fields):
    return [f"--config.{name}={value}" for name, value in fields.items()]


@pytest.mark.drill
@pytest.mark.parametrize("form", FORMATS)
def test_an_exported_autoencoder_gives_another_run_the_results_of_its_own(whole, tmp_path, form):
    run = tmp_path / "run"
    for name in ("model", "activations"):
        shutil.copytree(whole / name, run / name)
    call("import_sae", run, f"--sae={whole / 'export' / form}", *flags_of(SMALL))
    for command in ("export", "interpret", "label", "steer", "evaluate", "atlas"):
        call(command, run, *flags_of(SMALL))
    assert [name for name in SAME if (run / name).read_bytes() != (whole / name).read_bytes()] == []
    # Its own explanations, as a set, score as they did.
    rows = pq.read_table(whole / "interp" / "features.parquet", columns=["feature", "name", "explanation"])
    pq.write_table(rows, tmp_path / "ours.parquet")
    call("import_sae", run, f"--interpretations={tmp_path / 'ours.parquet'}", "--set=ours")
    call("interpret", run, "--set=ours", *flags_of(SMALL))
    own, theirs = (sets.read_set(run, name) for name in ("interp", "ours"))
    scores = {row["feature"]: row["detection"] for row in own.to_pylist() if row["explanation"]}
    assert {row["feature"]: row["detection"] for row in theirs.to_pylist() if row["explanation"]} == scores
    summary = files.read_json(run / "interpretations" / "ours" / "scored" / "summary.json")
    assert summary["comparison"]["same"] == 1
    call("demo", run, *flags_of(SMALL))
    call("steer", run, "--sweep=matched", "--match=effusion", "--set=ours", "--limit=1", "--strengths=1")
