"""A tiny model that was trained on the phantom, for the tests of this folder."""

from unittest.mock import patch

import pytest

from maira_jax.inputs import batches
from maira_jax.phantom.pretraining import stage
from tests.helpers.tiny_recipe import tiny_config


@pytest.fixture(scope="module", autouse=True)
def one_length():
    """Pads all reports to one length, for which one program is compiled."""
    with patch.object(batches, "_N_LENGTHS", 1):
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The run directory of a tiny model, and the counts of its training."""
    workdir = tmp_path_factory.mktemp("pretrain")
    with patch.object(batches, "_N_LENGTHS", 1):
        return workdir, stage.run(tiny_config(), workdir)


@pytest.fixture(scope="session")
def checkpoint(trained):
    """The folder of the tiny model's checkpoint."""
    return trained[0] / "pretrain" / stage.CHECKPOINT
