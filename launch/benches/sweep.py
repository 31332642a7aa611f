"""What a sweep of eight autoencoders costs, compared with training each of them by a command of its own.

Both sides train the same members, four learning rates by two sparsities, from the same stored activations. Every
command runs in a process of its own; each side begins a turn without compiled programs and keeps those that it
compiles, as a user's commands do. `seconds` and `cpu_seconds`, which other load affects less, are of whole commands,
`step_seconds` what the devices worked on steps.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from launch.benches.synthetic import SyntheticFeatures
from maira_jax.errors import UserError
from maira_jax.run import jsonl

_LEARNING_RATES = (5e-4, 1e-3, 2e-3, 4e-3)
# Of each variant: the field of `sae`, that of `sweep`, and its values.
_SPARSITIES = {"relu": ("l1", "l1s", (0.02, 0.1)), "batch_top_k": ("k", "ks", (8, 32))}


def main(options: Sequence[str]) -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(prog="launch.bench sweep", description=__doc__)
    parser.add_argument("--kind", choices=tuple(_SPARSITIES), default="relu", help="the variant")
    parser.add_argument("--tokens", type=int, default=2**16, help="activations, of which a tenth is held out")
    parser.add_argument("--d_model", type=int, default=128, help="width of the activations")
    parser.add_argument("--expansion", type=int, default=16, help="features per dimension of the activations")
    parser.add_argument("--batch_size", type=int, default=1024, help="tokens")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=1, help="number of times that each side is timed")
    arguments = parser.parse_args(options)
    with tempfile.TemporaryDirectory() as folder:
        commands = _Commands(arguments, Path(folder))
        commands.store()
        turns = [(commands.sweep(f"sweep-{turn}"), commands.alone(f"alone-{turn}")) for turn in range(arguments.turns)]
    result = vars(arguments) | {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    for name in _Cost._fields:
        sides = [statistics.median(getattr(turn[side], name) for turn in turns) for side in (0, 1)]
        ratios = [round(getattr(swept, name) / getattr(alone, name), 3) for swept, alone in turns]
        result[name] = {"sweep": round(sides[0], 1), "alone": round(sides[1], 1), "ratios": ratios}
    print(json.dumps(result))


class _Cost(NamedTuple):
    """What commands cost; see the module's docstring."""

    seconds: float
    cpu_seconds: float
    step_seconds: float


class _Commands:
    """The commands of both sides."""

    def __init__(self, arguments: argparse.Namespace, folder: Path):
        self._arguments, self._folder = arguments, folder
        self._array = folder / "activations.npy"
        self._field, self._swept, self._values = _SPARSITIES[arguments.kind]

    def store(self) -> None:
        """Stores the activations that all commands read."""
        features = SyntheticFeatures.random(self._arguments.d_model, n_true=512, active=12.0, seed=0)
        np.save(self._array, features.sample(self._arguments.tokens, (0, 1)))
        self._run("harvest", "store", "store", {})

    def sweep(self, name: str) -> _Cost:
        """One command that trains all."""
        swept = {"sweep.learning_rates": _LEARNING_RATES, f"sweep.{self._swept}": self._values}
        return _Cost(*self._run("sweep", name, name, swept), self._step_seconds(name, "sweep/group-*"))

    def alone(self, name: str) -> _Cost:
        """A command for each."""
        costs = []
        for number, (rate, value) in enumerate(itertools.product(_LEARNING_RATES, self._values)):
            workdir = f"{name}-{number}"
            times = self._run("train", workdir, name, {"train.lr": rate, f"sae.{self._field}": value})
            costs.append((*times, self._step_seconds(workdir, "sae")))
        return _Cost(*np.sum(costs, axis=0).tolist())

    def _run(self, command: str, workdir: str, cache: str, own: Mapping[str, object]) -> tuple[float, float]:
        arguments, path = self._arguments, self._folder / workdir
        path.mkdir()
        if command != "harvest":
            (path / "activations").symlink_to(self._folder / "store" / "activations")
        fields = dict(own) | {"sae.kind": arguments.kind, "sae.expansion": float(arguments.expansion)}
        fields |= {"train.steps": arguments.steps, "train.batch_size": arguments.batch_size}
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        places = [f"--workdir={path}", f"--compilation_cache={self._folder / 'compiled' / cache}"]
        config = f"--config=configs/embeddings.py:{self._array}"
        environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
        start, worked = time.monotonic(), _cpu_seconds()
        done = subprocess.run(
            [sys.executable, "-m", f"launch.{command}", config, *places, *flags],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise UserError(f"launch.{command} failed: {(done.stderr.strip() or done.stdout).splitlines()[-1]}")
        return time.monotonic() - start, _cpu_seconds() - worked

    def _step_seconds(self, workdir: str, folders: str) -> float:
        logs = [jsonl.read(path / "timing.jsonl", "") for path in (self._folder / workdir).glob(folders)]
        ends = [[-1, *(line["step"] for line in log)] for log in logs]
        return sum(
            (line["step"] - before) * line["device"]
            for log, end in zip(logs, ends, strict=True)
            for line, before in zip(log, end, strict=False)
        )


def _cpu_seconds() -> float:
    """What all processors have worked for this process's commands."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
