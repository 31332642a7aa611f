"""What a compiled program does on its device, read from the text of its optimised HLO.

The text names every operation that the device runs after fusion, with the shapes of its operands. From it follow the
bytes that move between the device's main memory and its cores, the floating-point operations of the matrix products,
the collectives, and where weights are copied. For TPUs the text also has the compiler's own estimate of an operation's
cycles. Nothing here runs the program, and no device is needed.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_BUFFER = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# Names for values that exist already, and the ends of what was counted at its start.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "add-dependency",
}  # fmt: skip
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding")
# Operations that give the values of their operands again, in another place, order or type.
_MOVES = {
    "copy", "copy-start", "transpose", "slice", "slice-start", "dynamic-slice", "concatenate", "reshape", "pad",
    "convert", "dynamic-update-slice",
}  # fmt: skip
_SLICES = {"slice", "dynamic-slice", "gather"}


class Buffer(NamedTuple):
    """An array of the program.

    Attributes:
      dtype: its HLO type, such as "bf16".
      dims: its shape on one device.
      on_chip: whether it lies in the cores' own memory, as a TPU's prefetched operands do.
    """

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool = False

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.dims) * _BITS.get(self.dtype, 8) // 8

    @property
    def moved(self) -> int:
        """Bytes that the main memory gives or takes for all of it."""
        return 0 if self.on_chip else self.nbytes


class Scope(NamedTuple):
    """A loop of unknown length, or a branch of a conditional, that operations lie in.

    Attributes:
      name: the instruction.
      branch: the number of the branch; None for a loop.
      branches: how many branches there are; 0 for a loop.
    """

    name: str
    branch: int | None = None
    branches: int = 0


class Instruction(NamedTuple):
    """A line of the text: `attributes` is what follows the operands."""

    name: str
    opcode: str
    results: tuple[Buffer, ...]
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    is_root: bool


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation that the device runs, as often as its loops run.

    Attributes:
      instruction: the line of the text.
      times: how often it runs, in one run of the loops and branches of `place`.
      place: the loops of unknown length and the branches that it lies in, from the outermost.
      in_loop: whether it lies in a loop of any kind.
      read, written: bytes of main memory, each time.
      flops: of its matrix products, each time.
      cycles: the compiler's estimate for a TPU, each time; None where there is none.
      collective: its HLO name, "" for others; that of a fusion that begins one, too.
      payload: bytes that it reduces, gathers or sends, each time; 0 for others.
      group: number of devices that a collective joins.
      only_moves: whether it copies, slices, transposes or converts, and computes nothing.
      source: the name that JAX gave to the operation in the traced program.
    """

    instruction: Instruction
    times: int
    place: tuple[Scope, ...]
    in_loop: bool
    read: int
    written: int
    flops: int
    cycles: int | None
    collective: str
    payload: int
    group: int
    only_moves: bool
    source: str


