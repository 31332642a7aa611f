"""A harvested run of a small random model, for the tests of the harvest and of the running model."""

from contextlib import contextmanager

import pytest

from configs import phantom
from maira_jax.checkpoint import convert
from sae.activations import harvest
from tests.helpers.sae import make_model, set_shards


@contextmanager
def _small_shards():
    with pytest.MonkeyPatch.context() as patch:
        set_shards(patch, 512, 64)
        yield


@pytest.fixture(scope="module", autouse=True)
def harvest_shards():
    """New stores have small shards, so that few studies fill several."""
    with _small_shards():
        yield


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    config = phantom.get_config()
    config.studies.n = 24
    checkpoint = tmp_path_factory.mktemp("model") / "hf"
    make_model(checkpoint, config.studies)
    config.model.checkpoint = str(checkpoint)
    config.harvest.update({"site": "language.1.resid_mid", "batch_size": 4, "held_out_fraction": 0.3})
    return config


@pytest.fixture(scope="session")
def workdir(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    convert.run(config, path)
    config.profile = 2
    with _small_shards():
        harvest.run(config, path)
    config.profile = 0
    return path
