"""Mesh axes and where each parameter lies on them.

`data` splits the batch; `model` splits heads, MLP widths and the vocabulary. One device is the mesh of size 1.
"""

import math
import re

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maira_jax.errors import UserError
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params

AXES = ("data", "model")

# The first pattern that matches a parameter's path gives its spec; stacked layers have a leading axis.
_RULES: tuple[tuple[str, P], ...] = (
    (r"language\.embed", P("model", None)),
    (r"language\.lm_head", P(None, "model")),
    (r"language\.layers\.(query|key|value|gate|up)\.kernel", P(None, None, "model")),
    (r"language\.layers\.(out|down)\.kernel", P(None, "model", None)),
    (r"vision\.layers\.(query|key|value|fc1)\.kernel", P(None, None, "model")),
    (r"vision\.layers\.(query|key|value|fc1)\.bias", P(None, "model")),
    (r"vision\.layers\.(out|fc2)\.kernel", P(None, "model", None)),
    (r".*", P()),
)


def mesh(data: int, model: int) -> Mesh:
    """A mesh of data x model devices."""
    devices = np.asarray(jax.devices()[: data * model]).reshape(data, model)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 2)


def one_device() -> Mesh:
    return mesh(1, 1)


def abstract_mesh(data: int, model: int) -> AbstractMesh:
    """A mesh of data x model devices that this machine need not have: it tells shapes, and holds nothing."""
    return AbstractMesh((data, model), AXES, axis_types=(AxisType.Auto,) * 2)


def is_stacked(path: tuple[str, ...]) -> bool:
    """Whether the parameter at `path` has a leading axis of layers."""
    return "layers" in path


def _spec(path: str, shape: tuple[int, ...], on: Mesh | AbstractMesh) -> P:
    spec = next(spec for pattern, spec in _RULES if re.fullmatch(pattern, path))

    def fits(axis: str | None, size: int) -> str | None:
        # An axis that does not divide (32,207 tokens over 8 devices) stays whole.
        return axis if axis is not None and size % on.shape[axis] == 0 else None

    return P(*map(fits, spec, shape))


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
    """What divides all of `counts`."""
    common = math.gcd(*counts)
    return [size for size in range(1, common + 1) if common % size == 0]


def of_params(params: Params, on: Mesh | AbstractMesh) -> Params:
    """A `NamedSharding` for every parameter, in the same tree."""

    def place(path: tuple, leaf: jax.Array) -> NamedSharding:
        return NamedSharding(on, _spec(".".join(key.key for key in path), leaf.shape, on))

    return jax.tree_util.tree_map_with_path(place, params)


def of_batch(on: Mesh) -> NamedSharding:
    """Rows over `data`."""
    return NamedSharding(on, P("data"))
