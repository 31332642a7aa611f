"""The evaluate stage: what steering changed, what of it was intended, and how sure that is.

Words used in the results, for a generation that steers towards a concept (intended: "added", positive strength) or away
from it (intended: "removed", negative strength):

* eligible: the unsteered report does not have the concept ("added"), or has it ("removed").
* on_target, the success: eligible, and the steered report has the concept (or no longer has it), as
  `maira_jax.reports.labeller.concepts` reads both reports. Its rate is over eligible generations.
* off_target: a finding that the concept is not about became present, uncertain or neither. Its rate
  is over all generations. Attributes (size, comparison, tip) of other findings are counted in off_target_attributes.
* no_change: no finding, attribute or concept changed; "identical": not one character did.
* repetition: the share of its four-word runs that a report repeats. mean_nll: the report's mean negative
  log-likelihood under the unsteered model, in nats per token; its exponential is the perplexity.
* degenerate: empty, repetitive, without an end or of numbers that are not finite. Such generations are counted, and
  left out of all rates but "on_target_of_all", where they are failures.

Where a language model judges, it is shown the explanation of the feature, the original and the steered report, and not
which way the feature was steered; it lists the differences, each on target or not, and rates the steered report for the
concept, for being a report, and for fluency, 0 to 2 each (AxBench's scores). "judge_score" is their harmonic mean, 0 if
one of them is 0; where the concept is to be removed, its rating counts as 2 less itself. These rates are over the
reports that it answered on.

Intervals are 95 % percentile bootstrap intervals over studies. The best strength of a concept, a method and an intended
effect is the one with the most on-target minus off-target generations (a degenerate one counts as off target) on one
half of the studies; its rates are those of the other half.
"""

import contextlib
import dataclasses
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interp.llm.client import ChatClient
from maira_jax.errors import UserError
from maira_jax.reports.changes import cached_parse, compare
from maira_jax.reports.text import degenerate, edit_distance, repetition, words_of
from maira_jax.run import files, jsonl
from maira_jax.run.config import Section, setting
from maira_jax.run.progress import progress
from maira_jax.run.stage import Stage
from steer import comparison
from steer.config import SteerSection
from steer.methods.direction import NONE
from steer.sweep import DIRECTIONS, GENERATIONS, folder

FOLDER = "evaluation"  # with a folder for each sweep in it
RESULTS = "results.parquet"
SUMMARY = "summary.json"
ADDED, REMOVED = "added", "removed"
_STRINGS = pa.list_(pa.string())
SCHEMA = pa.schema(
    [
        ("line", pa.int32()),  # the line's number in generations.jsonl, from 0
        ("study", pa.string()),
        ("direction", pa.string()),
        ("method", pa.string()),
        ("concept", pa.string()),  # "" when the direction has none
        ("feature", pa.int32()),
        ("strength", pa.float64()),
        ("intended", pa.string()),  # "added", "removed", or "" without a concept or a strength
        ("eligible", pa.bool_()),
        ("on_target", pa.bool_()),
        ("off_target", pa.bool_()),
        ("off_target_attributes", pa.bool_()),
        ("no_change", pa.bool_()),
        ("identical", pa.bool_()),
        ("degenerate", pa.string()),  # why, "" if it is not
        ("added", _STRINGS),  # findings
        ("removed", _STRINGS),
        ("changed", _STRINGS),
        ("concepts", _STRINGS),
        ("edit_distance", pa.int32()),  # words
        ("repetition", pa.float64()),
        ("mean_nll", pa.float64()),  # nats per token
        ("words", pa.int32()),  # the length of the longer of the two reports
        # The language model's numbers of differences and its ratings; null where it did not judge.
        *((f"judge_{name}", pa.int32()) for name in ("on_target", "off_target", "concept", "report", "fluency")),
    ]
)