@dataclasses.dataclass(frozen=True)
class OptimisedProgram:
    """The computations of a program by name, their instructions by name, and the name of the first one."""

    computations: dict[str, dict[str, Instruction]]
    entry: str
    devices: int

    @classmethod
    def parse(cls, text: str) -> "OptimisedProgram":
        """Reads what `compiled.as_text()` gives.

        Raises:
          ValueError: the text has no entry computation.
        """
        computations: dict[str, dict[str, Instruction]] = {}
        entry, current = None, None
        for line in text.splitlines():
            if (head := _COMPUTATION.match(line)) is not None:
                current = computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
            elif current is not None and (instruction := _instruction(line)) is not None:
                current[instruction.name] = instruction
        if entry is None:
            raise ValueError("the text is not that of a compiled program: it has no ENTRY computation")
        counts = [re.search(rf"{name}=(\d+)", text.partition("\n")[0]) for name in ("replica_count", "num_partitions")]
        return cls(computations, entry, math.prod(int(count[1]) for count in counts if count))

    def operations(self) -> list[Operation]:
        """Every operation that the device runs, in the order of the text."""
        return list(self._visit(self.entry, 1, (), False))

    def _visit(self, name: str, times: int, place: tuple[Scope, ...], in_loop: bool) -> Iterator[Operation]:
        scope = self.computations[name]
        for instruction in scope.values():
            opcode = instruction.opcode
            if opcode == "while":
                trips = self._trips(instruction, scope)
                inner = place if trips else (*place, Scope(instruction.name))
                yield from self._visit(_called(instruction, "body")[0], times * (trips or 1), inner, True)
            elif opcode == "conditional":
                branches = _branches(instruction)
                for number, branch in enumerate(branches):
                    scope_of = Scope(instruction.name, number, len(branches))
                    yield from self._visit(branch, times, (*place, scope_of), in_loop)
            elif opcode in ("call", "async-start"):
                yield from self._visit(_called(instruction, "to_apply", "calls")[0], times, place, in_loop)
            elif not self._is_free(instruction):
                yield self._operation(instruction, scope, times, place, in_loop)

    def _is_free(self, instruction: Instruction) -> bool:
        opcode = instruction.opcode
        if opcode == "custom-call":
            return any(f'custom_call_target="{target}"' in instruction.attributes for target in _FREE_CALLS)
        return opcode in _FREE or opcode.endswith(("-done", "-update"))

    def _operation(
        self,
        instruction: Instruction,
        scope: dict[str, Instruction],
        times: int,
        place: tuple[Scope, ...],
        in_loop: bool,
    ) -> Operation:
        read, written = self._bytes(instruction, scope)
        cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
        source = re.search(r'op_name="([^"]*)"', instruction.attributes)
        name, payload, group = self._collective(instruction, scope)
        return Operation(
            instruction,
            times,
            place,
            in_loop,
            read,
            written,
            self._flops(instruction, scope),
            int(cycles[1]) if cycles else None,
            name,
            payload,
            group,
            self._only_moves(instruction),
            source[1] if source else "",
        )

    def _trips(self, loop: Instruction, scope: dict[str, Instruction]) -> int | None:
        """How often a loop runs, where the text says it or the condition compares a counter from 0 with a constant."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        condition = self.computations[_called(loop, "condition")[0]]
        root = next(item for item in condition.values() if item.is_root)
        if root.opcode != "compare" or "direction=LT" not in root.attributes:
            return None
        counter, bound = (condition[name] for name in root.operands)
        if counter.opcode != "get-tuple-element" or bound.opcode != "constant":
            return None
        number = int(re.search(r"index=(\d+)", counter.attributes)[1])  # type: ignore[index]
        start = scope[scope[loop.operands[0]].operands[number]]
        while start.opcode == "copy":
            start = scope[start.operands[0]]
        begins_at_0 = start.opcode == "constant" and start.arguments == "0"
        return int(bound.arguments) if begins_at_0 else None

    def _bytes(self, instruction: Instruction, scope: dict[str, Instruction]) -> tuple[int, int]:
        """Bytes of main memory that an operation reads and writes."""
        operands = [scope[name] for name in instruction.operands]
        results = instruction.results
        if instruction.opcode == "fusion":
            inner = self.computations[_called(instruction, "calls")[0]]
            return _fusion_read(inner, operands), sum(_fusion_written(inner, results))
        if instruction.opcode == "slice-start":
            return results[1].nbytes, results[1].moved
        if instruction.opcode.endswith("-start"):  # the result lists the operands, too
            moved = sum(buffer.moved for operand in operands for buffer in operand.results)
            return moved, results[0].moved if instruction.opcode == "copy-start" else _larger(results, operands)
        if instruction.opcode in _SLICES:
            return sum(buffer.nbytes for buffer in results), sum(buffer.moved for buffer in results)
        if instruction.opcode in ("dynamic-update-slice", "scatter"):
            update = operands[1 if instruction.opcode == "dynamic-update-slice" else -1].results[0]
            return update.moved, results[0].moved and update.nbytes
        read = sum(buffer.moved for operand in operands for buffer in operand.results)
        return read, sum(buffer.moved for buffer in results)

    def _flops(self, instruction: Instruction, scope: dict[str, Instruction]) -> int:
        """Floating-point operations of the matrix products in an instruction."""
        if instruction.opcode == "fusion":
            inner = self.computations[_called(instruction, "calls")[0]]
            return sum(self._flops(item, inner) for item in inner.values())
        if instruction.opcode == "dot":
            contracted = _numbers(instruction.attributes, "lhs_contracting_dims")
            dims = scope[instruction.operands[0]].results[0].dims
            return 2 * math.prod(instruction.results[0].dims) * math.prod(dims[axis] for axis in contracted)
        if instruction.opcode == "convolution" or "__cudnn$conv" in instruction.attributes:
            lhs, rhs = (scope[name].results[0].dims for name in instruction.operands[:2])
            return _convolution_flops(instruction, lhs, rhs)
        if instruction.opcode == "custom-call" and "gemm" in instruction.attributes:
            return self._gemm_flops(instruction, scope)
        if instruction.opcode == "custom-call" and "fmha" in instruction.attributes:
            return _attention_flops(instruction, scope)
        stated = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', instruction.attributes)
        return int(stated[1]) if stated else 0

    def _gemm_flops(self, instruction: Instruction, scope: dict[str, Instruction]) -> int:
        stated = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
        if stated is None:
            return 0
        dims = scope[instruction.operands[0]].results[0].dims
        contracted = math.prod(dims[int(axis.strip('"'))] for axis in stated[1].split(","))
        return 2 * math.prod(instruction.results[0].dims) * contracted

    def _collective(self, instruction: Instruction, scope: dict[str, Instruction]) -> tuple[str, int, int]:
        """The collective that an instruction is or begins: its name, bytes and devices; ("", 0, 1) if there is none."""
        name = instruction.opcode.removesuffix("-start")
        if name in _COLLECTIVES:
            payload = _larger(instruction.results, [scope[operand] for operand in instruction.operands])
            return name, payload, self._group(instruction)
        if (inner := self._begun.get(instruction.name)) is None:
            return "", 0, 1
        fused = self.computations[_called(instruction, "calls")[0]]
        name, payload, group = self._collective(inner, fused)
        scatters = name == "all-reduce" and any(
            item.opcode == "dynamic-slice" and item.is_root for item in fused.values()
        )
        return "reduce-scatter" if scatters else name, payload, group

    @functools.cached_property
    def _begun(self) -> dict[str, Instruction]:
        """The collectives in fusions, as TPUs have them, by the first fusion of each: the later ones go on with it."""
        begun: dict[str, Instruction] = {}
        channels: set[str] = set()
        for scope in self.computations.values():
            for fusion in (item for item in scope.values() if item.opcode == "fusion"):
                for inner in self.computations[_called(fusion, "calls")[0]].values():
                    channel = re.search(r"channel_id=(\d+)", inner.attributes)
                    if inner.opcode in _COLLECTIVES and channel and channel[1] not in channels:
                        channels.add(channel[1])
                        begun[fusion.name] = inner
        return begun

    def _group(self, instruction: Instruction) -> int:
        """Devices in each group of a collective: `{{0,1},{2,3}}`, `[groups,size]<=[n]`, axes of a mesh, or all."""
        if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", instruction.attributes):
            return listed[1].count(",") + 1
        if tiled := re.search(r"replica_groups=\[\d+,(\d+)\]", instruction.attributes):
            return int(tiled[1])
        if along := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", instruction.attributes):
            sizes = dict(re.findall(r"'(\w+)'=(\d+)", along[1]))
            return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", along[2]))
        return 2 if "permute" in instruction.opcode else self.devices

    def _only_moves(self, instruction: Instruction) -> bool:
        if instruction.opcode != "fusion":
            return instruction.opcode in _MOVES
        inner = self.computations[_called(instruction, "calls")[0]].values()
        large = [item for item in inner if sum(buffer.nbytes for buffer in item.results) > 64]
        return all(item.opcode in _MOVES | _FREE for item in large)


def _instruction(line: str) -> Instruction | None:
    head = _INSTRUCTION.match(line)
    if head is None:
        return None
    rest = re.sub(r"/\*.*?\*/", "", line[head.end() :])
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    opcode = _OPCODE.match(rest, end)
    if opcode is None:
        return None
    close = _closing(rest, opcode.end() - 1)
    arguments = rest[opcode.end() : close - 1]
    return Instruction(
        head[2],
        opcode[1],
        tuple(_buffers(rest[:end])),
        tuple(re.findall(r"%([\w.\-]+)", arguments)),
        arguments,
        rest[close:],
        head[1] is not None,
    )


def _closing(text: str, start: int) -> int:
    """The place after the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    raise ValueError(f"a parenthesis is not closed in {text[:80]!r}")


