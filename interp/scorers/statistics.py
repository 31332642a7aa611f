"""What a judge's answers are worth: measures of a yes-or-no test, with bootstrap intervals over studies.

Sentences of one study are not independent, and the hard negatives come on purpose from the studies of the activating
examples; so whole studies are drawn, not examples.
"""

import dataclasses

import numpy as np

from interp.exemplars.selection import KINDS, N_DECILES, NEAREST, RANDOM
from interp.scorers.bootstrap import percentile_interval, study_weights

# Columns of the counts: yes to true examples, true examples; then yes and all for each kind of false ones.
_HITS, _TRUE, _FALSE = 0, 1, 2

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Score:
    """Scores of one explanation.

    Attributes:
      accuracy, balanced_accuracy, precision, recall, f1: over the answered examples; a ratio without cases is 0.
      against_random, against_hard: balanced accuracy with the random, or the hard, false examples alone; None without.
      by_decile: accuracy on the true examples of each decile, weakest first; None without answered examples.
      by_negative: accuracy on the false examples of each kind (see `selection.NON_ACTIVATING_KINDS`); None without.
      intervals: measure -> 95 % bootstrap interval over studies.
      n_examples: answered examples.
      n_failed: examples without an answer; they count nowhere else.
    """

    accuracy: float
    balanced_accuracy: float
    precision: float
    recall: float
    f1: float
    against_random: float | None
    against_hard: float | None
    by_decile: tuple[float | None, ...]
    by_negative: dict[str, float | None]
    intervals: dict[str, Interval]
    n_examples: int
    n_failed: int


def score(
    truth: np.ndarray,
    decile: np.ndarray,
    kind: np.ndarray,
    study: np.ndarray,
    answers: np.ndarray,
    n_bootstrap: int,
    seed: int,
) -> Score:
    """Compares answers with the truth.

    Args:
      truth: bool [n], the right answers.
      decile: int [n], the activation decile, -1 where there is none.
      kind: int [n], the kind of exemplar, as an index into `interp.exemplars.selection.KINDS`.
      study: int [n], the number of the study.
      answers: int [n], 0 or 1, or -1 where there is no answer.
      n_bootstrap: number of resamples of the studies.
      seed: seed of the resamples.
    """
    answered = answers >= 0
    counts = _by_study(truth, kind, study, answers)  # [studies, columns]
    totals = counts.sum(0)
    point = measures(totals)
    drawn = measures(study_weights(len(counts), n_bootstrap, (seed, len(counts))) @ counts)
    yes = answers == 1
    return Score(
        **{name: float(np.nan_to_num(point[name])) for name in ("accuracy", "precision", "recall", "f1")},
        balanced_accuracy=float(np.nan_to_num(point["balanced_accuracy"])),
        against_random=_number(point["against_random"]),
        against_hard=_number(point["against_hard"]),
        by_decile=tuple(_mean(yes[answered & truth & (decile == d)]) for d in range(N_DECILES)),
        by_negative={KINDS[k]: _mean(~yes[answered & ~truth & (kind == k)]) for k in range(RANDOM, len(KINDS))},
        intervals={
            name: percentile_interval(values)
            for name, values in drawn.items()
            if np.isfinite(point[name]) and np.isfinite(values).any()
        },
        n_examples=int(answered.sum()),
        n_failed=int((~answered).sum()),
    )


def measures(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Measures from counts [..., columns], NaN where a class has no examples.

    Precision and F1 of a judge that never says yes are 0.
    """
    hits, true = counts[..., _HITS], counts[..., _TRUE]
    alarms, false = counts[..., _FALSE::2], counts[..., _FALSE + 1 :: 2]  # [..., kinds of false examples]
    hard = slice(NEAREST - RANDOM, None)
    recall = _ratio(hits, true)

    def balanced(of: slice) -> np.ndarray:
        return (recall + 1 - _ratio(alarms[..., of].sum(-1), false[..., of].sum(-1))) / 2

    all_alarms, all_false = alarms.sum(-1), false.sum(-1)
    return {
        "accuracy": _ratio(hits + all_false - all_alarms, true + all_false),
        "balanced_accuracy": balanced(slice(None)),
        "against_random": balanced(slice(0, hard.start)),
        "against_hard": balanced(hard),
        "precision": hits / np.maximum(hits + all_alarms, 1),
        "recall": recall,
        "f1": _ratio(2 * hits, hits + all_alarms + true),
    }


def _by_study(truth: np.ndarray, kind: np.ndarray, study: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Counts of the answered examples, float64 [studies, columns]."""
    unique, row = np.unique(study, return_inverse=True)
    counts = np.zeros((len(unique), _FALSE + 2 * (len(KINDS) - RANDOM)))
    column = np.where(truth, _HITS, _FALSE + 2 * np.maximum(kind - RANDOM, 0))
    answered = answers >= 0
    np.add.at(counts, (row[answered], column[answered]), answers[answered])
    np.add.at(counts, (row[answered], column[answered] + 1), 1)
    return counts


def mean_interval(values: np.ndarray, n_bootstrap: int, seed: int) -> Interval | None:
    """Bootstrap interval of a mean over features; None without values."""
    if not len(values):
        return None
    return percentile_interval(np.random.default_rng(seed).choice(values, (n_bootstrap, len(values))).mean(1))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


def _number(value: np.ndarray) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
