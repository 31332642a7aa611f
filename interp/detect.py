"""Detection scoring: can a judge tell from an explanation alone on which unseen contexts a feature fires?

The protocol of Paulo et al., arXiv 2410.13928: activating contexts from every decile and as many non-activating ones,
shuffled, five in a prompt, the answer a list of 0 and 1. The set is balanced, so chance is 0.5.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from interp.exemplars import N_DECILES
from interp.explain import shown_text
from interp.judge import DetectTask, Judge


@dataclasses.dataclass(frozen=True)
class DetectionSet:
    """The held-out examples of a feature, in the order in which they are shown.

    Attributes:
      feature: its number.
      lines: the contexts as shown.
      truth: bool [n], whether the feature fires.
      decile: int [n], -1 where it does not.
    """

    feature: int
    lines: tuple[str, ...]
    truth: np.ndarray
    decile: np.ndarray

    def tasks(self, explanation: str, n_prompt: int) -> list[DetectTask]:
        """The prompts, `n_prompt` examples each (the last may be shorter)."""
        return [
            DetectTask(explanation, self.lines[begin : begin + n_prompt])
            for begin in range(0, len(self.lines), n_prompt)
        ]


@dataclasses.dataclass(frozen=True)
class Score:
    """Detection scores of one explanation.

    Attributes:
      accuracy, balanced_accuracy, precision, recall, f1: over the answered examples; a ratio without cases is 0.
      by_decile: accuracy on the activating examples of each decile, weakest first; None without answered examples.
      n_examples: answered examples.
      n_failed: examples without an answer; they count nowhere else.
    """

    accuracy: float
    balanced_accuracy: float
    precision: float
    recall: float
    f1: float
    by_decile: tuple[float | None, ...]
    n_examples: int
    n_failed: int


def build_set(feature: int, rows: Iterable[Mapping[str, Any]], n_least: int, seed: int) -> DetectionSet | str:
    """Makes the balanced, shuffled set of a feature from its exemplar rows; only held-out rows are used.

    Args:
      feature: its number.
      rows: of `interp.exemplars.SCHEMA`.
      n_least: fewest examples of each class.
      seed: of the shuffle and of what is left out to balance.

    Returns:
      The set, or the reason why there is none.
    """
    held_out = [row for row in rows if row["split"] == "held_out"]
    activating = [row for row in held_out if row["kind"] == "decile"]
    silent = [row for row in held_out if row["kind"] == "random"]
    if len(activating) < n_least:
        return f"active in fewer than {n_least} held-out contexts"
    if len(silent) < n_least:
        return f"silent in fewer than {n_least} of the sampled held-out contexts"
    rng = np.random.default_rng((seed, feature))
    n = min(len(activating), len(silent))
    # Random order first: cutting to `n` then leaves out examples of all deciles alike.
    kept = [activating[i] for i in rng.permutation(len(activating))[:n]]
    kept += [silent[i] for i in rng.permutation(len(silent))[:n]]
    kept = [kept[i] for i in rng.permutation(len(kept))]
    return DetectionSet(
        feature,
        tuple(shown_text(row["section"], row["tokens"]) for row in kept),
        np.array([row["kind"] == "decile" for row in kept]),
        np.array([-1 if row["decile"] is None else row["decile"] for row in kept]),
    )


def run_detection(
    judge: Judge, sets: Sequence[DetectionSet], explanations: Sequence[str], n_prompt: int
) -> list[tuple[Score, float]]:
    """Scores one explanation for each set.

    Returns:
      For each set its score, and what the judge's answers cost in US dollars.
    """
    tasks = [examples.tasks(text, n_prompt) for examples, text in zip(sets, explanations, strict=True)]
    verdicts = iter(judge.detect([task for group in tasks for task in group]))
    scores = []
    for examples, group in zip(sets, tasks, strict=True):
        cost = 0.0
        answers: list[int] = []  # -1 where the judge gave none
        for task in group:
            verdict = next(verdicts)
            cost += verdict.cost if verdict else 0.0
            answers += verdict.answers if verdict else (-1,) * len(task.examples)
        scores.append((score(examples.truth, examples.decile, np.array(answers)), cost))
    return scores


def score(truth: np.ndarray, decile: np.ndarray, answers: np.ndarray) -> Score:
    """Compares answers with the truth.

    Args:
      truth: bool [n].
      decile: int [n], -1 for non-activating examples.
      answers: int [n]: 0, 1, or -1 for none.
    """
    answered = answers >= 0
    yes, no = answered & truth, answered & ~truth
    hits, false_alarms = int((answers[yes] == 1).sum()), int((answers[no] == 1).sum())
    recall, specificity = _ratio(hits, yes.sum()), _ratio(no.sum() - false_alarms, no.sum())
    by_decile = tuple(
        float((answers[yes & (decile == d)] == 1).mean()) if (yes & (decile == d)).any() else None
        for d in range(N_DECILES)
    )
    return Score(
        accuracy=_ratio(hits + no.sum() - false_alarms, answered.sum()),
        balanced_accuracy=(recall + specificity) / 2,
        precision=_ratio(hits, hits + false_alarms),
        recall=recall,
        f1=_ratio(2 * hits, hits + false_alarms + yes.sum()),
        by_decile=by_decile,
        n_examples=int(answered.sum()),
        n_failed=int((~answered).sum()),
    )


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
