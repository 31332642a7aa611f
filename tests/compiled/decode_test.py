"""Writing reports and steering them, as compiled for devices that are not there: 2 and 4 layers of the real widths."""

import pytest

from launch.benches import absent_devices
from launch.benches.program_cost import weight_copies
from tests.helpers.absent_stage import compiled, peak, shard

DEVICES = ("h100",)
PROGRAMS = ("generate", "steer_prefill", "steer_decode")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_it_fits(device, program):
    assert peak(device, program) <= absent_devices.facts(device).memory


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("program", ("generate", "steer_decode"))
def test_no_token_copies_weights(device, program):
    stage = compiled(device, program, 2)
    text = stage.setting.model.text
    width, mlp, group = text.hidden_size, text.intermediate_size, text.num_attention_heads // text.num_key_value_heads
    kv_heads, heads = (shard(stage.setting, n) for n in (text.num_key_value_heads, text.num_attention_heads))
    shapes = [
        (width, kv_heads, group + 2, text.head_dim),
        (width, kv_heads * (group + 2) * text.head_dim),
        (heads * text.head_dim, width),
        (heads, text.head_dim, width),
        (width, 2, shard(stage.setting, mlp)),
        (width, 2 * shard(stage.setting, mlp)),
        (shard(stage.setting, mlp), width),
    ]
    assert not weight_copies(stage.operations, shapes)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("program", ("generate", "steer_prefill"))
def test_no_array_holds_the_logits_of_attention(device, program):
    stage = compiled(device, program, 2)
    for operation in stage.operations:
        for buffer in operation.instruction.results:
            assert buffer.dims.count(stage.setting.length) < 2, operation.instruction