def _buffers(text: str) -> Iterator[Buffer]:
    for dtype, dims, layout in _BUFFER.findall(text):
        yield Buffer(
            dtype, tuple(int(size) for size in dims.split(",") if size), re.search(r"S\([1-9]", layout) is not None
        )


def _called(instruction: Instruction, *attributes: str) -> list[str]:
    found = re.search(rf"(?:{'|'.join(attributes)})=%?([\w.\-]+)", instruction.attributes)
    return [found[1]] if found else []


def _branches(instruction: Instruction) -> list[str]:
    """The branches of a conditional: by number, or that for false before that for true."""
    if listed := re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes):
        return re.findall(r"[\w.\-]+", listed[1])
    return _called(instruction, "false_computation") + _called(instruction, "true_computation")


def _numbers(text: str, attribute: str) -> list[int]:
    found = re.search(rf"{attribute}=\{{([\d,]*)\}}", text)
    return [int(number) for number in found[1].split(",") if number] if found else []


def _larger(results: tuple[Buffer, ...], operands: list[Instruction]) -> int:
    """Bytes of a collective's largest array: what is gathered, or what is reduced or scattered."""
    given = sum(buffer.nbytes for operand in operands for buffer in operand.results)
    largest = max((buffer.nbytes for buffer in results), default=0)
    return max(given, largest)


