"""Programs that ours are compared with; a test is skipped where one is not installed."""

import types

import pytest

from launch.benches import peers
from maira_jax.errors import UserError


def dictionary_learning(module: str) -> types.ModuleType:
    """A module of dictionary_learning 0.1.0."""
    try:
        return peers.dictionary_learning(module)
    except UserError as error:
        pytest.skip(str(error))


def saelens() -> types.ModuleType:
    """The autoencoders of SAELens 6.54.12, `sae_lens.saes`, unchanged."""
    try:
        return peers.sae_lens("saes")
    except UserError as error:
        pytest.skip(str(error))
