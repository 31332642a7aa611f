"""Runs a program on a given device, wherever its arguments lie."""

from collections.abc import Callable
from typing import Any

import jax


def run_on(device: jax.Device, program: Callable[..., Any], *arguments: Any) -> Any:
    """What a program gives for these arrays on a device, copied to NumPy."""
    with jax.default_device(device):
        return jax.device_get(program(*jax.device_put(arguments, device)))
