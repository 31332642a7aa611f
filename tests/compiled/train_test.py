"""The training step as compiled for devices that are not there."""

import pytest

from launch.benches import absent_devices
from launch.benches.program_cost import costs
from tests.helpers.absent_stage import SHIPPED, compiled

# Collectives of a step without dead features: some for every pass of the selection, and for every parameter and metric.
MAX_COLLECTIVES = 120
# Bytes that they reduce or gather on a device: the gradients of both matrices in float32, and all that is smaller.
MAX_PAYLOAD = {"8xh100": 6e8, "v5e:4x4": 3e8, "v5p:2x2x2": 6e8}


@pytest.mark.parametrize("device", SHIPPED)
def test_a_step_fits(device):
    assert compiled(device, "train").compiled.peak <= absent_devices.facts(device).memory


@pytest.mark.parametrize("device", MAX_PAYLOAD)
def test_collectives_are_few_and_small(device):
    program = compiled(device, "train").compiled.program
    assert program is not None
    cost, _ = costs(program, absent_devices.facts(device))
    assert 0 < cost.collectives <= MAX_COLLECTIVES
    assert 0 < cost.payload <= MAX_PAYLOAD[device]


@pytest.mark.parametrize("device", ("8xh100", "v5p:2x2x2"))
def test_no_collective_is_of_the_pre_activations(device):
    """Where no two of batch, width and features are equal on a device, so that a shape tells."""
    stage = compiled(device, "train")
    config, (data, feature) = stage.setting.config, stage.setting.training.devices.shape
    tokens = config.train.batch_size // data
    features = int(config.sae.expansion * stage.setting.model.text.hidden_size) // feature
    for operation in stage.operations:
        for buffer in operation.instruction.results:
            assert not operation.payload or not {tokens, features} <= set(buffer.dims), operation.instruction


def test_one_device_has_no_collective():
    assert not [operation for operation in compiled("h100", "train").operations if operation.payload]
