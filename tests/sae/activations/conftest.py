"""A harvested run of a small random model, for the tests of the harvest and of the running model."""

from unittest.mock import patch

import pytest

from configs import phantom
from maira_jax.checkpoint import convert
from sae.activations import harvest, store
from tests.helpers.sae import make_model

SMALL_SHARDS = {"SHARD_ROWS": 512, "CHUNK_ROWS": 64}  # so that few studies fill several


@pytest.fixture(scope="module", autouse=True)
def small_shards():
    """New stores have small shards in every file of this folder."""
    with patch.multiple(store, **SMALL_SHARDS):
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
    with patch.multiple(store, **SMALL_SHARDS):
        harvest.run(config, path)
    config.profile = 0
    return path
