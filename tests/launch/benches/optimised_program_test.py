"""The reader of optimised programs, on programs of this machine and on lines as other compilers write them."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from launch.benches.absent_devices import DeviceFacts
from launch.benches.optimised_program import OptimisedProgram, Scope
from launch.benches.program_cost import costs, weight_copies

F32 = jnp.float32
DEVICE = DeviceFacts(memory=1, bandwidth=1e3, flops=1e6, link=1e3, latency=1.0)


def read(function: Any, *shapes: tuple[int, ...]) -> OptimisedProgram:
    arguments = [jax.ShapeDtypeStruct(shape, F32) for shape in shapes]
    return OptimisedProgram.parse(jax.jit(function).lower(*arguments).compile().as_text())


def written(body: str, before: str = "") -> OptimisedProgram:
    """A program with these lines as its entry computation."""
    return OptimisedProgram.parse(
        f"HloModule m, num_partitions=4\n{before}\nENTRY %main (a: f32[]) -> f32[] {{\n{body}\n}}\n"
    )


def test_a_scan_counts_its_products_as_often_as_it_runs():
    def function(x: jax.Array, stack: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

    operations = read(function, (8, 16), (5, 16, 16)).operations()
    assert sum(op.times * op.flops for op in operations) == 5 * 2 * 8 * 16 * 16
    assert all(op.place == () for op in operations)
    assert any(op.in_loop and op.times == 5 for op in operations)


def test_a_loop_of_unknown_length_is_a_place_of_its_own():
    def function(x: jax.Array, w: jax.Array) -> jax.Array:
        x = x @ w
        return jax.lax.while_loop(lambda x: x.sum() < 100.0, lambda x: x @ w, x)

    program = read(function, (8, 16), (16, 16))
    outside, iteration = costs(program, DEVICE)
    assert outside.flops == iteration.flops == 2 * 8 * 16 * 16
    assert {len(op.place) for op in program.operations()} == {0, 1}


def test_the_cheapest_branch_counts_even_if_it_is_empty():
    def function(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.cond(x.sum() > 0, lambda: jnp.tanh(x @ w) @ w, lambda: x)

    program = read(function, (64, 64), (64, 64))
    branches = {op.place[0] for op in program.operations() if op.place}
    assert {scope.branches for scope in branches} == {2}
    assert sum(op.flops for op in program.operations()) == 2 * 2 * 64**3
    assert costs(program, DEVICE)[0].flops == 0


def test_bytes_are_those_of_the_slices_that_a_fusion_reads():
    """A layer taken out of a stack, which is what `dynamic_index_in_dim` compiles to."""
    fused = """
