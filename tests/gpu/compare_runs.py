"""Compares two finished runs of `launch.demo`, such as one made on a GPU and one on a processor.

  python -m tests.gpu.compare_runs ONE OTHER

Prints numbers of both side by side with their differences, then a summary as one line of JSON. Texts of `generate` and
harvested activations come from the same weights and must agree in float32; what depends on training need not. Ends
with 1 where they do not.
"""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from maira_jax.run import files
from sae.activations.store import ActivationStore

# Relative to the length of each activation.
_ACTIVATIONS = 1e-4
_NUMBERS = ("sae/metrics.json", "interp/summary.json", "label/summary.json", "localize/summary.json")
_TEXTS = {"findings": ("study_id", "phrase"), "steered": ("study_id", "direction", "strength")}


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a JSON value, with the keys that lead to it."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from numbers(each, f"{name}.{key}" if name else key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def concept_scores(run: Path) -> dict[str, float]:
    """The F1 score of each concept's best feature, as far as the run has them."""
    path = run / "interp/concepts.parquet"
    if not path.is_file():
        return {}
    table = pq.read_table(path, columns=["concept", "f1"]).to_pylist()
    return {f"interp.f1.{row['concept']}": row["f1"] for row in table if row["f1"] is not None}


def all_numbers(run: Path) -> dict[str, float]:
    """All numbers of a run, by file and keys."""
    paths = [run / name for name in _NUMBERS] + sorted(run.glob("evaluation/*/summary.json"))
    found = concept_scores(run)
    for path in filter(Path.is_file, paths):
        found |= dict(numbers(files.read_json(path), str(path.parent.relative_to(run)).replace("/", ".")))
    return found


def texts(path: Path) -> dict[tuple, str]:
    """The generated texts of a file of JSON lines, by what they were generated for."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    field = next(name for name in _TEXTS if name in rows[0])
    return {tuple(row.get(key) for key in _TEXTS[field]): row[field] for row in rows}


def equal_texts(one: Path, other: Path) -> dict[str, dict[str, float]]:
    """For each file of generations that both runs have: how many texts both have, and the share of equal ones."""
    found = {}
    for path in sorted(one.rglob("generations.jsonl")):
        name = path.relative_to(one)
        if (other / name).is_file():
            ours, theirs = texts(path), texts(other / name)
            both = ours.keys() & theirs.keys()
            equal = sum(ours[key] == theirs[key] for key in both) / max(len(both), 1)
            found[str(name.parent)] = {"texts": len(both), "equal": equal}
    return found


def largest_difference(one: Path, other: Path) -> float | None:
    """The largest one between two activations of a token, relative to its length; None without activations.

    It is infinite where the runs hold other tokens.
    """
    if not all((run / "activations").is_dir() for run in (one, other)):
        return None
    ours, theirs = (ActivationStore.open(run / "activations") for run in (one, other))
    if (n := ours.n_tokens) != theirs.n_tokens:
        return float("inf")
    worst = 0.0
    for start, stop in itertools.pairwise([*range(0, n, 8192), n]):
        x, y = (np.asarray(store.read(start, stop), np.float64) for store in (ours, theirs))
        length = np.maximum(np.linalg.norm(y, axis=1), 1e-30)
        worst = max(worst, float((np.linalg.norm(x - y, axis=1) / length).max()))
    return worst


def compared(one: Path, other: Path) -> dict[str, Any]:
    """What is compared of two runs, as plain values; `numbers` holds both numbers and their absolute difference."""
    ours, theirs = all_numbers(one), all_numbers(other)
    table = {name: (ours[name], theirs[name], abs(ours[name] - theirs[name])) for name in ours if name in theirs}
    found: dict[str, Any] = {"texts": equal_texts(one, other), "activations": largest_difference(one, other)}
    reports = found["texts"].get("reports", {"equal": 1.0})
    found["same_weights_agree"] = reports["equal"] == 1.0 and (found["activations"] or 0.0) <= _ACTIVATIONS
    return found | {"numbers": table}


def main(one: Path, other: Path) -> int:
    """Prints the comparison; returns the exit status."""
    found = compared(one, other)
    table = found.pop("numbers")
    for name, (ours, theirs, difference) in table.items():
        print(f"{ours:14.6g} {theirs:14.6g} {difference:10.3g}  {name}")
    found["numbers"] = len(table)
    found["largest_f1_difference"] = max((row[2] for name, row in table.items() if ".f1." in name), default=None)
    print(json.dumps(found))
    return 0 if found["same_weights_agree"] else 1


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
