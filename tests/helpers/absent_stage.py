"""Programs of stages as they are compiled for devices that are not there, with the shipped configurations."""

import dataclasses
import functools
import importlib
from typing import NamedTuple

import pytest

from launch.benches import absent_devices
from launch.benches.fits import CompiledStage, compile_stage
from launch.benches.optimised_program import Operation
from launch.benches.stage_programs import PROGRAMS, Setting
from maira_jax.model.int8 import Weights

# The configuration of each device.
SHIPPED = {
    "h100": "maira2",
    "8xh100": "maira2_8xh100",
    "v5e:2x2": "maira2_v5e16",
    "v5e:4x4": "maira2_v5e16",
    "v5p:2x2x2": "maira2_v5p8",
}


class AbsentStage(NamedTuple):
    """A compiled program, what it was compiled for, and its operations."""

    setting: Setting
    compiled: CompiledStage
    operations: list[Operation]


@functools.cache
def setting_of(device: str, layers: int | None = None, weights: Weights = "full") -> Setting:
    """What a device's programs are lowered for, or skips the test; arguments as of `compiled`."""
    if sentence := absent_devices.missing(absent_devices.platform(device)):
        pytest.skip(sentence)
    config = importlib.import_module(f"configs.{SHIPPED[device]}").get_config()
    config.model.weights = weights
    devices, local = absent_devices.devices(device), absent_devices.one_host(device)
    setting = Setting.of(config, devices, local, tuple(config.mesh), absent_devices.facts(device).memory)
    if layers is None:
        return setting
    text = dataclasses.replace(setting.model.text, num_hidden_layers=layers)
    return dataclasses.replace(setting, model=dataclasses.replace(setting.model, text=text))


@functools.cache
def compiled(device: str, program: str, layers: int | None = None, weights: Weights = "full") -> AbsentStage:
    """Compiles a program with the batch of the device's configuration, or skips the test.

    Args:
      device: a name of `SHIPPED`.
      program: a name of `PROGRAMS`.
      layers: of the language model; None: all of them.
      weights: the field `model.weights`.
    """
    setting = setting_of(device, layers, weights)
    stage = PROGRAMS[program]
    found = compile_stage(stage, setting, stage.batch(setting))
    return AbsentStage(setting, found, found.program.operations() if found.program else [])


def peak(device: str, program: str) -> int:
    """Bytes of a device's memory that a program of all layers needs, by the line through 2 and 4 layers.

    A layer adds its weights and its cache, and nothing else that grows with the depth.
    """
    few, more = (compiled(device, program, layers).compiled.peak for layers in (2, 4))
    return few + (PUBLISHED_LAYERS - 2) * (more - few) // 2


PUBLISHED_LAYERS = 32


def shard(setting: Setting, length: int) -> int:
    """What is left on a device of an axis along `model`."""
    return length // setting.mesh.shape["model"]