%slice (p0: bf16[32,64,64], p1: s32[]) -> bf16[64,64] {
  %p0 = bf16[32,64,64]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %part = bf16[1,64,64]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,64,64}
  ROOT %out = bf16[64,64]{1,0} bitcast(%part)
}
%put (p0: bf16[32,64,64], p1: bf16[1,64,64], p2: s32[]) -> bf16[32,64,64] {
  %p0 = bf16[32,64,64]{2,1,0} parameter(0)
  %p1 = bf16[1,64,64]{2,1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %out = bf16[32,64,64]{2,1,0} dynamic-update-slice(%p0, %p1, %p2, %zero, %zero)
}
%square (p0: bf16[32,64,64]) -> bf16[1,64,64] {
  %p0 = bf16[32,64,64]{2,1,0} parameter(0)
  %squares = bf16[32,64,64]{2,1,0} multiply(%p0, %p0)
  ROOT %out = bf16[1,64,64]{2,1,0} slice(%squares), slice={[3:4], [0:64], [0:64]}
}
"""
    layer = 64 * 64 * 2
    lines = """
  %stack = bf16[32,64,64]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %new = bf16[1,64,64]{2,1,0} parameter(2)
  %taken = bf16[64,64]{1,0} fusion(%stack, %i), kind=kLoop, calls=%slice
  %squared = bf16[1,64,64]{2,1,0} fusion(%stack), kind=kLoop, calls=%square
  ROOT %stored = bf16[32,64,64]{2,1,0} fusion(%stack, %new, %i), kind=kLoop, calls=%put"""
    taken, squared, stored = written(lines, fused).operations()
    assert (taken.read, taken.written) == (layer + 4, layer)
    assert (stored.read, stored.written) == (layer + 4, layer)
    assert (squared.read, squared.written) == (layer, layer)
    assert taken.only_moves and stored.only_moves


def test_what_lies_on_the_chip_moves_no_bytes():
    lines = """
  %a = f32[128,128]{1,0:T(8,128)} parameter(0)
  %start = (f32[128,128]{1,0:T(8,128)S(1)}, f32[128,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%a)
  %done = f32[128,128]{1,0:T(8,128)S(1)} copy-done(%start)
  ROOT %sum = f32[128]{0:T(128)} reduce(%done, %a), dimensions={1}, backend_config={"estimated_cycles":"1500"}"""
    prefetch, total = written(lines).operations()
    assert (prefetch.read, prefetch.written) == (128 * 128 * 4, 0)
    assert (total.read, total.written, total.cycles) == (128 * 128 * 4, 128 * 4, 1500)


@pytest.mark.parametrize(
    "groups, size", [("replica_groups={{0,1},{2,3}}", 2), ("replica_groups=[1,4]<=[4]", 4), ("channel_id=1", 4)]
)
def test_collectives_have_their_bytes_and_groups(groups, size):
    lines = f"""
  %a = f32[16,32]{{1,0}} parameter(0)
  %start = (f32[16,32]{{1,0}}, f32[16,32]{{1,0}}) all-reduce-start(%a), {groups}, to_apply=%add
  %done = f32[16,32]{{1,0}} all-reduce-done(%start)
  ROOT %whole = f32[64,32]{{1,0}} all-gather(%done), {groups}, dimensions={{0}}"""
    reduced, gathered = written(lines).operations()
    assert (reduced.payload, reduced.group) == (16 * 32 * 4, size)
    assert (gathered.payload, gathered.group) == (64 * 32 * 4, size)
    share = (size - 1) / size
    seconds = 2 * DEVICE.latency + share * (2 * reduced.payload + gathered.payload) / DEVICE.link
    assert costs(written(lines), DEVICE)[0].seconds == pytest.approx(seconds)


def test_collectives_in_fusions_count_once():
    """As TPU programs have them: with the slice that makes a scatter of a sum, and begun here and ended there."""
    fused = """
%scatter (p: f32[64,32]) -> f32[16,32] {
  %p = f32[64,32]{1,0} parameter(0)
  %sum = f32[64,32]{1,0} all-reduce(%p), channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}
  %i = s32[] constant(0)
  ROOT %part = f32[16,32]{1,0} dynamic-slice(%sum, %i, %i), dynamic_slice_sizes={16,32}
}
%begin (p: f32[16,32]) -> (f32[64,32], u32[]) {
  %p = f32[16,32]{1,0} parameter(0)
  %all = f32[64,32]{1,0} all-gather(%p), channel_id=2, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %begun = (f32[64,32]{1,0}, u32[]) custom-call(%all), custom_call_target="AsyncCollectiveStart"
}
%end (p: f32[16,32], q: f32[64,32]) -> f32[64,32] {
  %p = f32[16,32]{1,0} parameter(0)
  %q = f32[64,32]{1,0} parameter(1)
  %all = f32[64,32]{1,0} all-gather(%p), channel_id=2, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %ended = f32[64,32]{1,0} custom-call(%p, %q, %all), custom_call_target="AsyncCollectiveDone"
}
"""
    program = written(
        """
  %a = f32[64,32]{1,0} parameter(0)
  %part = f32[16,32]{1,0} fusion(%a), kind=kCustom, calls=%scatter
  %start = (f32[64,32]{1,0}, u32[]) fusion(%part), kind=kCustom, calls=%begin
  %begun = f32[64,32]{1,0} get-tuple-element(%start), index=0
  ROOT %whole = f32[64,32]{1,0} fusion(%part, %begun), kind=kCustom, calls=%end""",
        fused,
    )
    assert [(op.collective, op.payload, op.group) for op in program.operations()] == [
        ("reduce-scatter", 64 * 32 * 4, 4),
        ("all-gather", 64 * 32 * 4, 4),
        ("", 0, 1),
    ]


def test_trips_follow_from_the_condition():
    """As TPU programs state them: a counter that starts at a copied 0, and a constant."""
    loop = """
%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%s), index=1
  %i = s32[] get-tuple-element(%s), index=0
  %y = f32[8]{0} negate(%x)
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %y)
}
%condition (s: (s32[], f32[8])) -> pred[] {
  %n = s32[]{:T(128)} constant(31)
  %s = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}
