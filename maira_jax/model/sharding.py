"""Meshes of devices, and where each parameter lies on one.

The mesh axis `data` splits the batch; `model` splits heads, MLP widths and the vocabulary. One device is the mesh of
size 1.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maira_jax.errors import UserError
from maira_jax.model import maira2
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import ParameterPath, ParameterSpec

AXES = ("data", "model")

# The mesh axis that splits each logical axis of a parameter; the other logical axes stay whole.
_MESH_AXIS = {"vocab": "model", "heads": "model", "kv_heads": "model", "mlp": "model"}


def make_mesh(
    shape: tuple[int, int],
    axes: tuple[str, str] = AXES,
    *,
    field: str = "model.mesh",
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh of the first devices.

    Args:
      shape: number of devices along each axis.
      axes: names of the mesh axes.
      field: the configuration field that asks for it, for the message.
      devices: the devices to take; None for those of this process's backend. Programs can be compiled, but not run,
        for devices that are only described.

    Raises:
      UserError: there are fewer devices.
    """
    needed, available = math.prod(shape), jax.devices() if devices is None else devices
    if needed > len(available):
        raise UserError(f"{field} {shape} needs {needed} devices, but there are {len(available)}: make {field} smaller")
    return Mesh(np.asarray(available[:needed]).reshape(shape), axes, axis_types=(AxisType.Auto,) * 2)


def one_device() -> Mesh:
    """The mesh of the first device alone."""
    return make_mesh((1, 1))


def abstract_mesh(data: int, model: int) -> AbstractMesh:
    """A mesh of data x model devices that this machine need not have: it gives shapes, and holds nothing."""
    return AbstractMesh((data, model), AXES, axis_types=(AxisType.Auto,) * 2)


def _partition(spec: ParameterSpec, on: Mesh | AbstractMesh) -> P:
    def split(name: str, size: int) -> str | None:
        # An axis that does not divide (32,207 tokens over 8 devices) stays whole.
        axis = _MESH_AXIS.get(name)
        return axis if axis is not None and size % on.shape[axis] == 0 else None

    return P(*map(split, spec.axes, spec.shape))


def check(cfg: Maira2Config, on: Mesh | AbstractMesh) -> None:
    """Refuses a mesh over which the attention heads cannot be split.

    Raises:
      UserError: a head would lie on two devices.
    """
    heads = {
        "vision_config.num_attention_heads": cfg.vision.num_attention_heads,
        "text_config.num_attention_heads": cfg.text.num_attention_heads,
        "text_config.num_key_value_heads": cfg.text.num_key_value_heads,
    }
    for field, count in heads.items():
        if count % on.shape["model"]:
            raise UserError(
                f"a mesh with model = {on.shape['model']} does not divide {field} = {count}: "
                f"choose model from {_divisors(*heads.values())}"
            )


def _divisors(*counts: int) -> list[int]:
    """The numbers that divide all of `counts`."""
    common = math.gcd(*counts)
    return [size for size in range(1, common + 1) if common % size == 0]


def of_params(cfg: Maira2Config, on: Mesh | AbstractMesh) -> dict[ParameterPath, NamedSharding]:
    """Where every parameter lies on a mesh, by its path (`maira2.parameter_specs`)."""
    specs = maira2.parameter_specs(cfg)
    return {path: NamedSharding(on, _partition(spec, on)) for path, spec in specs.items()}