class EvaluateSection(Section, name="evaluate"):
    """How steered reports are compared with unsteered ones."""

    bootstrap: int = setting(1000, "Resamples of the studies for each interval.", ge=1)
    judge: Literal["none", "llm"] = setting(
        "none", "Who compares the reports besides the labeller: nobody, or the language model of the judge section."
    )
    judge_studies: int = setting(
        20, "Number of studies, from the first, whose reports the language model compares.", ge=1
    )


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Compares every steered report of a sweep with its original.

    Writes `evaluation/NAME/results.parquet`, one row per generation (see `SCHEMA`), and
    `evaluation/NAME/summary.json`: `rates` by method, strength and concept ("all": pooled), `best` strengths
    by concept, method and intended effect, and the `headline`, which pools the latter over concepts.

    Returns:
      The headline of each method, flat, and the number of generations.

    Raises:
      UserError: a field of `config.evaluate` is out of range, or the generations cannot be read.
    """
    section, name = EvaluateSection.of(config), SteerSection.of(config).name
    client = ChatClient.open(config, workdir) if section.judge == "llm" else None
    identity: dict[str, Any] = {"evaluate": section.deciding(), "seed": config.seed}
    if client:
        identity["judge"] = client.section.deciding() | {"prompts": [comparison.PROMPT.stem]}
    stage = Stage(workdir, f"{FOLDER}/{name}", identity, inputs=(folder(name),))
    with contextlib.closing(client) if client else contextlib.nullcontext(), stage:
        if stage.finished:
            return stage.manifest["counts"]
        path = Path(workdir) / folder(name) / GENERATIONS
        lines = jsonl.read(path, "steer again", required=("study", "direction", "strength", "settings"))
        rows = [_result(*numbered) for numbered in enumerate(progress(lines, unit="report", desc="evaluate"))]
        if client:
            _compare(client, rows, lines, files.read_json(path.parent / DIRECTIONS), section.judge_studies)
        with files.atomic_path(stage.dir / RESULTS) as path:
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
        summary = summarise(rows, section.bootstrap, config.seed)
        files.write_json(stage.dir / SUMMARY, summary)
        counts: dict[str, Any] = {"generations": len(rows), "degenerate": sum(bool(r["degenerate"]) for r in rows)}
        for method, rates in summary["headline"].items():
            counts |= {f"{method}_{measure}": rates[measure]["rate"] for measure in HEADLINE}
        stage.finish(counts)
        return counts


def _compare(
    client: ChatClient,
    rows: Sequence[dict[str, Any]],
    lines: Sequence[dict[str, Any]],
    directions: Sequence[dict[str, Any]],
    n_studies: int,
) -> None:
    """Adds a language model's comparisons to the rows of the first `n_studies` studies."""
    known = {direction["key"]: direction["target"] for direction in directions}
    chosen = set(list(dict.fromkeys(row["study"] for row in rows))[:n_studies])
    asked, pairs = [], []
    for row, line in zip(rows, lines, strict=True):
        target = known.get(row["direction"])
        explanation = target and (target["explanation"] or target["concept"])
        if row["study"] in chosen and explanation:
            asked.append(row)
            pairs.append(comparison.ReportPair(explanation, line["original"], line["steered"]))
    with client.counting() as count:
        deque(comparison.compare(client, pairs), maxlen=0)
    client.announce(count, 1.0)
    for row, answer in zip(asked, comparison.compare(client, pairs), strict=True):
        if answer:
            row |= {f"judge_{name}": value for name, value in answer._asdict().items()}


def _harmonic(row: dict[str, Any]) -> float:
    """The harmonic mean of a language model's three ratings."""
    concept = row["judge_concept"] if row["strength"] > 0 else 2 - row["judge_concept"]
    ratings = (concept, row["judge_report"], row["judge_fluency"])
    return 3 / sum(1 / rating for rating in ratings) if all(ratings) else 0.0


