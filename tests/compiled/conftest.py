"""Has programs for devices that are not there compiled as they would be for those that are."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def all_optimisations() -> Iterator[None]:
    """Undoes for a file what `make tests` sets to save time."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
