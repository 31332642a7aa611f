"""What fits where: compiles each stage's program for devices that are not there, and says what it takes.

python -m launch.bench fits --device=v5e:4x4 --config=configs/maira2.py

One row per program: the batch that the configuration asks for; the peak of a device's memory; and of one call the bytes
moved, the arithmetic, the collectives and the time. Programs that write tokens have the same for a token. `largest` is
the largest batch that fits. Times are sums over operations at the device's rates, or the TPU compiler's estimates:
launches, waiting and the host are left out.
"""

import argparse
import dataclasses
import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from launch.benches import absent_devices
from launch.benches.absent_devices import DeviceFacts
from launch.benches.optimised_program import OptimisedProgram
from launch.benches.program_cost import ProgramCost
from launch.benches.stage_programs import PROGRAMS, Setting, StageProgram
from maira_jax.errors import UserError

_MAX_COMPILES = 4  # more of a program, for its largest batch


@dataclasses.dataclass(frozen=True)
class CompiledStage:
    """A stage's program as compiled for one batch size.

    Attributes:
      peak: bytes of a device's memory that it needs.
      program: what it does; None where the compiler refused it for want of memory.
    """

    peak: int
    program: OptimisedProgram | None


def main(options: Sequence[str]) -> None:
    """Prints a table, or JSON.

    Raises:
      UserError: a program does not fit, or the command line or the configuration is not understood.
    """
    parser = argparse.ArgumentParser(
        prog="launch.bench fits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", required=True, help=f"{absent_devices.NAMES}")
    parser.add_argument("--config", default="configs/maira2.py", help="as of all commands: FILE or FILE:ARG")
    parser.add_argument("--mesh", help="DATA,MODEL of one host; default: the configuration's")
    parser.add_argument("--stages", default=",".join(PROGRAMS), help="some of %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(options)
    stages = arguments.stages.split(",")
    if unknown := set(stages) - set(PROGRAMS):
        raise UserError(f"--stages={min(unknown)} is not a program: give some of {', '.join(PROGRAMS)}")
    setting, facts = setting_of(arguments.device, arguments.config, _mesh(arguments.mesh))
    rows = []
    for name in stages:
        rows.append(row(name, PROGRAMS[name], setting, facts))
        if not arguments.json:
            print(_line(rows[-1]) if len(rows) > 1 else f"{_HEAD}\n{_line(rows[-1])}", flush=True)
    if arguments.json:
        print(json.dumps({"device": arguments.device, "config": arguments.config, "programs": rows}))
    if too_large := [row for row in rows if not row["fits"]]:
        raise UserError(
            "; ".join(
                f"{row['program']} does not fit with {row['field'] or 'blocks'} = {row['batch']}: "
                + (f"the largest that does is {row['largest']}" if row["largest"] else "no batch does")
                for row in too_large
            )
        )


def setting_of(device: str, config: str, mesh: tuple[int, int] | None = None) -> tuple[Setting, DeviceFacts]:
    """What the programs of a configuration are compiled for, and what each device has.

    Args:
      device: a name of `absent_devices`.
      config: FILE or FILE:ARG of the configuration.
      mesh: devices along the batch and along each layer; None: the configuration's.

    Raises:
      UserError: the device, its compiler or the configuration is missing.
    """
    jax.config.update("jax_platforms", "cpu")  # nothing runs, and no device of this machine is needed
    jax.config.update("jax_enable_compilation_cache", False)  # it could not be read again without the device
    values, facts = _config(config), absent_devices.facts(device)
    devices, local = absent_devices.devices(device), absent_devices.one_host(device)
    return Setting.of(values, devices, local, mesh or tuple(values.mesh), facts.memory), facts


def _config(flag: str) -> ConfigDict:
    """What `get_config` in FILE gives, called with ARG where there is one."""
    path, _, argument = flag.partition(":")
    spec = importlib.util.spec_from_file_location("fits_config", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise UserError(f"--config={flag} is not a Python file: give a configuration file, such as configs/maira2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument) if argument else module.get_config()


def _mesh(flag: str | None) -> tuple[int, int] | None:
    if flag is None:
        return None
    if not re.fullmatch(r"[1-9]\d*,[1-9]\d*", flag):
        raise UserError(f"--mesh={flag} is not two numbers: give DATA,MODEL, such as 1,4")
    data, model = flag.split(",")
    return int(data), int(model)


_HEAD = (
    f"{'program':14} {'mesh':>6} {'batch':>6} {'peak GiB':>8} {'of':>5} {'GB':>8} {'TFLOP':>8} "
    f"{'coll.':>5} {'GB':>6} {'ms':>8} {'token ms':>8} {'GB':>6} {'largest':>7}"
)


def _line(row: dict[str, Any]) -> str:
    call, token = row["call"], row["token"]
    per_token = f"{1e3 * token['seconds']:8.1f} {token['moved'] / 1e9:6.1f}" if token["seconds"] else f"{'':15}"
    return (
        f"{row['program']:14} {row['mesh'][0]:>3},{row['mesh'][1]:<2} {row['batch']:6} {row['peak'] / 2**30:8.1f} "
        f"{row['memory'] / 2**30:5.1f} {call['moved'] / 1e9:8.1f} {call['flops'] / 1e12:8.2f} {call['collectives']:5} "
        f"{call['payload'] / 1e9:6.2f} {1e3 * call['seconds']:8.1f} {per_token} {row['largest']:7}"
    )


def row(name: str, stage: StageProgram, setting: Setting, facts: DeviceFacts) -> dict[str, Any]:
    """What a stage's program takes with the configuration's batch, and the largest batch that fits."""
    batch, shape = stage.batch(setting), stage.mesh(setting).devices.shape
    step = stage.multiple * shape[0]
    compiled = compile_stage(stage, setting, batch)
    largest = largest_batch(
        lambda size: compile_stage(stage, setting, size).peak,
        facts.memory,
        step,
        stage.limit(setting),
        {0: stage.constant_bytes(setting), batch: compiled.peak},
    )
    found = {
        "program": name,
        "mesh": list(shape),
        "field": stage.field,
        "batch": batch,
        "fits": compiled.program is not None and compiled.peak <= facts.memory,
        "peak": compiled.peak,
        "memory": facts.memory,
        "largest": largest,
    }
    call, token = stage.costs(compiled.program, facts) if compiled.program else (ProgramCost(), ProgramCost())
    return found | {"call": dataclasses.asdict(call), "token": dataclasses.asdict(token)}


def compile_stage(stage: StageProgram, setting: Setting, batch: int) -> CompiledStage:
    """Compiles a stage's program."""
    lowered = stage.lower(setting, batch)
    options: dict[str, str | bool] = {}
    if stage.mesh(setting).devices.flat[0].platform != "tpu":
        # Without a device there is no autotuning, and Triton's products take no odd numbers of rows. They alone take
        # int8 weights without a copy, so a device would choose them.
        options["xla_gpu_enable_triton_gemm"] = setting.config.model.weights == "int8"
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        needed = re.findall(r"(\d+\.\d+)G", str(error))  # and the device's memory, which is less
        if "RESOURCE_EXHAUSTED" not in str(error) or not needed:
            raise
        return CompiledStage(int(max(map(float, needed)) * 2**30), None)
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and text is not None  # both compilers give them
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return CompiledStage(peak + memory.temp_size_in_bytes, OptimisedProgram.parse(text))


def largest_batch(peak: Callable[[int], int], memory: int, step: int, limit: int, known: Mapping[int, int]) -> int:
    """The largest batch, in multiples of `step` and to within a sixteenth, that needs at most `memory`; 0 if none does.

    Memory grows about evenly with the batch: the line through two sizes says where to look, a few compilations whether
    it is right.

    Args:
      peak: gives the memory for a batch.
      memory: that of a device.
      step: batches are multiples of it.
      limit: none is above it.
      known: the memory of some sizes, that of the size 0 among them.
    """
    peaks, limit = dict(known), limit // step * step
    for _ in range(_MAX_COMPILES):
        fitting = max((size for size in peaks if peaks[size] <= memory), default=0)
        above = min((size for size in peaks if peaks[size] > memory), default=limit + step)
        if above - fitting <= max(step, fitting // 16):
            break
        trial = min(max(_on_the_line(peaks, memory) // step * step, fitting + step), above - step)
        peaks[trial] = peak(trial)
    return max((size for size in peaks if peaks[size] <= memory), default=0)


def _on_the_line(peaks: Mapping[int, int], memory: int) -> int:
    """The size at which the memory is reached on the line through the two sizes that come nearest to it."""
    low, high = sorted(sorted(peaks, key=lambda size: abs(peaks[size] - memory))[:2])
    slope = (peaks[high] - peaks[low]) / (high - low)
    return int(low + (memory - peaks[low]) / slope) if slope > 0 else 2 * high