def _result(number: int, line: dict[str, Any]) -> dict[str, Any]:
    """The row of `SCHEMA` for one generation."""
    settings, original, steered = line["settings"], line["original"], line["steered"]
    concept, strength = settings["concept"], line["strength"]
    found = compare(original, steered, concept, settings.get("also", ()))
    before, after = words_of(original), words_of(steered)
    was, now = cached_parse(original).concepts.get(concept), cached_parse(steered).concepts.get(concept)
    steered_for = bool(strength) and was is not None  # a concept that the labeller knows
    wanted = strength > 0
    return {
        "line": number,
        "study": line["study"],
        "direction": line["direction"],
        "method": settings["method"],
        "concept": concept,
        "feature": settings["feature"],
        "strength": strength,
        "intended": "" if not steered_for else ADDED if wanted else REMOVED,
        "eligible": steered_for and was != wanted,
        "on_target": steered_for and was != wanted and now == wanted,
        "off_target": found.off_target,
        "off_target_attributes": found.off_target_attributes,
        "no_change": found.none,
        "identical": original == steered,
        "degenerate": degenerate(steered, line["finished"], line.get("finite", True)),
        "added": list(found.added),
        "removed": list(found.removed),
        "changed": list(found.changed),
        "concepts": list(found.concepts),
        "edit_distance": edit_distance(before, after),
        "repetition": repetition(steered),
        "mean_nll": line.get("mean_nll"),
        "words": max(len(before), len(after)),
    }


# --------------------------------------------------------------------------------------------- rates
@dataclasses.dataclass(frozen=True)
class _Measure:
    """A rate: of the rows that count, the share (or mean) of what is measured."""

    value: Callable[[dict[str, Any]], float]
    counts: Callable[[dict[str, Any]], bool]


def _whole(row: dict[str, Any]) -> bool:
    return not row["degenerate"]


def _answered(row: dict[str, Any]) -> bool:
    return _whole(row) and row.get("judge_concept") is not None


MEASURES = {
    "on_target": _Measure(lambda r: r["on_target"], lambda r: r["eligible"] and _whole(r)),
    "on_target_of_all": _Measure(lambda r: r["on_target"] and _whole(r), lambda r: r["eligible"]),
    "off_target": _Measure(lambda r: r["off_target"], _whole),
    "off_target_attributes": _Measure(lambda r: r["off_target_attributes"], _whole),
    "no_change": _Measure(lambda r: r["no_change"], _whole),
    "identical": _Measure(lambda r: r["identical"], _whole),
    "judge_on_target": _Measure(lambda r: r["judge_on_target"] > 0, _answered),
    "judge_off_target": _Measure(lambda r: r["judge_off_target"] > 0, _answered),
    "judge_no_change": _Measure(lambda r: not r["judge_on_target"] + r["judge_off_target"], _answered),
    "judge_score": _Measure(_harmonic, _answered),
    "degenerate": _Measure(lambda r: bool(r["degenerate"]), lambda r: True),
    "edit_distance": _Measure(lambda r: r["edit_distance"] / max(r["words"], 1), _whole),
    "repetition": _Measure(lambda r: r["repetition"], _whole),
    "mean_nll": _Measure(lambda r: r["mean_nll"], lambda r: _whole(r) and r["mean_nll"] is not None),
}
HEADLINE = ("on_target", "on_target_of_all", "off_target", "no_change", "degenerate")


