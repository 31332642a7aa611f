"""Speed and memory of a conversion: ours, and transformers' `from_pretrained` and `save_pretrained`.

  python -m launch.bench convert
  python -m launch.bench convert --checkpoint=/data/random --out=/data/flax

The first compares both for checkpoints with random weights. transformers has no class for MAIRA-2: it reads and writes
the language model and the vision tower, which it gets as checkpoints of their own, and leaves out the projector. Each
program runs in a process of its own, in turns, with the files in the page cache; the median counts. The time is without
starting and importing. The second compares ours alone with reading the same files, dropped from the page cache before.

Memory is the anonymous memory of the process (`RssAnon`), sampled, which excludes pages of files: what the conversion
adds to what it had before, and the peak. Rates count the bytes of the checkpoint.
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
from typing import Any

from configs import base
from launch.benches import child_process
from launch.benches.random_models import SIZES, SMALL, check, write_checkpoint
from launch.benches.torch_maira2 import TorchMaira2, llama
from maira_jax.checkpoint import convert
from maira_jax.errors import UserError

_PIECE = 1 << 24
PROGRAMS = ("ours", "transformers")


def main(options: Sequence[str]) -> None:
    """Prints one line of JSON for each size, or for the checkpoint."""
    parser = argparse.ArgumentParser(
        prog="launch.bench convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default=",".join(SMALL), help=f"sizes of the random model: {', '.join(SIZES)}")
    parser.add_argument("--turns", type=int, default=3, help="number of times that each program is run")
    parser.add_argument("--checkpoint", type=Path, help="folder that is read instead of random models")
    parser.add_argument("--out", type=Path, help="folder that is then written; must not exist")
    parser.add_argument("--dtype", default="bfloat16", help="type of the parameters that are written")
    parser.add_argument("--reverse", action="store_true", help="with --checkpoint: measure launch.convert --reverse")
    parser.add_argument("--child", choices=PROGRAMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(options)
    if bool(arguments.checkpoint) != bool(arguments.out):
        raise UserError("--checkpoint and --out go together: give both or neither")
    if arguments.child:
        print(
            json.dumps(_measured(_transformers(arguments) if arguments.child == "transformers" else _ours(arguments)))
        )
    elif arguments.checkpoint:
        print(json.dumps(_alone(arguments)))
    else:
        for size in check(arguments.sizes):
            with tempfile.TemporaryDirectory() as folder:
                print(json.dumps(_compare(arguments, size, Path(folder))), flush=True)


def _compare(arguments: argparse.Namespace, size: str, folder: Path) -> dict[str, Any]:
    checkpoint = folder / "checkpoint"
    write_checkpoint(size, checkpoint)
    _write_parts(checkpoint, folder)
    nbytes = _size(checkpoint)
    turns: dict[str, list[dict[str, float]]] = {who: [] for who in PROGRAMS}
    for turn in range(arguments.turns):
        for who in PROGRAMS:
            turns[who].append(_child(arguments, who, checkpoint, folder / f"{who}{turn}"))
    median = {
        who: {key: statistics.median(turn[key] for turn in found) for key in found[0]} for who, found in turns.items()
    }
    rates = {who: nbytes / 1e6 / found["seconds"] for who, found in median.items()}
    return {
        "size": size,
        "checkpoint_mb": round(nbytes / 1e6, 1),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "mb_per_s": {who: round(rate, 1) for who, rate in rates.items()},
        "ratio": round(rates["ours"] / rates["transformers"], 2),
        **median,
        "turns": turns,
    }


def _write_parts(checkpoint: Path, folder: Path) -> None:
    """Writes the language model and the vision tower as transformers' checkpoints, for the peer."""
    llama(checkpoint).save_pretrained(folder / "language")
    TorchMaira2(checkpoint).vision.save_pretrained(folder / "vision")


def _alone(arguments: argparse.Namespace) -> dict[str, float]:
    nbytes = _size(arguments.checkpoint)
    result: dict[str, float] = {"checkpoint_gb": nbytes / 1e9}
    if not arguments.reverse:
        _forget(arguments.checkpoint)
        result["read_gb_per_s"] = nbytes / 1e9 / _read_all(arguments.checkpoint)
    _forget(arguments.checkpoint)
    result |= _child(arguments, "ours", arguments.checkpoint, arguments.out)
    result["convert_gb_per_s"] = nbytes / 1e9 / result["seconds"]
    if not arguments.reverse:
        result["of_reading"] = result["convert_gb_per_s"] / result["read_gb_per_s"]
    return {key: round(value, 3) for key, value in result.items()}


def _child(arguments: argparse.Namespace, who: str, checkpoint: Path, out: Path) -> dict[str, float]:
    options = [f"--checkpoint={checkpoint}", f"--out={out}", f"--dtype={arguments.dtype}"]
    return child_process.measured("convert", [*options, *(["--reverse"] if arguments.reverse else [])], who)


def _ours(arguments: argparse.Namespace) -> Callable[[], Any]:
    if arguments.reverse:
        return lambda: convert.reverse(arguments.checkpoint, arguments.out)
    config = base.get_config()
    config.model.update({"checkpoint": str(arguments.checkpoint), "dtype": arguments.dtype})
    return lambda: convert.run(config, arguments.out)


def _transformers(arguments: argparse.Namespace) -> Callable[[], None]:
    import torch
    from transformers import Dinov2Backbone, LlamaForCausalLM

    def run() -> None:
        for kind, part in ((LlamaForCausalLM, "language"), (Dinov2Backbone, "vision")):
            model = kind.from_pretrained(arguments.checkpoint.parent / part, dtype=getattr(torch, arguments.dtype))
            model.save_pretrained(arguments.out / part)

    return run


def _measured(run: Callable[[], Any]) -> dict[str, float]:
    """Seconds of a call, and the anonymous memory of this process in MiB."""
    before, done = _anonymous(), threading.Event()
    peak = before

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, _anonymous())

    sampler = threading.Thread(target=sample)
    sampler.start()
    start = time.monotonic()
    run()
    seconds = time.monotonic() - start
    done.set()
    sampler.join()
    return {"seconds": round(seconds, 3), "added_mib": round(peak - before, 1), "peak_mib": round(peak, 1)}


def _anonymous() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _read_all(directory: Path) -> float:
    """Seconds to read every file of the checkpoint."""
    start = time.monotonic()
    buffer = bytearray(_PIECE)
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.monotonic() - start


def _forget(directory: Path) -> None:
    """Drops the files of a folder from the page cache."""
    for path in filter(Path.is_file, directory.rglob("*")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