def _fusion_read(inner: dict[str, Instruction], operands: list[Instruction]) -> int:
    """Bytes that a fusion reads: of an operand that is only sliced, the slices; of one updated in place, nothing.

    A fusion computes of each of its values what the later ones need.
    """
    needed = dict.fromkeys(inner, 0)  # elements
    for item in reversed(inner.values()):
        size = _elements(item)
        wanted = size if item.is_root else min(needed[item.name], size)
        for number, name in enumerate(item.operands):
            whole = _elements(inner[name])
            if item.opcode in _SLICES and number == 0:
                needed[name] += wanted  # other slices have other elements
            elif item.opcode != "dynamic-update-slice" or number != 0:
                needed[name] = max(needed[name], wanted if whole == size else whole)
    total = 0
    for item in inner.values():
        if item.opcode == "parameter":
            whole, buffers = max(_elements(item), 1), operands[int(item.arguments)].results
            total += sum(buffer.moved for buffer in buffers) * min(needed[item.name], whole) // whole
    return total


def _elements(instruction: Instruction) -> int:
    return sum(math.prod(buffer.dims) for buffer in instruction.results)


def _fusion_written(inner: dict[str, Instruction], results: tuple[Buffer, ...]) -> Iterator[int]:
    """Bytes that a fusion writes for each result: of one updated in place, the update."""
    root = next(item for item in inner.values() if item.is_root)
    roots = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for item, buffer in zip(roots, results, strict=False):
        while item.opcode == "bitcast":
            item = inner[item.operands[0]]
        update = inner[item.operands[1]].results[0].nbytes if item.opcode == "dynamic-update-slice" else buffer.nbytes
        yield 0 if buffer.on_chip else update


def _attention_flops(instruction: Instruction, scope: dict[str, Instruction]) -> int:
    """The two products of fused attention, [batch, positions, heads, head_dim] in any order; causal ones are half."""
    q, k = (scope[name].results[0].dims for name in instruction.operands[:2])
    # Query, key and head count are told from shapes alone: keys differ from queries in their length only.
    keys = next((b for a, b in zip(q, k, strict=True) if a != b), max(q))
    half = "CAUSAL" in instruction.attributes or "causal" in instruction.attributes
    return 4 * math.prod(q) * keys // (2 if half else 1)


def _convolution_flops(instruction: Instruction, lhs: tuple[int, ...], rhs: tuple[int, ...]) -> int:
    """Of a convolution, which is also how TPUs write matrix products; a window's padding and gaps are not counted."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None
    image, kernel, out = labels.groups()
    dims = instruction.results[0].dims
    total = 2 * dims[out.index("b")] * dims[out.index("f")] * rhs[kernel.index("i")]
    for number in range(sum(label.isdigit() for label in image)):
        axis = str(number)
        window = {
            name: _window(instruction.attributes, name, number)
            for name in ("size", "stride", "pad", "lhs_dilate", "rhs_dilate")
        }
        total *= _taps(lhs[image.index(axis)], rhs[kernel.index(axis)], dims[out.index(axis)], window)
    return total


def _window(attributes: str, name: str, number: int) -> int:
    """A number of a convolution's window along a spatial axis; of `pad` the part before the first element."""
    window = re.search(r"window=\{([^}]*)\}", attributes)
    found = re.search(rf"(?<!\w){name}=([\dx_\-]+)", window[1]) if window else None
    if found is None:
        return 0 if name == "pad" else 1
    return int(found[1].split("x")[number].split("_")[0])


def _taps(size: int, kernel: int, out: int, window: dict[str, int]) -> int:
    """Pairs of an output and a kernel position along one axis that meet an element of the input."""
    dilate, last = window["lhs_dilate"], (size - 1) * window["lhs_dilate"]
    places = (
        at * window["stride"] + offset * window["rhs_dilate"] - window["pad"]
        for at in range(out)
        for offset in range(kernel)
    )
    return sum(0 <= place <= last and place % dilate == 0 for place in places)
