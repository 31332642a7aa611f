"""The autoencoder that is written and read."""

import numpy as np
import pytest

from sae.autoencoder import Sae
from tests.helpers.formats import GROUPS, META, D
from tests.helpers.sae import activations, random_sae


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return activations(200, D)


@pytest.fixture(scope="module")
def sae(x) -> Sae:
    return random_sae(x, GROUPS, 4, 0.75, meta=META)
