"""Commands in several processes: their files are those of one process, whatever is killed on the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pyarrow import fs

from maira_jax.generation import stage as generation
from maira_jax.inputs import batches
from maira_jax.run.stages.stage import Stage
from maira_jax.studies.readers import load_studies
from sae import autoencoder
from sae.activations import harvest
from sae.activations.store import ActivationStore
from sae.autoencoder import Sae
from sae.formats import safetensors as plain_file
from steer import stage as steering
from tests.helpers import bucket as buckets
from tests.helpers import pod_config, pods
from tests.helpers.phantom_model import D_MODEL, write_model
from tests.helpers.sae import set_shards

RESULTS = {"harvest": "activations", "generate": "grounded", "steer": "steer/test"}
STAGES = {"harvest": harvest.run, "generate": generation.run, "steer": steering.run}


@pytest.fixture(scope="module")
def few_lengths():
    """As the configuration's file has it for the commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "_N_LENGTHS", pod_config.N_LENGTHS)
        yield


@pytest.fixture(scope="module")
def one_process(few_lengths, tmp_path_factory):
    """A run directory that this process alone, with its one device, has filled; and the configuration."""
    workdir = tmp_path_factory.mktemp("one-process")
    with pytest.MonkeyPatch.context() as patch:
        set_shards(patch, pod_config.SHARD_ROWS, pod_config.CHUNK_ROWS)
        config = pod_config.get_config()
        with Stage(workdir, "model", {"checkpoint": "phantom"}) as stage:
            write_model(stage.dir, list(load_studies(config.studies)))
            stage.finish({})
        params = autoencoder.init(jax.random.key(1), D_MODEL, 64, jnp.zeros(D_MODEL))
        plain_file.save(workdir, Sae(params, 0.1, 4, (32, 32), {"site": config.harvest.site}))
        config.steer.sae = str(workdir / "sae.safetensors")
        for run in STAGES.values():
            run(config, workdir)
    return workdir, config


@pytest.fixture
def workdir(one_process, tmp_path):
    """A fresh run directory on the same model."""
    (tmp_path / "model").symlink_to(one_process[0] / "model")
    return tmp_path


def flags(one_process, workdir):
    sae = f"--config.steer.sae={one_process[1].steer.sae}"
    return (f"--config={pod_config.__file__}", f"--workdir={workdir}", sae)


def killed(command, given, monkeypatch, **run):
    """Runs a command whose process 1 is killed as soon as it has written something."""
    monkeypatch.setenv("KILLED", "1")
    first, *others = pods.ended(pods.start(("-m", f"launch.{command}", *given), **run))
    monkeypatch.delenv("KILLED")
    assert others[0].code == -9 and {first.code, *(process.code for process in others[1:])} == {143}
    assert "process 1 of" in first.err and "no longer answers" in first.err and "Traceback" not in first.err


def content(workdir, command):
    """The bytes of all files of a command's result but its manifest."""
    folder = workdir / RESULTS[command]
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_harvest_that_loses_a_process_is_finished_by_three(one_process, workdir, monkeypatch):
    given = flags(one_process, workdir)
    killed("harvest", given, monkeypatch, processes=2, devices=1)
    n_shards = len(list((one_process[0] / "activations" / "shards").iterdir()))
    assert 0 < len(list((workdir / "activations" / "shards").iterdir())) < n_shards
    pods.launch("harvest", *given, processes=3, devices=1)
    assert content(workdir, "harvest") == content(one_process[0], "harvest")


@pytest.mark.drill
def test_an_encoder_that_loses_a_process_is_finished_by_three(one_process, workdir, tmp_path_factory, monkeypatch):
    alone = tmp_path_factory.mktemp("alone")
    (alone / "model").symlink_to(workdir / "model")
    options = ("--config.studies.n=100", "--config.harvest.encoder=maira2_vision", "--config.harvest.rows=patches")
    pods.launch("harvest", *flags(one_process, alone), *options, processes=1, devices=1)
    killed("harvest", (*flags(one_process, workdir), *options), monkeypatch, processes=2, devices=1)
    assert 0 < len(list((workdir / "activations" / "shards").iterdir())) < 4
    pods.launch("harvest", *flags(one_process, workdir), *options, processes=3, devices=1)
    assert content(workdir, "harvest") == content(alone, "harvest")


def test_reports_and_pictures_of_two_processes_with_two_devices_each(one_process, workdir):
    pods.launch("generate", *flags(one_process, workdir), processes=2, devices=2)
    assert content(workdir, "generate") == content(one_process[0], "generate")


def test_a_sweep_that_loses_a_process_is_finished_by_one(one_process, workdir, monkeypatch):
    (workdir / "activations").symlink_to(one_process[0] / "activations")
    killed("steer", flags(one_process, workdir), monkeypatch, processes=2, devices=1)
    assert 0 < len(list((workdir / "steer" / "test" / "parts").iterdir())) < 5
    steering.run(one_process[1], workdir)
    assert content(workdir, "steer") == content(one_process[0], "steer")


@pytest.mark.drill
@pytest.mark.parametrize("processes", [2, 4])
def test_every_command_in_more_processes(one_process, workdir, tmp_path_factory, processes):
    """With two devices each, against one process with two devices."""
    alone = tmp_path_factory.mktemp("alone")
    (alone / "model").symlink_to(workdir / "model")
    for command in RESULTS:
        for folder, n in ((workdir, processes), (alone, 1)):
            pods.launch(command, *flags(one_process, folder), processes=n, devices=2)
        assert content(workdir, command) == content(alone, command)
    ours, theirs = (ActivationStore.open(folder / "activations") for folder in (workdir, one_process[0]))
    values = [store.read(0, store.n_tokens) for store in (ours, theirs)]
    np.testing.assert_allclose(*values, rtol=1e-6, atol=1e-6 * np.abs(values[1]).max())


@pytest.mark.drill
def test_two_processes_with_a_run_directory_in_a_bucket(one_process, tmp_path, monkeypatch):
    """Each with a scratch folder of its own, as on two hosts that share no disk."""
    with buckets.served() as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        store, path = fs.FileSystem.from_uri(f"s3://{buckets.NAME}/run")
        fs.copy_files(str(one_process[0] / "model"), f"{path}/model", destination_filesystem=store)
        given = flags(one_process, f"s3://{buckets.NAME}/run")
        for command, folder in RESULTS.items():
            ends = pods.ended(
                pods.start(
                    ("-m", f"launch.{command}", *given),
                    processes=2,
                    devices=1,
                    flags=lambda process: (f"--scratch={tmp_path / str(process)}",),
                )
            )
            assert [end.code for end in ends] == [0, 0], ends
            found = bucket.files(f"run/{folder}")
            del found["manifest.json"]
            assert found == content(one_process[0], command)