class _Bootstrap:
    """Intervals of rates over studies: every resample gives each study a weight."""

    def __init__(self, studies: Sequence[str], resamples: int, seed: int):
        self._index = {study: i for i, study in enumerate(sorted(set(studies)))}
        n = len(self._index)
        rng = np.random.default_rng([seed, 1])
        self._weights = rng.multinomial(n, np.full(n, 1 / n), resamples).astype(np.float64)  # [resamples, studies]

    def rate(self, rows: Sequence[dict[str, Any]], measure: _Measure) -> dict[str, Any]:
        """{"rate", "low", "high", "n"}; the first three are None where nothing counts."""
        total, n = np.zeros(len(self._index)), np.zeros(len(self._index))
        for row in rows:
            if measure.counts(row):
                total[self._index[row["study"]]] += measure.value(row)
                n[self._index[row["study"]]] += 1
        if not n.sum():
            return {"rate": None, "low": None, "high": None, "n": 0}
        totals, ns = self._weights @ total, self._weights @ n
        low, high = np.percentile(totals[ns > 0] / ns[ns > 0], [2.5, 97.5])
        return {
            "rate": round(float(total.sum() / n.sum()), 6),
            "low": round(float(low), 6),
            "high": round(float(high), 6),
            "n": int(n.sum()),
        }

    def rates(self, rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {name: self.rate(rows, measure) for name, measure in MEASURES.items()}


def summarise(rows: Sequence[dict[str, Any]], resamples: int, seed: int) -> dict[str, Any]:
    """Rates, best strengths and the headline of rows of `SCHEMA`."""
    steered = [row for row in rows if row["method"] != NONE]
    if not steered:
        raise UserError("there is no steered report to evaluate: steer with at least one direction")
    bootstrap = _Bootstrap([row["study"] for row in steered], resamples, seed)
    groups: dict[tuple[str, float, str], list[dict[str, Any]]] = defaultdict(list)
    for row in steered:
        groups[row["method"], row["strength"], "all"].append(row)
        groups[row["method"], row["strength"], row["concept"]].append(row)
    rates = [
        {"method": method, "strength": strength, "concept": concept} | bootstrap.rates(group)
        for (method, strength, concept), group in sorted(groups.items())
    ]
    best, reported = _best(steered, bootstrap, seed)
    originals = [row for row in rows if row["method"] == NONE]
    return {
        "definitions": __doc__,
        "studies": len({row["study"] for row in steered}),
        "unsteered": {
            "reports": len(originals),
            "degenerate": sum(bool(row["degenerate"]) for row in originals),
            "repetition": bootstrap.rate(originals, MEASURES["repetition"]),
            "mean_nll": bootstrap.rate(originals, MEASURES["mean_nll"]),
        },
        "headline": {method: bootstrap.rates(group) for method, group in sorted(reported.items())},
        "best": best,
        "rates": rates,
    }


def _halves(rows: Sequence[dict[str, Any]], seed: int) -> set[str]:
    """The studies on which strengths are chosen: every other one in a shuffled order."""
    studies = np.array(sorted({row["study"] for row in rows}))
    return set(np.random.default_rng([seed, 2]).permutation(studies)[::2].tolist())


def _best(
    rows: Sequence[dict[str, Any]], bootstrap: _Bootstrap, seed: int
) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """The best strength of each concept, method and intended effect, and the generations it is reported on, by method.

    Only eligible generations take part: what a direction does where its concept is already as intended is in `rates`.
    Where the half that chooses has no eligible study, `strength` is None.
    """
    choosing = _halves(rows, seed)
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["eligible"]:
            groups[row["concept"], row["method"], row["intended"]].append(row)
    best: list[dict[str, Any]] = []
    reported: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for (concept, method, intended), group in sorted(groups.items()):
        scores: dict[float, int] = defaultdict(int)
        for row in group:
            if row["study"] in choosing:
                scores[row["strength"]] += row["on_target"] - row["off_target"] if _whole(row) else -1
        entry = {"concept": concept, "method": method, "intended": intended, "feature": group[0]["feature"]}
        if not scores:
            best.append(entry | {"strength": None, "chosen_on": 0})
            continue
        strength = max(scores, key=lambda s: (scores[s], -abs(s)))
        rest = [row for row in group if row["strength"] == strength and row["study"] not in choosing]
        chosen_on = sum(row["strength"] == strength for row in group) - len(rest)
        best.append(entry | {"strength": strength, "chosen_on": chosen_on} | bootstrap.rates(rest))
        reported[method] += rest
    return best, reported
