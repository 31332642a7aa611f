"""How much of the device's arithmetic a training run uses."""

from collections.abc import Sequence
from typing import Any

import jax

# Peak rates of dense bfloat16 products of one device in operations per second, a multiply-add counted as two, as the
# makers give them; the first name that the device's kind contains is taken.
_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "TPU v6": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
}


def per_token(d_model: int, n_features: int) -> int:
    """Floating-point operations of a step for each token: five dense products of `d_model * n_features`.

    Encoding and decoding, and back from the reconstruction to features, decoder and encoder. The auxiliary loss and
    the search for the threshold are not counted.
    """
    return 10 * d_model * n_features


def peak(devices: Sequence[jax.Device]) -> float | None:
    """Operations per second of these devices together in bfloat16; None where it is not known, as on a CPU."""
    found = next((rate for name, rate in _PEAKS.items() if name in devices[0].device_kind), None)
    return None if found is None else found * len(devices)


def show(bar: Any, work: int, devices: Sequence[jax.Device]) -> None:
    """Shows in a progress bar of tokens the share of the devices' bfloat16 peak that is used (MFU).

    Args:
      bar: a tqdm progress bar that counts tokens.
      work: operations per token.
      devices: the devices that train.
    """
    limit, state = peak(devices), bar.format_dict
    if limit is not None and state["elapsed"] > 0:
        rate = (state["n"] - state["initial"]) / state["elapsed"]
        bar.set_postfix_str(f"MFU {rate * work / limit:.1%}", refresh=False)
