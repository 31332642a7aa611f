"""Rates of what steering changed, with intervals, and the best strengths; the words are defined in `steer.evaluate`."""

import dataclasses
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy

from interp.scorers.bootstrap import percentile_interval, study_weights
from maira_jax.errors import UserError
from maira_jax.reports.quality import ReportQuality
from maira_jax.reports.vocabulary.history import PHRASES
from steer.methods.direction import NONE
from steer.outcome import ADDED, reward

RANDOM = "random"  # the method that adds random directions, which others are compared with
_MAX_DEGENERATE = 0.1  # of the texts at a strength: stronger ones are not looked at


class DirectionEffect(NamedTuple):
    """A direction and what it is to do."""

    concept: str
    method: str
    intended: str
    feature: int


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


def _where_known(name: str) -> RateMeasure:
    return RateMeasure(operator.itemgetter(name), lambda row: _whole(row) and row.get(name) is not None)


QUALITY = tuple(f"quality_{name}" for name in ReportQuality._fields)
HISTORY = ("history", "history_before", *(f"history_{kind}" for kind in PHRASES))
MEASURES = {
    "on_target": RateMeasure(lambda r: r["on_target"], lambda r: r["eligible"] and _whole(r)),
    "on_target_of_all": RateMeasure(lambda r: r["on_target"] and _whole(r), lambda r: r["eligible"]),
    "off_target": RateMeasure(lambda r: r["off_target"], _whole),
    "off_target_attributes": RateMeasure(lambda r: r["off_target_attributes"], _whole),
    "off_target_extent": RateMeasure(lambda r: r["off_target_extent"], _whole),
    "no_change": RateMeasure(lambda r: r["no_change"], _whole),
    "identical": RateMeasure(lambda r: r["identical"], _whole),
    "judge_on_target": RateMeasure(lambda r: r["judge_on_target"] > 0, _answered),
    "judge_off_target": RateMeasure(lambda r: r["judge_off_target"] > 0, _answered),
    "judge_no_change": RateMeasure(lambda r: not r["judge_on_target"] + r["judge_off_target"], _answered),
    "judge_score": RateMeasure(_harmonic, _answered),
    "degenerate": RateMeasure(lambda r: bool(r["degenerate"]), lambda r: True),
    "edit_distance": RateMeasure(lambda r: r["edit_distance"] / max(r["words"], 1), _whole),
    "repetition": RateMeasure(lambda r: r["repetition"], _whole),
    **{name: _where_known(name) for name in ("mean_nll", "nll_change")},
    **{name: _where_known(name) for name in (*QUALITY, *(f"{name}_change" for name in QUALITY))},
    "length": RateMeasure(lambda r: r["length"], _whole),
    "format_kept": RateMeasure(lambda r: r["format_kept"], _whole),
    **{name: RateMeasure(operator.itemgetter(name), _whole) for name in HISTORY},
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
        total, n = self._sums(rows, measure)
        if not n.sum():
            return {"rate": None, "low": None, "high": None, "n": 0}
        totals, ns = self._weights @ total, self._weights @ n  # [resamples] each
        low, high = percentile_interval(totals[ns > 0] / ns[ns > 0])
        rate = float(total.sum() / n.sum())
        return {"rate": round(rate, 6), "low": round(low, 6), "high": round(high, 6), "n": int(n.sum())}

    def difference(
        self, rows: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], measure: RateMeasure
    ) -> dict[str, Any]:
        """{"difference", "interval"}: the rate of `rows` minus that of `others`, both of the same resamples.

        Both are None where nothing counts in one of them.
        """
        sums = [self._sums(part, measure) for part in (rows, others)]
        if not all(n.sum() for _, n in sums):
            return {"difference": None, "interval": None}
        own, other = (total.sum() / n.sum() for total, n in sums)
        drawn = [(self._weights @ total, self._weights @ n) for total, n in sums]  # [resamples] each
        both = np.all([n > 0 for _, n in drawn], axis=0)
        low, high = percentile_interval(np.subtract(*(total[both] / n[both] for total, n in drawn)))
        return {"difference": round(float(own - other), 6), "interval": [round(low, 6), round(high, 6)]}

    def _sums(self, rows: Sequence[dict[str, Any]], measure: RateMeasure) -> tuple[np.ndarray, np.ndarray]:
        """Of each study the sum of a measure over the rows that count, and their number, float64 [studies] each."""
        total, n = np.zeros(len(self._index)), np.zeros(len(self._index))
        for row in rows:
            if measure.counts(row):
                total[self._index[row["study_id"]]] += measure.value(row)
                n[self._index[row["study_id"]]] += 1
        return total, n

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
    by_method: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for effect, group in reported.items():
        by_method[effect.method] += group
    originals = [row for row in rows if row["method"] == NONE]
    return {
        "studies": len({row["study_id"] for row in steered}),
        "unsteered": {
            "reports": len(originals),
            "degenerate": sum(bool(row["degenerate"]) for row in originals),
            "repetition": bootstrap.rate(originals, MEASURES["repetition"]),
            "mean_nll": bootstrap.rate(originals, MEASURES["mean_nll"]),
            **{name: bootstrap.rate(originals, MEASURES[name]) for name in QUALITY},
            **{name: bootstrap.rate(originals, MEASURES[name]) for name in HISTORY if name != "history_before"},
        },
        "headline": {method: bootstrap.rates(group) for method, group in sorted(by_method.items())},
        "above_random": {
            method: {name: bootstrap.difference(group, by_method[RANDOM], MEASURES[name]) for name in HEADLINE}
            for method, group in sorted(by_method.items())
            if RANDOM in by_method and method != RANDOM
        },
        "best": best,
        "rates": rates,
    }


