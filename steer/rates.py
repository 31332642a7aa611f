"""Rates of what steering changed, with intervals, and the best strengths; the words are defined in `steer.evaluate`."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from interp.scorers.bootstrap import percentile_interval, study_weights
from maira_jax.errors import UserError
from steer.methods.direction import NONE


@dataclasses.dataclass(frozen=True)
class RateMeasure:
    """A rate over generations.

    Attributes:
      value: what is measured of a row; its mean over the rows that count is the rate.
      counts: whether a row counts.
    """

    value: Callable[[dict[str, Any]], float]
    counts: Callable[[dict[str, Any]], bool]


def _harmonic(row: dict[str, Any]) -> float:
    """The harmonic mean of a language model's three ratings."""
    concept = row["judge_concept"] if row["strength"] > 0 else 2 - row["judge_concept"]
    ratings = (concept, row["judge_report"], row["judge_fluency"])
    return 3 / sum(1 / rating for rating in ratings) if all(ratings) else 0.0


def _whole(row: dict[str, Any]) -> bool:
    return not row["degenerate"]


def _answered(row: dict[str, Any]) -> bool:
    return _whole(row) and row.get("judge_concept") is not None


MEASURES = {
    "on_target": RateMeasure(lambda r: r["on_target"], lambda r: r["eligible"] and _whole(r)),
    "on_target_of_all": RateMeasure(lambda r: r["on_target"] and _whole(r), lambda r: r["eligible"]),
    "off_target": RateMeasure(lambda r: r["off_target"], _whole),
    "off_target_attributes": RateMeasure(lambda r: r["off_target_attributes"], _whole),
    "no_change": RateMeasure(lambda r: r["no_change"], _whole),
    "identical": RateMeasure(lambda r: r["identical"], _whole),
    "judge_on_target": RateMeasure(lambda r: r["judge_on_target"] > 0, _answered),
    "judge_off_target": RateMeasure(lambda r: r["judge_off_target"] > 0, _answered),
    "judge_no_change": RateMeasure(lambda r: not r["judge_on_target"] + r["judge_off_target"], _answered),
    "judge_score": RateMeasure(_harmonic, _answered),
    "degenerate": RateMeasure(lambda r: bool(r["degenerate"]), lambda r: True),
    "edit_distance": RateMeasure(lambda r: r["edit_distance"] / max(r["words"], 1), _whole),
    "repetition": RateMeasure(lambda r: r["repetition"], _whole),
    "mean_nll": RateMeasure(lambda r: r["mean_nll"], lambda r: _whole(r) and r["mean_nll"] is not None),
}
HEADLINE = ("on_target", "on_target_of_all", "off_target", "no_change", "degenerate")


