"""A small random model, and what is localized in it."""

import pytest
from ml_collections import ConfigDict

from configs import phantom
from maira_jax.checkpoint import store
from maira_jax.run.stage import Stage
from maira_jax.studies.readers import load_studies
from steer.localize.reading import ReadModel
from tests.helpers.phantom_model import write_model


def make_config() -> ConfigDict:
    config = phantom.get_config()
    config.studies.update({"n": 40, "size": 28})
    config.localize.update(
        {
            "sites": ("projector.1", "language.embed", "language.1.resid_post"),
            "sections": ("frontal",),
            "autoencoder": False,
            "top": 2,
            "min_studies": 2,
            "write_studies": 3,
            "strengths": (1.0,),
            "bootstrap": 20,
            "batch_size": 8,
            "batch_studies": 3,
            "batch_rows": 3,
        }
    )
    config.steer.max_new_tokens = 8
    return config


@pytest.fixture(scope="session")
def localized_run(tmp_path_factory):
    """A run directory with a random model."""
    workdir = tmp_path_factory.mktemp("localize")
    with Stage(workdir, "model", {"test": "model"}) as stage:
        write_model(stage.dir, list(load_studies(make_config().studies)))
        stage.finish({})
    return workdir


@pytest.fixture(scope="session")
def localized_model(localized_run):
    params, cfg = store.load(localized_run / "model")
    return ReadModel(params, cfg, localized_run / "model", None)
