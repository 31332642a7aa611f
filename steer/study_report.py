"""The table of the MAIRA-2 study (arXiv 2507.12950): what it published, and what a run found, side by side.

The last column is what a control scores on the same protocol: raw dimensions of the residual stream for explanations,
random directions for steering.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from interp.controls.raw_dimensions import RAW
from interp.features.summary import CHANCE, GOOD_SCORE
from maira_jax.run import files, storage
from steer import evaluate

_STEERED, _CONTROL = "add", "random"  # methods: the feature's direction, and a random one
# Scores against random examples alone, as in the paper; see `interp.features.table`.
_SCORE = "detection_random"


def text(config: ConfigDict, workdir: Path) -> str:
    """The table in Markdown, and who judged.

    Args:
      config: names the sweep, in `steer.name`.
      workdir: a run directory in which `interpret` and `evaluate` have finished.

    Raises:
      UserError: a file is missing or cannot be read.
    """
    evaluated = workdir / evaluate.FOLDER / config.steer.name
    for folder in (workdir / "interp", evaluated):
        storage.fetch(folder)
    summary = files.read_object(workdir / "interp" / "summary.json")
    files.read_object(evaluated / evaluate.SUMMARY)  # a sentence where the stage has not finished
    rows = [*_explained(workdir / "interp"), *_steered(evaluated / evaluate.RESULTS)]
    lines = [f"| {' | '.join(row)} |" for row in (_HEAD, ["---"] * len(_HEAD), *rows)]
    return "\n".join([*lines, "", f"Explained and scored by {summary['judge']}, ${summary['cost']:,.2f}."])


_HEAD = ["", "arXiv 2507.12950", "this run", "control"]


def _explained(folder: Path) -> list[list[str]]:
    features = pq.read_table(folder / "features.parquet", columns=["explanation", _SCORE])
    controls = pq.read_table(folder / "controls.parquet", columns=["control", _SCORE])
    controls = controls.filter(pc.equal(controls["control"], RAW))
    interpreted = features.num_rows - features["explanation"].null_count
    own, raw = (np.array(table[_SCORE].drop_null().to_pylist()) for table in (features, controls))
    return [
        ["features", "16,384", f"{features.num_rows:,}", ""],
        ["interpreted", "16,299 (99.5 %)", _count(interpreted, features.num_rows), ""],
        ["scored", "16,299", f"{len(own):,}", f"{len(raw):,}"],
        [f"detection above {GOOD_SCORE}", "288 (1.8 %)", *(_count((x > GOOD_SCORE).sum(), len(x)) for x in (own, raw))],
        [f"detection below {CHANCE}", "7,500 (46 %)", *(_count((x < CHANCE).sum(), len(x)) for x in (own, raw))],
    ]


def _steered(path: Path) -> list[list[str]]:
    columns = ["method", "strength", "on_target", "off_target", "no_change", "judge_on_target", "judge_off_target"]
    rows = [row for row in pq.read_table(path, columns=columns).to_pylist() if row["strength"]]
    methods = [[row for row in rows if row["method"] == method] for method in (_STEERED, _CONTROL)]
    judged = [[row for row in part if row["judge_on_target"] is not None] for part in methods]

    def on_target(row: dict[str, Any]) -> float:
        return float(row["judge_on_target"])

    def off_target(row: dict[str, Any]) -> float:
        return float(row["judge_off_target"])

    return [
        ["steered reports compared by the judge", "", *(f"{len(part):,}" for part in judged)],
        ["on-target changes in a report", "fewer", *(_mean([on_target(row) for row in part]) for part in judged)],
        ["off-target changes in a report", "more", *(_mean([off_target(row) for row in part]) for part in judged)],
        [
            "no observable change",
            "35 %",
            *(_share([on_target(row) + off_target(row) == 0 for row in part]) for part in judged),
        ],
        ["steered reports compared by the labeller", "", *(f"{len(part):,}" for part in methods)],
        *(
            [
                f"{name.replace('_', ' ')}, by the labeller",
                "",
                *(_share([row[name] for row in part]) for part in methods),
            ]
            for name in ("on_target", "off_target", "no_change")
        ),
    ]


def _count(n: int, of: int) -> str:
    return f"{n:,} ({n / of:.1%})" if of else "none"


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f}" if values else "none"


def _share(values: Sequence[bool]) -> str:
    return f"{np.mean(values):.0%}" if values else "none"
