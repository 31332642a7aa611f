"""A random checkpoint of MAIRA-2's form, and what it becomes."""

import shutil
from pathlib import Path

import pytest

from maira_jax.checkpoint import convert
from tests.helpers import random_checkpoint
from tests.helpers.random_checkpoint import SCALE, model_section

FLOAT32, BFLOAT16 = convert.DTYPES["float32"], convert.DTYPES["bfloat16"]


@pytest.fixture(scope="session")
def random_dir(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("random")
    random_checkpoint.write(directory, SCALE)
    return directory


@pytest.fixture()
def copy(random_dir, tmp_path) -> Path:
    return Path(shutil.copytree(random_dir, tmp_path / "copy"))


@pytest.fixture(scope="session")
def flax(random_dir, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("converted") / "flax"
    convert.run(model_section(random_dir, mesh=(1, 4)), directory)
    return directory / "model"