def reported_rows(rows: Sequence[dict[str, Any]], seed: int) -> dict[str, list[dict[str, Any]]]:
    """By method the reports that the headline of `summarise` is about: at the best strengths, on the other half."""
    steered = [row for row in rows if row["method"] != NONE]
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for effect, group in _best(steered, StudyBootstrap([row["study_id"] for row in steered], 1, seed), seed)[1].items():
        found[effect.method] += group
    return dict(found)


def _halves(rows: Sequence[dict[str, Any]], seed: int) -> set[str]:
    """The studies on which strengths are chosen: every other one in a shuffled order."""
    studies = np.array(sorted({row["study_id"] for row in rows}))
    return set(np.random.default_rng([seed, 2]).permutation(studies)[::2].tolist())


def _best(
    rows: Sequence[dict[str, Any]], bootstrap: StudyBootstrap, seed: int
) -> tuple[list[dict[str, Any]], dict[DirectionEffect, list[dict[str, Any]]]]:
    """The best strength of each direction and intended effect, and the generations that it is reported on.

    Only eligible generations take part: what a direction does where its concept is already as intended is in `rates`.
    Where the half that chooses has no eligible study, `strength` is None.
    """
    choosing = _halves(rows, seed)
    groups: dict[DirectionEffect, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["eligible"]:
            groups[DirectionEffect(row["concept"], row["method"], row["intended"], row["feature"])].append(row)
    best: list[dict[str, Any]] = []
    reported: dict[DirectionEffect, list[dict[str, Any]]] = {}
    for effect, group in sorted(groups.items()):
        entry = effect._asdict()
        strength = _best_strength([row for row in group if row["study_id"] in choosing])
        if strength is None:
            best.append(entry | {"strength": None, "chosen_on": 0})
            continue
        rest = [row for row in group if row["strength"] == strength and row["study_id"] not in choosing]
        chosen_on = sum(row["strength"] == strength for row in group) - len(rest)
        best.append(entry | {"strength": strength, "chosen_on": chosen_on} | bootstrap.rates(rest))
        reported[effect] = rest
    return best, reported


def _best_strength(rows: Iterable[dict[str, Any]]) -> float | None:
    """The strength with the largest sum of rewards, of those before texts degenerate; None without rows."""
    by_strength: dict[float, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_strength[row["strength"]].append(row)
    best: tuple[int, float] | None = None
    for strength, own in sorted(by_strength.items(), key=lambda pair: abs(pair[0])):
        if best and sum(bool(row["degenerate"]) for row in own) > _MAX_DEGENERATE * len(own):
            break
        total = sum(map(reward, own))
        if best is None or total > best[0]:
            best = total, strength
    return best and best[1]


def selection_rates(
    rows: Sequence[dict[str, Any]], scores: Iterable[Mapping[str, Any]], n_resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """What the features did that each rule of selection chose first, and how its scores go with what features did.

    Args:
      rows: rows of `steer.evaluate.SCHEMA`.
      scores: rows of `steer.selection.choose.SCHEMA`.
      n_resamples: the number of resamples for each interval.
      seed: the seed of the resamples, and of the halves of the studies.

    Returns:
      By rule `methods`, by method the rates over all concepts of the feature with the rule's largest score, at the best
      strengths; and `spearman`, the rank correlation of the score with the share on target minus the share off target
      where "add" was to add the concept, over all features that were steered for a concept; with `low` and `high`, an
      interval over them, and their number `n`. None with fewer than three, or where all are equal.
    """
    steered = [row for row in rows if row["method"] != NONE]
    bootstrap = StudyBootstrap([row["study_id"] for row in steered], n_resamples, seed)
    best, reported = _best(steered, bootstrap, seed)
    effects = {
        (row["concept"], row["feature"]): row["on_target"]["rate"] - row["off_target"]["rate"]
        for row in best
        if row["method"] == "add" and row["intended"] == ADDED and row.get("on_target", {}).get("rate") is not None
    }
    by_rule: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for score in scores:
        by_rule[score["rule"]].append(score)
    found = {}
    for rule, own in by_rule.items():
        first = {(score["concept"], score["feature"]) for score in own if score["rank"] == 1}
        methods: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for effect, group in reported.items():
            if (effect.concept, effect.feature) in first:
                methods[effect.method] += group
        pairs = {(score["concept"], score["feature"]): score["score"] for score in own}
        known = [(pairs[key], effect) for key, effect in effects.items() if key in pairs]
        found[rule] = {
            "methods": {method: bootstrap.rates(group) for method, group in sorted(methods.items())}
        } | _rank_correlation(np.array(known).reshape(-1, 2), n_resamples, seed)
    return found


def _rank_correlation(pairs: np.ndarray, n_resamples: int, seed: int) -> dict[str, Any]:
    """Spearman's rank correlation of two columns [n, 2], with its bootstrap interval over the rows."""
    empty = {"spearman": None, "low": None, "high": None, "n": len(pairs)}
    if len(pairs) < 3 or (np.ptp(pairs, axis=0) == 0).any():
        return empty
    drawn = np.random.default_rng([seed, 3]).integers(len(pairs), size=(n_resamples, len(pairs)))
    differ = (np.ptp(pairs[drawn], axis=1) > 0).all(axis=1)  # [resamples]
    ranks = scipy.stats.rankdata(pairs[drawn[differ]], axis=1)  # [resamples, n, 2]
    ranks -= ranks.mean(axis=1, keepdims=True)
    resampled = ranks.prod(axis=2).sum(axis=1) / np.sqrt((ranks**2).sum(axis=1).prod(axis=1))  # [resamples]
    low, high = percentile_interval(resampled)
    return empty | {"spearman": float(scipy.stats.spearmanr(*pairs.T)[0]), "low": low, "high": high}
