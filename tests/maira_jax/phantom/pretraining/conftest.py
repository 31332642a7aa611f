"""A tiny model that was trained on the phantom, for the tests of this folder."""

import pytest

from maira_jax.phantom.pretraining import stage
from tests.helpers.tiny_recipe import tiny_config


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The run directory of a tiny model, and the counts of its training."""
    workdir = tmp_path_factory.mktemp("pretrain")
    return workdir, stage.run(tiny_config(), workdir)


@pytest.fixture(scope="session")
def checkpoint(trained):
    """The folder of the tiny model's checkpoint."""
    return trained[0] / "pretrain" / stage.CHECKPOINT