class StudyBootstrap:
    """Rates with bootstrap intervals over studies.

    Args:
      studies: the study of every generation.
      n_resamples: the number of resamples of the studies.
      seed: the seed of the resamples.
    """

    def __init__(self, studies: Iterable[str], n_resamples: int, seed: int):
        self._index = {study: i for i, study in enumerate(sorted(set(studies)))}
        self._weights = study_weights(len(self._index), n_resamples, (seed, 1))  # [resamples, studies]

    def rate(self, rows: Sequence[dict[str, Any]], measure: RateMeasure) -> dict[str, Any]:
        """{"rate", "low", "high", "n"}; the first three are None where nothing counts."""
        total, n = np.zeros(len(self._index)), np.zeros(len(self._index))  # [studies] each
        for row in rows:
            if measure.counts(row):
                total[self._index[row["study_id"]]] += measure.value(row)
                n[self._index[row["study_id"]]] += 1
        if not n.sum():
            return {"rate": None, "low": None, "high": None, "n": 0}
        totals, ns = self._weights @ total, self._weights @ n  # [resamples] each
        low, high = percentile_interval(totals[ns > 0] / ns[ns > 0])
        rate = float(total.sum() / n.sum())
        return {"rate": round(rate, 6), "low": round(low, 6), "high": round(high, 6), "n": int(n.sum())}

    def rates(self, rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The rates of all `MEASURES`."""
        return {name: self.rate(rows, measure) for name, measure in MEASURES.items()}


def summarise(rows: Sequence[dict[str, Any]], n_resamples: int, seed: int) -> dict[str, Any]:
    """Rates, best strengths and the headline of an evaluation.

    Args:
      rows: rows of `steer.evaluate.SCHEMA`.
      n_resamples: the number of resamples of the studies for each interval.
      seed: the seed of the resamples, and of the halves of the studies.

    Raises:
      UserError: no row is steered.
    """
    steered = [row for row in rows if row["method"] != NONE]
    if not steered:
        raise UserError("there is no steered report to evaluate: steer with at least one direction")
    bootstrap = StudyBootstrap([row["study_id"] for row in steered], n_resamples, seed)
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
        "studies": len({row["study_id"] for row in steered}),
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
    studies = np.array(sorted({row["study_id"] for row in rows}))
    return set(np.random.default_rng([seed, 2]).permutation(studies)[::2].tolist())


def _best(
    rows: Sequence[dict[str, Any]], bootstrap: StudyBootstrap, seed: int
) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """The best strength of each concept, feature, method and intended effect, and the generations it is reported on.

    The latter are by method.

    Only eligible generations take part: what a direction does where its concept is already as intended is in `rates`.
    Where the half that chooses has no eligible study, `strength` is None.
    """
    choosing = _halves(rows, seed)
    groups: dict[tuple[str, str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["eligible"]:
            groups[row["concept"], row["method"], row["intended"], row["feature"]].append(row)
    best: list[dict[str, Any]] = []
    reported: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for (concept, method, intended, feature), group in sorted(groups.items()):
        scores: dict[float, int] = defaultdict(int)
        for row in group:
            if row["study_id"] in choosing:
                scores[row["strength"]] += row["on_target"] - row["off_target"] if _whole(row) else -1
        entry = {"concept": concept, "method": method, "intended": intended, "feature": feature}
        if not scores:
            best.append(entry | {"strength": None, "chosen_on": 0})
            continue
        strength = max(scores, key=lambda s: (scores[s], -abs(s)))
        rest = [row for row in group if row["strength"] == strength and row["study_id"] not in choosing]
        chosen_on = sum(row["strength"] == strength for row in group) - len(rest)
        best.append(entry | {"strength": strength, "chosen_on": chosen_on} | bootstrap.rates(rest))
        reported[method] += rest
    return best, reported


def selection_correlations(
    best: Iterable[dict[str, Any]], targets: Iterable[Mapping[str, Any]], method: str = "add"
) -> dict[str, dict[str, Any]]:
    """How the scores by which features are selected go with what steering then did.

    Args:
      best: the best strengths, of `summarise`.
      targets: the targets of the directions, each with `concept`, `feature`, `f1` and `score`.
      method: the method whose effects count: the share on target minus the share off target, where a concept was added.

    Returns:
      By score ("f1", "score") Spearman's rank correlation over the features of all concepts, and their number; None
      with fewer than three, or where all are equal.
    """
    known = {(target["concept"], target["feature"]): target for target in targets}
    effects = {
        (row["concept"], row["feature"]): row["on_target"]["rate"] - row["off_target"]["rate"]
        for row in best
        if row["method"] == method and row["intended"] == "added" and row.get("on_target", {}).get("rate") is not None
    }
    found = {}
    for name in ("f1", "score"):
        pairs = [
            (known[key][name], effect) for key, effect in effects.items() if known.get(key, {}).get(name) is not None
        ]
        differ = len(pairs) >= 3 and all(len(set(values)) > 1 for values in zip(*pairs, strict=True))
        found[name] = {"spearman": float(spearmanr(*zip(*pairs, strict=True))[0]) if differ else None, "n": len(pairs)}
    return found
