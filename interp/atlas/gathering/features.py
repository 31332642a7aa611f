"""The feature table as the page takes it: a list of all features, and the details of some together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from interp.atlas.disclosure import Disclosure
from interp.set_comparison import compare
from interp.sets import OWN_SET, read_set, set_names

PER_CHUNK = 16  # features whose details are in one chunk
# Columns of the list.
_LISTED = (
    *("name", "reason", "detection", "detection_shuffled", "f1", "n_examples", "density", "max_activation"),
    *("group", "concept", "concept_f1", "explanation_group"),
)
_PEAK_TOKENS = 5  # of the list; details have all
# Columns that the page does not show.
_NOT_SHOWN = {"feature", "judge", "prompt_version", "cost", "accuracy", "parent_share"} | {
    f"{name}_interval" for name in ("accuracy", "precision", "recall", "detection_random", "detection_hard", "fuzzing")
}
_SET_COLUMNS = ("name", "explanation", "score", "detection", "detection_interval", "f1", "n_examples")


def listed(table: pa.Table, disclosure: Disclosure) -> dict[str, list[Any]]:
    """The columns by which features are listed, searched and sorted."""
    columns = {name: rounded(table[name].to_pylist()) for name in _LISTED}
    columns["name"] = disclosure.texts(columns["name"])
    columns["top_tokens"] = [disclosure.texts(tokens[:_PEAK_TOKENS]) for tokens in table["top_tokens"].to_pylist()]
    sections = ([name for name, share in row.items() if (share or 0) >= 0.5] for row in table["sections"].to_pylist())
    columns["section"] = [next(iter(names), None) for names in sections]
    return columns


def details(table: pa.Table, begin: int, stop: int, disclosure: Disclosure) -> list[dict[str, Any]]:
    """All else that the page shows of the features begin to stop, one dictionary each."""
    names = [name for name in table.column_names if name not in _NOT_SHOWN and name not in _LISTED]
    rows = rounded(table.select(names).slice(begin, stop - begin).to_pylist())
    for row in rows:
        for name in ("explanation", "top_tokens"):
            row[name] = disclosure.texts(row[name])
        row["sections"] = {name: share for name, share in row["sections"].items() if share}
        row["histogram"] = _trimmed(row["histogram"])
    return rows


class OtherSets:
    """The sets of interpretations next to the run's own.

    Attributes:
      summary: of each set the number of "explained" features, the number of "scored" ones and their "mean" detection;
        and compared with the run's own, of features that both explain, how far the explanations agree ("agreement";
        those of different features: "agreement_shuffled") and the "spearman" correlation of the scores.
      names: of each set feature -> name.

    Args:
      workdir: the run directory.
      disclosure: what is told of studies.
    """

    def __init__(self, workdir: Path, disclosure: Disclosure):
        self.summary: dict[str, dict[str, Any]] = {}
        self.names: dict[str, dict[int, str]] = {}
        self._rows: dict[str, dict[int, dict[str, Any]]] = {}
        for name in set_names(workdir):
            if name == OWN_SET:
                continue
            table = read_set(workdir, name)
            rows = table.select([column for column in ("feature", *_SET_COLUMNS) if column in table.column_names])
            self._rows[name] = {row.pop("feature"): disclosure.texts(rounded(row)) for row in rows.to_pylist()}
            scores = [row["detection"] for row in self._rows[name].values() if row.get("detection") is not None]
            self.summary[name] = {"explained": table.num_rows, "scored": len(scores)}
            self.summary[name]["mean"] = sum(scores) / len(scores) if scores else None
            _, compared = compare(workdir, name)
            self.summary[name] |= {of: compared[of] for of in ("agreement", "agreement_shuffled")}
            self.summary[name]["spearman"] = compared["spearman"]["detection"]
            self.names[name] = {feature: row["name"] or row["explanation"] for feature, row in self._rows[name].items()}

    def of(self, feature: int) -> dict[str, dict[str, Any]]:
        """What each set says of a feature."""
        return {name: rows[feature] for name, rows in self._rows.items() if feature in rows}


def contexts(found: Sequence[Mapping[str, Any]], tokens: dict[str, int]) -> list[list[Any]]:
    """Contexts as lists: kind, decile, section, study, largest activation, tokens, heat; of images also the picture.

    Args:
      found: what `ContextReader` gives.
      tokens: number of each text, to which new ones are added.
    """
    rows = []
    for context in found:
        row = [context[name] for name in ("kind", "decile", "section", "study", "max")]
        row += [[tokens.setdefault(token, len(tokens)) for token in context["tokens"]], context["heat"]]
        if "picture" in context:
            picture = context["picture"]
            row.append([picture.number, picture.cell] if picture else None)
        rows.append(row)
    return rows


def rounded(value: Any) -> Any:
    """A JSON-like value with four digits of every fraction."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return value


def _trimmed(counts: Sequence[int]) -> list[Any]:
    """Most bins are empty: [first bin, counts from there on]."""
    filled = [i for i, count in enumerate(counts) if count]
    return [filled[0], counts[filled[0] : filled[-1] + 1]] if filled else [0, []]
