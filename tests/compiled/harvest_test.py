"""The harvest's pass as compiled for devices that are not there: the layers up to the site, at the real widths."""

import pytest

from launch.benches import absent_devices
from tests.helpers.absent_stage import compiled

DEVICES = ("h100", "v5e:2x2", pytest.param("v5p:2x2x2", marks=pytest.mark.drill))


@pytest.mark.parametrize("device", DEVICES)
def test_a_pass_fits(device):
    assert compiled(device, "harvest").compiled.peak <= absent_devices.facts(device).memory


@pytest.mark.parametrize("device", DEVICES)
def test_no_array_holds_the_logits_of_attention(device):
    stage = compiled(device, "harvest")
    lengths = {stage.setting.length, stage.setting.model.vision.patches + 1}
    for operation in stage.operations:
        for buffer in operation.instruction.results:
            assert sum(size in lengths for size in buffer.dims) < 2, operation.instruction
