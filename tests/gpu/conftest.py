"""The device under test and the processor whose results it is compared with; a table of what was measured.

`python -m pytest tests/gpu` runs on a machine with a GPU. With MAIRA_JAX_TEST_DEVICE=cpu the processor is taken for the
device, which tests the tests.
"""

import os
from collections.abc import Callable

import jax
import pytest

_DEVICE = "MAIRA_JAX_TEST_DEVICE"
_MEASURED: list[str] = []


@pytest.fixture(scope="session")
def device() -> jax.Device:
    """The first device of the platform under test."""
    platform = os.environ.get(_DEVICE, "gpu")
    try:
        return jax.devices(platform)[0]
    except RuntimeError:
        pytest.skip(f"JAX finds no device of the platform {platform!r} here; {_DEVICE}=cpu takes the processor")


@pytest.fixture(scope="session")
def host() -> jax.Device:
    """The processor, which computes what is expected."""
    return jax.devices("cpu")[0]


@pytest.fixture
def at_most(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Asserts that a measure is at most a bound, and has the end of the test run print both."""

    def check(value: float, bound: float, what: str = "") -> None:
        _MEASURED.append(f"{value:10.3g} of at most {bound:8.3g}  {request.node.name} {what}")
        assert value <= bound, what

    return check


def pytest_terminal_summary(terminalreporter) -> None:
    """Prints what the tests have measured, also where they failed."""
    if _MEASURED:
        terminalreporter.section("measured on the device, beside what is allowed")
        for line in _MEASURED:
            terminalreporter.write_line(line)