"""
    lines = """
  %a = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %start = s32[] copy(%zero)
  %init = (s32[], /*index=1*/f32[8]{0}) tuple(%start, %a)
  ROOT %loop = (s32[], f32[8]{0}) while(%init), condition=%condition, body=%body"""
    assert [(op.instruction.opcode, op.times) for op in written(lines, loop).operations()] == [
        ("copy", 1),
        ("negate", 31),
    ]
    other = loop.replace("compare(%i, %n)", "custom-call(%i)")
    assert written(lines, other).operations()[-1].place == (Scope("loop"),)


def test_convolutions_count_as_the_matrix_products_that_they_are():
    lines = """
  %a = bf16[8,32]{1,0} parameter(0)
  %w = bf16[32,16]{1,0} parameter(1)
  %q = bf16[4,8,32]{2,1,0} parameter(2)
  %k = bf16[4,32,16]{2,1,0} parameter(3)
  %c1 = f32[8,16]{1,0} convolution(%a, %w), dim_labels=bf_io->bf
  ROOT %c2 = f32[4,8,16]{2,1,0} convolution(%q, %k), window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf"""
    plain, batched = written(lines).operations()
    assert plain.flops == 2 * 8 * 32 * 16
    assert batched.flops == 4 * 2 * 8 * 32 * 16
    spatial = """
  %a = f32[1,9,9,3]{3,2,1,0} parameter(0)
  %w = f32[3,3,3,5]{3,2,1,0} parameter(1)
  ROOT %c = f32[1,9,9,5]{3,2,1,0} convolution(%a, %w), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f"""
    assert written(spatial).operations()[0].flops == 2 * 5 * 3 * 25 * 25
    cudnn = """
  %a = f32[1,9,9,3]{3,2,1,0} parameter(0)
  %w = f32[5,3,3,3]{3,2,1,0} parameter(1)
  %b = f32[5]{0} parameter(2)
  ROOT %c = (f32[1,9,9,5]{3,2,1,0}, u8[0]{0}) custom-call(%a, %w, %b), """
    cudnn += 'window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"'
    assert written(cudnn).operations()[0].flops == 2 * 5 * 3 * 25 * 25


def test_copies_of_weights_in_a_loop_are_found():
    def with_copy(x: jax.Array, stack: jax.Array) -> jax.Array:
        def layer(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            w = jax.lax.optimization_barrier(jax.lax.dynamic_index_in_dim(stack, i, keepdims=False))
            return jnp.tanh(x @ w), None

        def step(x: jax.Array) -> jax.Array:
            return jax.lax.scan(layer, x, jnp.arange(4))[0]

        return jax.lax.while_loop(lambda x: x.sum() < 9.0, step, x)

    def without(x: jax.Array, stack: jax.Array) -> jax.Array:
        layers = [stack[i] for i in range(4)]

        def step(x: jax.Array) -> jax.Array:
            for w in layers:
                x = jnp.tanh(x @ w)
            return x

        return jax.lax.while_loop(lambda x: x.sum() < 9.0, step, x)

    shapes = [(96, 128)]
    assert weight_copies(read(with_copy, (8, 96), (4, 96, 96)).operations(), [(96, 96)])
    assert not weight_copies(read(without, (8, 96), (4, 96, 96)).operations(), [(96, 96)])
    assert not weight_copies(read(with_copy, (8, 96), (4, 96, 96)).operations(), shapes)


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        OptimisedProgram.parse("HloModule empty")
