"""The small corpus that the tests of this folder share."""

import pytest

from tests.helpers.exemplar_world import make_world


@pytest.fixture(scope="session")
def world():
    return make_world()
