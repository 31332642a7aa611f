"""Which features a sweep steers: by number, by their explanation, or the best of each concept."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from maira_jax.errors import UserError
from steer.directions import Target


def choose(interp_dir: Path, features: Sequence[int], match: str, top: int) -> list[Target]:
    """Chooses features and the concept that each is meant to steer.

    Args:
      interp_dir: folder of the interpret stage.
      features: these features, if there are any; else
      match: features whose explanation matches this regular expression (case does not matter),
        strongest first, if it is not empty; else the best feature of each concept, by F1 on held-out
        studies, a feature that is the best of several concepts with the one that it detects best.
      top: at most so many.

    Returns:
      The targets. The concept of a feature that was named or matched is the one that it detects
      best among those whose best feature it is, else the longest one that its explanation names,
      else "".

    Raises:
      UserError: no such feature, or nothing matches.
    """
    table = _read(interp_dir / "features.parquet", ("feature", "explanation", "max_activation"))
    known = {row["feature"]: row for row in table.to_pylist()}
    rows = _read(interp_dir / "concepts.parquet", ("concept", "feature", "f1")).to_pylist()
    concepts = sorted((r for r in rows if r["feature"] in known), key=lambda r: -(r["f1"] or 0.0))
    if features:
        missing = [number for number in features if number not in known]
        if missing:
            raise UserError(
                f"steer.features names feature {missing[0]}, which {interp_dir / 'features.parquet'} does not hold: "
                "choose features of that table"
            )
        chosen = list(features)
    elif match:
        chosen = _matching(known, match)
    else:
        chosen = list(dict.fromkeys(row["feature"] for row in concepts))
        chosen = [number for number in chosen if known[number]["max_activation"] > 0]
        if not chosen:
            raise UserError(
                f"{interp_dir / 'concepts.parquet'} names no concept with a feature: name some in steer.features"
            )
    names = [row["concept"] for row in rows]
    return [_target(known[number], concepts, names) for number in chosen[:top]]


def _read(path: Path, columns: tuple[str, ...]) -> pa.Table:
    try:
        return pq.read_table(path, columns=list(columns))
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}): interpret again") from error


def _matching(known: dict[int, dict[str, Any]], match: str) -> list[int]:
    try:
        pattern = re.compile(match, re.IGNORECASE)
    except re.error as error:
        raise UserError(f"steer.match {match!r} is not a regular expression ({error}): mend it") from error
    found = [n for n, row in known.items() if pattern.search(row["explanation"] or "")]
    if not found:
        raise UserError(f"steer.match {match!r} matches no feature's explanation: choose other words")
    return sorted(found, key=lambda n: -known[n]["max_activation"])


def _target(row: dict[str, Any], concepts: list[dict[str, Any]], names: list[str]) -> Target:
    best = next((c for c in concepts if c["feature"] == row["feature"]), None)
    explanation = row["explanation"] or ""
    if best is not None:
        concept, f1 = best["concept"], best["f1"]
    else:
        inside = [name for name in names if re.search(rf"\b{re.escape(name)}\b", explanation, re.IGNORECASE)]
        concept, f1 = max(inside, key=len, default=""), None
    return Target(concept, row["feature"], float(row["max_activation"]), explanation, f1)
