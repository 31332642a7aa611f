"""Small random models and sweeps that several tests share."""

from pathlib import Path

import pytest

from maira_jax.checkpoint import store
from maira_jax.inputs import batches
from maira_jax.run.stages.stage import Stage
from maira_jax.studies.readers import load_studies
from steer import stage
from steer.localize.reading import ReadModel
from tests.helpers import steer_run
from tests.helpers.localized import make_config
from tests.helpers.phantom_model import write_model


@pytest.fixture(scope="session")
def localized_run(tmp_path_factory):
    """A run directory with the model."""
    workdir = tmp_path_factory.mktemp("localize")
    with Stage(workdir, "model", {"test": "model"}) as stage:
        write_model(stage.dir, list(load_studies(make_config().studies)))
        stage.finish({})
    return workdir


@pytest.fixture(scope="session")
def localized_model(localized_run):
    params, cfg = store.load(localized_run / "model")
    return ReadModel(params, cfg, localized_run / "model", None)


@pytest.fixture()
def one_length(monkeypatch):
    """Pads all studies to one length, for which one program is compiled."""
    monkeypatch.setattr(batches, "_N_LENGTHS", 1)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with everything that steering reads."""
    workdir = tmp_path_factory.mktemp("run")
    steer_run.write_inputs(workdir)
    return workdir


@pytest.fixture()
def workdir(inputs: Path, tmp_path: Path) -> Path:
    """A fresh run directory on the same inputs."""
    for name in ("model", "activations", "sae", "interp"):
        (tmp_path / name).symlink_to(inputs / name)
    return tmp_path


@pytest.fixture(scope="session")
def swept(inputs: Path) -> tuple[Path, dict]:
    """A run directory with a sweep, and its counts."""
    config = steer_run.make_config()
    config.profile = 1
    return inputs, stage.run(config, inputs)
