"""Time that checksums take of harvest, train and interpret, in turns with them and without, on the model of a run.

  python -m launch.demo --workdir=runs/demo
  python -m launch.bench checksums --run=runs/demo

Each stage runs in a process of its own and into a folder of its own, on what the same side's stages before it have left
there; programs that were compiled before are not compiled again. Without checksums no file is hashed, neither when a
stage ends nor when it reads its inputs, and no chunk of activations is checked that training reads; what TensorStore
adds to chunks that it writes and checks in those that it reads stays on both sides. Of each stage and side the median
of the seconds is given, with all of them. `hashing` are the seconds, of all threads together, in which checksums were
computed and compared; `share` is what the side with checksums takes in addition, as a share of the other. Where turns
differ by more than that, `hashing` tells more.
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from interp import stage as interpret
from launch.benches import child_process
from maira_jax.run import files
from maira_jax.run.performance import compilation_cache
from maira_jax.run.stages import checksums, run_config
from maira_jax.run.stages.stage import refuse_damaged
from sae.activations import chunk_files, harvest
from sae.training import stage as train

_NAME = "checksums"
_MODEL = "model"  # the stage of the run that is read and not run again
_STAGES = {"harvest": harvest.run, "train": train.run, "interpret": interpret.run}
_SIDES = ("with", "without")
# What computes and compares checksums, and what it says where it is left out.
_HASHING: tuple[tuple[ModuleType, str, Any], ...] = (
    (checksums, "of_folder", {}),
    (checksums, "problems", []),
    (files, "sha256", ""),
    (chunk_files, "_matches", True),
)


def main(options: Sequence[str]) -> None:
    """Prints one line of JSON for each stage."""
    parser = argparse.ArgumentParser(
        prog="launch.bench checksums", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="a run directory with a finished model")
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=_STAGES,
        default=list(_STAGES),
        help="those that are wanted; the ones before them are run as well",
    )
    parser.add_argument("--turns", type=int, default=3, help="number of times that each stage is run on each side")
    parser.add_argument("--child", nargs=3, metavar=("SIDE", "STAGE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(options)
    if arguments.child:
        print(json.dumps(_timed(arguments.run, *arguments.child)))
        return
    refuse_damaged(arguments.run, _MODEL)
    stages = list(_STAGES)[: max(map(list(_STAGES).index, arguments.stages)) + 1]
    turns: list[dict[str, dict[str, dict[str, float]]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.turns):
            turns.append({})
            for side in _SIDES if number % 2 == 0 else _SIDES[::-1]:
                workdir = Path(folder) / f"{number}-{side}"
                workdir.mkdir()
                (workdir / _MODEL).symlink_to((arguments.run / _MODEL).resolve())
                turns[-1][side] = {
                    stage: child_process.measured(_NAME, options, side, stage, str(workdir)) for stage in stages
                }
                files.remove(workdir)
    for stage in stages:
        print(
            json.dumps(_compared(stage, [{side: turn[side][stage] for side in _SIDES} for turn in turns])), flush=True
        )


def _compared(stage: str, turns: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    seconds = {side: [round(turn[side]["seconds"], 2) for turn in turns] for side in _SIDES}
    median = {side: statistics.median(found) for side, found in seconds.items()}
    hashing = statistics.median(turn["with"]["hashing"] for turn in turns)
    return {
        "stage": stage,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        **median,
        "share": round(median["with"] / median["without"] - 1, 4),
        "hashing": round(hashing, 4),
        "share_of_hashing": round(hashing / median["with"], 5),
        "turns": seconds,
    }


def _timed(run: Path, side: str, stage: str, workdir: str) -> dict[str, float]:
    """Seconds of a stage, and those of hashing in it."""
    compilation_cache.keep_programs(None)
    hashing = _count_hashing() if side == "with" else _leave_out_checksums()
    config = run_config.remembered(run)
    begin = time.perf_counter()
    _STAGES[stage](config, Path(workdir))
    return {"seconds": time.perf_counter() - begin, "hashing": hashing()}


def _count_hashing() -> Callable[[], float]:
    """From now on adds up the time in which checksums are computed and compared; returns what gives the sum."""
    seconds: list[float] = []  # of each computation; appending is safe in threads
    depth = threading.local()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            outer = getattr(depth, "value", 0)
            depth.value, begin = outer + 1, time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                depth.value = outer
                if not outer:  # the one computes by the other
                    seconds.append(time.perf_counter() - begin)

        return call

    for module, name, _ in _HASHING:
        setattr(module, name, counted(getattr(module, name)))
    return lambda: sum(seconds)


def _leave_out_checksums() -> Callable[[], float]:
    """From now on computes and compares none."""
    for module, name, nothing in _HASHING:
        setattr(module, name, lambda *arguments, nothing=nothing, **options: nothing)
    return lambda: 0.0
