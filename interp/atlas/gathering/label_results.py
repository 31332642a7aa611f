"""What the label stage says of each feature: monosemanticity, correlations, and how heat maps agree with boxes."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from interp.atlas.gathering.features import rounded
from interp.atlas.gathering.results import is_finished, read_table
from interp.medsae.localisation import MEASURES, RANDOM_FEATURES
from interp.medsae.vectors import FEATURES


def neurons(folder: Path) -> list[dict[str, Any]] | None:
    """Each feature's monosemanticity and its correlation with the labels; None where the label stage has not run."""
    if not is_finished(folder):
        return None
    rows = read_table(folder / "neurons.parquet").select(["basis", "monosemanticity", "correlation"]).to_pylist()
    return [rounded({name: row[name] for name in list(row)[1:]}) for row in rows if row["basis"] == FEATURES]


def box_scores(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """How the heat maps of features agree with boxes, where any were scored.

    Args:
      folder: of the label stage.

    Returns:
      Feature -> for each "concept" that it was chosen for, the number of "images" that did not take part in the choice,
      the mean of each of `MEASURES` over these, and under "random" those of random features on the same images.
    """
    path = folder / "localisation.parquet"
    if not is_finished(folder) or not path.is_file():
        return {}
    table = read_table(path)
    kind = np.array(table["map"].to_pylist())
    own, random = (table.filter(pa.array(kind == name)) for name in (FEATURES, RANDOM_FEATURES))
    keys = ["concept", "study_id"]
    drawn = {tuple(row[key] for key in keys): row for row in random.select([*keys, *MEASURES]).to_pylist()}
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in own.to_pylist():
        groups.setdefault((row["neuron"], row["concept"]), []).append(row)
    found: dict[int, list[dict[str, Any]]] = {}
    for (feature, concept), rows in groups.items():
        others = [drawn[row["concept"], row["study_id"]] for row in rows if drawn]
        entry = {"concept": concept, "images": len(rows)} | _means(rows) | {"random": _means(others)}
        found.setdefault(feature, []).append(rounded(entry))
    return found


def _means(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    values = {measure: [row[measure] for row in rows if np.isfinite(row[measure])] for measure in MEASURES}
    return {measure: sum(kept) / len(kept) if kept else None for measure, kept in values.items()}
