"""Meshes of devices, and where each parameter and each batch lies on one.

The mesh axis `data` splits the batch; `model` splits heads, MLP widths and the vocabulary. One device is the mesh of
size 1. A mesh of the model is of one host's devices: hosts share no pass of it.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maira_jax.errors import UserError
from maira_jax.model import maira2
from maira_jax.model.config import Maira2Config
from maira_jax.model.int8 import Int8Kernel, Weights, input_axis
from maira_jax.model.layers import LAYERS, ParameterPath, Params
from maira_jax.model.sites import TOWERS, Site

AXES = ("data", "model")
# The vocabulary is padded to a multiple of this many tokens, which every mesh divides and matrix products like.
_VOCAB_STEP = 256
# Share of a device's memory that parameters may take where the mesh is chosen; the rest is for what a stage computes.
_PARAMETER_SHARE = 0.6


def make_mesh(
    shape: tuple[int, int], axes: tuple[str, str] = AXES, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of the first devices; of several processes', the first ones of each, which are neighbours in the mesh.

    Each process then holds one part of what is split along the first axis.

    Args:
      shape: number of devices along each axis.
      axes: names of the mesh axes.
      devices: the devices to take; None for those of this host. Programs can be compiled, but not run, for devices
        that are only described.

    Raises:
      UserError: there are fewer devices, or the processes cannot share the mesh evenly.
    """
    needed, available = math.prod(shape), jax.local_devices() if devices is None else devices
    if needed > len(available):
        raise UserError(
            f"mesh {shape} needs {needed} devices, but there are {len(available)}: give --mesh=DATA,MODEL for fewer"
        )
    ordered = sorted(available, key=lambda device: device.process_index)
    hosts = [list(host) for _, host in itertools.groupby(ordered, key=lambda device: device.process_index)]
    if not divides_evenly(shape, len(hosts)):
        raise UserError(
            f"mesh {shape} cannot be shared evenly by {len(hosts)} processes: give a --mesh=DATA,MODEL whose product "
            f"is a multiple of {len(hosts)}, and of which a process holds whole rows or a part of one"
        )
    taken = [device for host in hosts for device in host[: needed // len(hosts)]]
    return Mesh(np.asarray(taken).reshape(shape), axes, axis_types=(AxisType.Auto,) * 2)


def divides_evenly(shape: tuple[int, int], hosts: int) -> bool:
    """Whether each of several hosts holds as many devices of a mesh, and whole rows of it or a part of one row."""
    each, left = divmod(math.prod(shape), hosts)
    return not left and (each % shape[1] == 0 or shape[1] % each == 0)


def abstract_mesh(data: int, model: int) -> AbstractMesh:
    """A mesh of data x model devices that this machine need not have: it gives shapes, and holds nothing."""
    return AbstractMesh((data, model), AXES, axis_types=(AxisType.Auto,) * 2)


def mesh_of(params: Params) -> Mesh:
    """The mesh that parameters lie on; that of their one device where they were not placed on a mesh."""
    place = jax.tree.leaves(params)[0].sharding
    if isinstance(place, NamedSharding) and isinstance(place.mesh, Mesh):
        return place.mesh
    return make_mesh((1, 1), devices=list(place.device_set))


def device_memory() -> int | None:
    """Bytes of one device's memory; None where the device does not say (a CPU)."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit")


def peak_memory() -> int | None:
    """Most bytes that one device has held in this process; None where the devices do not say (CPUs)."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    return max((peak for peak in peaks if peak is not None), default=None)


def chosen_mesh(
    cfg: Maira2Config,
    nbytes: Callable[[AbstractMesh], int],
    rows: int | None,
    devices: int | None = None,
    memory: int | None = None,
) -> tuple[int, int]:
    """The mesh where none is asked for: the fewest devices along `model` whose memory the parameters fit, and along
    `data` as many of the others as divide a batch.

    Args:
      cfg: the model's configuration.
      nbytes: the bytes of the parameters on each device of a mesh.
      rows: rows of a batch; None where any number will do.
      devices: how many there are; None: this host's.
      memory: bytes of each device; None: those of this host's devices.
    """
    devices, memory = devices or jax.local_device_count(), memory or device_memory()
    sizes = [size for size in _divisors(*_divided(cfg).values()) if size <= devices]
    fitting = (size for size in sizes if memory is None or nbytes(abstract_mesh(1, size)) <= _PARAMETER_SHARE * memory)
    model = next(fitting, sizes[-1])
    return devices // model if rows is None else max(n for n in _divisors(rows) if n * model <= devices), model


def check(cfg: Maira2Config, on: Mesh | AbstractMesh) -> None:
    """Refuses a mesh that does not divide the language model. The vision tower lies whole where it does not divide.

    Raises:
      UserError: a head or a part of the MLP would lie on two devices.
    """
    for field, count in _divided(cfg).items():
        if count % on.shape["model"]:
            raise UserError(
                f"a mesh with model = {on.shape['model']} does not divide {field} = {count}: "
                f"choose model from {_divisors(*_divided(cfg).values())}"
            )


def _divided(cfg: Maira2Config) -> dict[str, int]:
    """What the devices along `model` must divide, by field of the model's configuration."""
    return {
        "text_config.num_attention_heads": cfg.text.num_attention_heads,
        "text_config.num_key_value_heads": cfg.text.num_key_value_heads,
        "text_config.intermediate_size": cfg.text.intermediate_size,
    }


def _divisors(*counts: int) -> list[int]:
    """The numbers that divide all of `counts`."""
    common = math.gcd(*counts)
    return [size for size in range(1, common + 1) if common % size == 0]


def of_params(
    cfg: Maira2Config, on: Mesh | AbstractMesh, dtype: jax.typing.DTypeLike = np.float32, stop: Site | None = None
) -> dict[ParameterPath, jax.ShapeDtypeStruct]:
    """Shape and place of every parameter in memory, by its path (`maira2.parameter_specs`).

    Args:
      cfg: the model's configuration.
      on: the mesh.
      dtype: the type of the parameters.
      stop: the last site that is read; None for all parameters. Towers and layers after it are left out, and so are
        the norm and the head.
    """
    split = {"heads": cfg.text.num_attention_heads, "kv_heads": cfg.text.num_key_value_heads}
    split["vision_heads"] = cfg.vision.num_attention_heads

    def axis(name: str, size: int) -> str | None:
        """The mesh axis that splits an axis of a parameter; None leaves it whole, as where the mesh does not divide."""
        parts = split.get(name, size if name in ("vocab", "mlp") else None)
        return "model" if parts is not None and parts % on.shape["model"] == 0 else None

    found = {}
    for path, spec in maira2.parameter_specs(cfg).items():
        shape = tuple(map(_in_memory, spec.axes, spec.shape))
        if stop is not None:
            if not _is_before(path, stop):
                continue
            if path[0] == stop.tower and spec.axes[0] == LAYERS:
                shape = (min(max((stop.code + 1) // 2, 1), shape[0]), *shape[1:])
        place = NamedSharding(on, P(*map(axis, spec.axes, shape)))
        found[path] = jax.ShapeDtypeStruct(shape, dtype, sharding=place)
    return found


def _in_memory(axis: str, size: int) -> int:
    return -(-size // _VOCAB_STEP) * _VOCAB_STEP if axis == "vocab" else size


def _is_before(path: ParameterPath, stop: Site) -> bool:
    """Whether a pass up to `stop` takes a parameter of its towers; which layers, is left open."""
    return TOWERS.index(path[0]) <= TOWERS.index(stop.tower) and path[:2] not in (
        ("language", "norm"),
        ("language", "lm_head"),
    )


def with_weights(
    params: dict[ParameterPath, jax.ShapeDtypeStruct], weights: Weights
) -> dict[ParameterPath, jax.ShapeDtypeStruct | Int8Kernel]:
    """What `of_params` gives, with shapes and places of int8 weights where they are asked for."""
    found: dict[ParameterPath, jax.ShapeDtypeStruct | Int8Kernel] = {}
    for path, leaf in params.items():
        axis = input_axis(path) if weights == "int8" else None
        found[path] = leaf if axis is None else _int8(leaf, axis)
    return found


def _int8(leaf: Any, axis: int) -> Int8Kernel:
    outputs = leaf.shape[:axis] + leaf.shape[axis + 1 :]
    spec = leaf.sharding.spec[:axis] + leaf.sharding.spec[axis + 1 :]
    scale: Any = jax.ShapeDtypeStruct(outputs, np.float32, sharding=NamedSharding(leaf.sharding.mesh, P(*spec)))
    return Int8Kernel(jax.ShapeDtypeStruct(leaf.shape, np.int8, sharding=leaf.sharding), scale)  # type: ignore[arg-type]


def bytes_per_device(params: Any) -> int:
    """Bytes on each device of a tree of shapes and places."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)
    )


def rows_on(on: Mesh, rows: int) -> int:
    """The size to which a batch of `rows` is filled up, so that `data` divides it."""
    return -(-rows // on.shape["data"]) * on.shape["data"]


def place_rows(on: Mesh, batch: Any) -> Any:
    """Places the arrays of a batch, a tree, with their leading axis along `data`, which must divide it."""
    return jax.device_put(batch, NamedSharding(on, P("data")))
