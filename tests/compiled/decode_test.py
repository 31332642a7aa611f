"""Writing reports and steering them, as compiled for devices that are not there: 2 and 4 layers of the real widths."""

import dataclasses
import math

import jax
import pytest

from launch.benches import absent_devices
from launch.benches.program_cost import costs, weight_copies
from launch.benches.stage_programs import Setting, steer_begin, sweep_arguments
from maira_jax.model import sharding
from tests.helpers.absent_stage import AbsentStage, compiled, peak, setting_of, shard

# A TPU's compiler takes ten times as long: it compiles one of the two decoding loops.
LOOPS = (("h100", "generate"), ("h100", "steer_decode"), ("v5e:2x2", "steer_decode"))
# What takes minutes, of which one layer is compiled.
LONG = tuple((device, program) for device in ("v5e:2x2", "v5p:2x2x2") for program in ("generate", "steer_prefill"))
LONG += (("v5p:2x2x2", "steer_decode"),)
DRILLS = {each: pytest.param(*each, marks=pytest.mark.drill) for each in LONG}


def layers_of(device: str, program: str) -> int:
    return 1 if (device, program) in LONG else 2


@pytest.mark.parametrize("device, program", (*LOOPS, ("h100", "steer_prefill"), DRILLS["v5p:2x2x2", "steer_decode"]))
def test_it_fits(device, program):
    assert peak(device, program) <= absent_devices.facts(device).memory


def weight_shapes(setting: Setting) -> list[tuple[int, ...]]:
    """Those of a layer's weights on a device, as parameters and as matrices."""
    text = setting.model.text
    width, mlp, group = text.hidden_size, text.intermediate_size, text.num_attention_heads // text.num_key_value_heads
    kv_heads, heads = (shard(setting, n) for n in (text.num_key_value_heads, text.num_attention_heads))
    return [
        (width, kv_heads, group + 2, text.head_dim),
        (width, kv_heads * (group + 2) * text.head_dim),
        (heads * text.head_dim, width),
        (heads, text.head_dim, width),
        (width, 2, shard(setting, mlp)),
        (width, 2 * shard(setting, mlp)),
        (shard(setting, mlp), width),
    ]


@pytest.mark.parametrize(
    "device, program", (*LOOPS, *(drill for (_, program), drill in DRILLS.items() if program != "steer_prefill"))
)
def test_no_token_copies_weights(device, program):
    stage = compiled(device, program, layers_of(device, program))
    assert not weight_copies(stage.operations, weight_shapes(stage.setting))


@pytest.mark.parametrize("device, program", LOOPS[:2])
def test_no_token_copies_its_prompts_keys_or_writes_their_scores(device, program):
    stage = compiled(device, program, 2)
    looped = [operation.instruction for operation in stage.operations if operation.in_loop]
    assert any("fmha" in instruction.attributes for instruction in looped)
    for instruction in looped:
        assert all(stage.setting.length not in buffer.dims for buffer in instruction.results), instruction


@pytest.mark.parametrize("device, program", LOOPS[:2])
def test_no_token_writes_int8_weights_as_numbers(device, program):
    stage = compiled(device, program, 2, "int8")
    sizes = {math.prod(shape) for shape in weight_shapes(stage.setting)}
    written = {
        math.prod(buffer.dims)
        for operation in stage.operations
        if operation.in_loop
        for buffer in operation.instruction.results
        if not buffer.on_chip
    }
    assert not sizes & written
    full, int8 = (moved_for_a_token(device, of) for of in (compiled(device, program, 2), stage))
    assert full - int8 > 0.6 * 2 * sum(sizes)  # a byte for each weight of two layers, less what partial sums take


def moved_for_a_token(device: str, stage: AbsentStage) -> int:
    assert stage.compiled.program is not None
    return costs(stage.compiled.program, absent_devices.facts(device))[1].moved


def test_studies_and_heads_of_a_sweep_are_split_over_the_devices():
    setting = setting_of("8xh100", 2)
    setting = dataclasses.replace(setting, mesh=sharding.make_mesh((4, 2), devices=list(setting.mesh.devices.flat)))
    _, _, state = sweep_arguments(setting, 4)
    places = steer_begin(setting, 4).compile().output_shardings
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(places), strict=True):
        assert place.is_equivalent_to(leaf.sharding, leaf.ndim), leaf


@pytest.mark.parametrize("device, program", (("h100", "generate"), ("h100", "steer_prefill"), *DRILLS.values()))
def test_no_array_holds_the_logits_of_attention(device, program):
    stage = compiled(device, program, layers_of(device, program))
    for operation in stage.operations:
        for buffer in operation.instruction.results:
            assert buffer.dims.count(stage.setting.length) < 2, operation.instruction
