"""The small run that the tests of this folder make pages of."""

import pytest

from interp import stage
from tests.helpers.interp_run import config, make_workdir


@pytest.fixture(scope="package")
def run_dir(tmp_path_factory):
    workdir = make_workdir(tmp_path_factory.mktemp("atlas"), 160)
    stage.run(config(), workdir)
    return workdir
