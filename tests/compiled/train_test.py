"""The training step as compiled for devices that are not there."""

import pytest

from launch.benches import absent_devices
from launch.benches.stage_programs import PROGRAMS
from tests.helpers.absent_stage import compiled

# Collectives of a step without dead features: some for every pass of the selection, and for every parameter and metric.
MAX_COLLECTIVES = 120
# Bytes that they scatter or gather on a device: gradients and weights of both matrices in bfloat16, and little more.
MAX_PAYLOAD = {"8xh100": 6e8, "v5e:4x4": 4e8, "v5p:2x2x2": 6e8}
SLICES = tuple(pytest.param(name, marks=pytest.mark.drill) if name == "v5p:2x2x2" else name for name in MAX_PAYLOAD)


@pytest.mark.parametrize("device", ("h100", *SLICES))
def test_a_step_fits(device):
    assert compiled(device, "train").compiled.peak <= absent_devices.facts(device).memory


@pytest.mark.parametrize("device", SLICES)
def test_collectives_are_few_and_small(device):
    program = compiled(device, "train").compiled.program
    assert program is not None
    cost, _ = PROGRAMS["train"].costs(program, absent_devices.facts(device))
    assert 0 < cost.collectives <= MAX_COLLECTIVES
    assert 0 < cost.payload <= MAX_PAYLOAD[device]


def test_one_device_has_no_collective():
    assert not [operation for operation in compiled("h100", "train").operations if operation.payload]
