"""The products of a float32 pass of the model, in what the compilers of GPUs and TPUs make of it."""

import re

import pytest

from configs import phantom
from launch.benches import absent_devices
from launch.benches.fits import compile_stage
from launch.benches.stage_programs import PROGRAMS, Setting
from tests.helpers.absent_stage import setting_of
from tests.helpers.tiny_model import CFG

PRODUCT = re.compile(r'^(dot|convolution) |custom_call_target="[^"]*(gemm|matmul)')


@pytest.mark.parametrize("device", ("h100", "v5e:2x2"))
def test_optimised_products_have_the_highest_precision(device):
    shipped, config = setting_of(device), phantom.get_config()
    config.harvest.site = "language.2.resid_post"
    devices, memory = list(shipped.mesh.devices.flat), absent_devices.facts(device).memory
    on = Setting.of(config, devices, devices, (len(devices), 1), memory)
    on = Setting(config, CFG, on.mesh, on.training, length=32, images=1)
    program = compile_stage(PROGRAMS["harvest"], on, 8).program
    assert program is not None
    instructions = [instruction for scope in program.computations.values() for instruction in scope.values()]
    products = [each.attributes for each in instructions if PRODUCT.search(f"{each.opcode} {each.attributes}")]
    assert len(products) > 10
    for attributes in products:
        assert re.search(r'operand_precision=\{highest,highest\}|"HIGHEST","HIGHEST"', attributes), attributes
