"""What a compiled program costs on a device: bytes, arithmetic, collectives, and the time that they take at least."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping

from launch.benches.absent_devices import DeviceFacts
from launch.benches.optimised_program import Operation, OptimisedProgram, Scope


@dataclasses.dataclass
class ProgramCost:
    """The cost of a part of a program on each device.

    Attributes:
      seconds: the sum over the operations, see `seconds`.
      moved: bytes read from and written to the main memory.
      flops: floating-point operations of the matrix products.
      collectives: how many run.
      payload: bytes that these reduce, gather or send.
    """

    seconds: float = 0.0
    moved: int = 0
    flops: int = 0
    collectives: int = 0
    payload: int = 0

    def add(self, other: "ProgramCost") -> None:
        """Adds the cost of another part."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def share(self, parts: int) -> "ProgramCost":
        """The cost of one of equal parts."""
        counts = (getattr(self, field.name) // parts for field in dataclasses.fields(self)[1:])
        return ProgramCost(self.seconds / parts, *counts)


def seconds(operation: Operation, device: DeviceFacts) -> float:
    """The time of one run of an operation.

    A collective takes what its bytes take on a ring; any other operation the compiler's estimate, where the text has
    one, and else the longer of its bytes and its arithmetic at the device's rates. What overlaps is added up all the
    same, and what a launch takes is left out.
    """
    if operation.payload:
        return device.latency + operation.payload * _ring_factor(operation) / device.link
    if operation.cycles is not None and device.clock is not None:
        return operation.cycles / device.clock
    return max((operation.read + operation.written) / device.bandwidth, operation.flops / device.flops)


def _ring_factor(operation: Operation) -> float:
    """How often a collective's bytes pass each device's links."""
    if operation.collective == "collective-permute":
        return 1.0
    once = (operation.group - 1) / operation.group
    return 2 * once if operation.collective == "all-reduce" else once


def costs(program: OptimisedProgram, device: DeviceFacts) -> tuple[ProgramCost, ProgramCost]:
    """The cost of a program without its loops of unknown length, and that of one iteration of the slowest of these.

    A decoding loop is such a loop: its iteration is a token. Of a conditional the cheapest branch counts, and a loop of
    unknown length inside another one not at all: both are there for what happens now and then.
    """
    by_place: dict[tuple[Scope, ...], ProgramCost] = collections.defaultdict(ProgramCost)
    for operation in program.operations():
        times, collective = operation.times, operation.payload > 0
        by_place[operation.place].add(
            ProgramCost(
                times * seconds(operation, device),
                times * (operation.read + operation.written),
                times * operation.flops,
                times * collective,
                times * operation.payload,
            )
        )
    loops = {place[:1] for place in by_place if place and place[0].branch is None}
    iterations = (_at(by_place, place) for place in loops)
    return _at(by_place, ()), max(iterations, key=lambda cost: cost.seconds, default=ProgramCost())


def _at(by_place: Mapping[tuple[Scope, ...], ProgramCost], place: tuple[Scope, ...]) -> ProgramCost:
    """The cost at a place, with the cheapest branch of each conditional there."""
    depth, total = len(place), ProgramCost()
    if place in by_place:
        total.add(by_place[place])
    inside = {other[depth] for other in by_place if other[:depth] == place and len(other) > depth}
    conditionals = {(scope.name, scope.branches) for scope in inside if scope.branch is not None}
    for name, branches in conditionals:
        costs = [_at(by_place, (*place, Scope(name, number, branches))) for number in range(branches)]
        total.add(min(costs, key=lambda cost: cost.seconds))
    return total


def weight_copies(operations: Iterable[Operation], shapes: Iterable[tuple[int, ...]]) -> list[Operation]:
    """The operations of a loop that copy an array of one of these shapes within the main memory.

    Axes are compared in any order, and axes of length 1 not at all.
    """
    wanted = {tuple(sorted(size for size in shape if size > 1)) for shape in shapes}
    return [
        operation
        for operation in operations
        if operation.in_loop
        and operation.only_moves
        and operation.written  # else it brings the array onto the chip
        and any(
            not buffer.on_chip and tuple(sorted(size for size in buffer.dims if size > 1)) in wanted
            for buffer in operation.instruction.results
        )
    ]
