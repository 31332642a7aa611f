"""Mutation testing: python -m tests.mutants [--sample=N] [MODULE ...], which `make mutants` runs for all modules.

A mutant is a module with one small change, made by cosmic-ray. It is killed when one of the module's tests fails. The
rate of each module, and what survived, are printed. Everything happens in a copy of the working tree. Each mutant's
tests run in a fork of this process, which has imported the libraries and nothing of the project.
"""

import argparse
import ast
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cosmic_ray.ast
import cosmic_ray.plugins
import jax  # noqa: F401
import openai  # noqa: F401
import pyarrow.parquet  # noqa: F401
import pytest
import scipy.stats  # noqa: F401
import torch  # noqa: F401
from cosmic_ray import mutating

from tests.helpers.paths import ROOT

# The modules, and the tests that are to kill their mutants.
TESTS = {
    "sae/training/loss.py": ("tests/sae/training/loss_test.py", "tests/sae/training/gradients_test.py"),
    "sae/training/gradients.py": ("tests/sae/training/gradients_test.py",),
    "sae/kernels/kth_largest.py": ("tests/sae/kernels/kth_largest_test.py",),
    "sae/variants": ("tests/sae/variants", "tests/sae/training/gradients_test.py"),
    "sae/formats": ("tests/sae/formats",),
    "interp/llm/egress.py": ("tests/interp/llm/egress_test.py",),
    "interp/scorers/detection.py": ("tests/interp/scorers/scorer_test.py", "tests/interp/scorers/ground_truth_test.py"),
    "maira_jax/reports/changes.py": ("tests/maira_jax/reports/changes_test.py",),
    "maira_jax/generation/grounding.py": ("tests/maira_jax/generation/grounding_test.py",),
    "maira_jax/model/sites.py": ("tests/maira_jax/model/sites_test.py",),
}
_TIMES_AS_LONG, _AT_LEAST = 5, 60  # how long a mutant's tests may take: times the module's own, and seconds


class Mutant(NamedTuple):
    """One change of one file.

    Attributes:
      path: the file.
      operator: cosmic-ray's name of the kind of change.
      occurrence: which place in the file that it applies to is changed.
      line: number of that place's line.
    """

    path: Path
    operator: str
    occurrence: int
    line: int


def mutants_of(path: Path) -> Iterator[Mutant]:
    """All mutants of a file but those of `_unseen` places."""
    tree = cosmic_ray.ast.get_ast_from_path(path)
    unseen = [_span(node) for node in _unseen(ast.parse(path.read_text()))]
    for name in cosmic_ray.plugins.operator_names():
        kind = cosmic_ray.plugins.get_operator(name)
        if kind.arguments():
            continue
        places = [place for node in cosmic_ray.ast.ast_nodes(tree) for place in kind().mutation_positions(node)]
        for occurrence, (begin, _) in enumerate(places):
            if not any(start <= begin < end for start, end in unseen):
                yield Mutant(path, name, occurrence, begin[0])


def _unseen(tree: ast.AST) -> Iterator[ast.AST]:
    """Annotations, which do not run, and what only makes a record constant or a function fast."""
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if found := getattr(node, name, None):
                yield found
        if isinstance(node, ast.keyword) and node.arg in ("frozen", "maxsize"):
            yield node.value


def _span(node: ast.AST) -> tuple[tuple[int, int], tuple[int, int]]:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def passes(tests: tuple[str, ...], limit: float) -> bool:
    """Whether tests pass within `limit` seconds, in a fork of this process; not while both are held by a signal."""
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(silent, stream)
        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])))
    elapsed, last = 0.0, time.monotonic()
    while elapsed < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.02)
        now = time.monotonic()
        elapsed, last = elapsed + min(now - last, 0.2), now
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def measure(module: str, sample: int | None) -> None:
    """Prints how many mutants of a module are killed, and which ones are not."""
    tests, begin = TESTS[module], time.monotonic()
    if not passes(tests, 3600):
        sys.exit(f"{' '.join(tests)} fail without a change")
    limit = max(_TIMES_AS_LONG * (time.monotonic() - begin), _AT_LEAST)
    files = sorted(Path(module).rglob("*.py")) if Path(module).is_dir() else [Path(module)]
    every = [mutant for path in files for mutant in mutants_of(path)]
    chosen = every if sample is None or sample >= len(every) else random.Random(0).sample(every, sample)
    killed = 0
    for mutant in chosen:
        original = mutant.path.read_text()
        operator = cosmic_ray.plugins.get_operator(mutant.operator)()
        mutant.path.write_text(mutating.mutate_code(original, operator, mutant.occurrence))
        survives = passes(tests, limit)
        mutant.path.write_text(original)
        killed += not survives
        if survives:
            line = original.splitlines()[mutant.line - 1].strip()
            print(f"  survived: {mutant.path}:{mutant.line} {mutant.operator.split('/')[-1]}: {line}", flush=True)
    print(f"{module}: {killed} of {len(chosen)} killed ({killed / len(chosen):.0%}), of {len(every)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, help="number of mutants of each module, drawn; left out: all")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"{', '.join(TESTS)}; left out: all")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as copy:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, check=True).stdout
        packed = subprocess.run(["tar", "c", "-T", "-"], cwd=ROOT, input=listed, capture_output=True, check=True).stdout
        subprocess.run(["tar", "x", "-C", copy], input=packed, check=True)
        os.chdir(copy)
        for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
            del sys.modules[name]
        sys.path[:] = [copy, *(path for path in sys.path if path not in ("", str(ROOT)))]
        sys.dont_write_bytecode, os.environ["PYTHONDONTWRITEBYTECODE"] = True, "1"
        for module in arguments.modules or TESTS:
            measure(module, arguments.sample)


if __name__ == "__main__":
    main()
