"""Detection and fuzzing: can a judge tell from an explanation alone where in unseen contexts a feature fires?

The protocols of Paulo et al., arXiv 2410.13928. Detection shows activating contexts from every decile and as many
non-activating ones, and asks on which the feature fires. Fuzzing shows activating contexts, half of them with the
activating tokens marked and half with as many others, and asks in which the marks are right. Both shuffled, five in a
prompt, the answer a list of 0 and 1, and balanced, so that chance is 0.5.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from interp.exemplars import N_DECILES
from interp.explain import MARK_ABOVE, ImageAt, image_at, marked, shown_text
from interp.judge import DetectTask, FuzzTask, Judge


@dataclasses.dataclass(frozen=True)
class ScoringSet:
    """The held-out examples of a feature, in the order in which they are shown.

    Attributes:
      feature: its number.
      kind: `DetectTask` or `FuzzTask`.
      lines: the contexts as shown.
      images: for each the image that it is a part of, or None.
      truth: bool [n], whether the feature fires; or whether the marked tokens are the activating ones.
      decile: int [n], -1 where it does not fire.
    """

    feature: int
    kind: type[DetectTask] | type[FuzzTask]
    lines: tuple[str, ...]
    images: tuple[ImageAt | None, ...]
    truth: np.ndarray
    decile: np.ndarray

    def tasks(self, explanation: str, n_prompt: int) -> list[DetectTask | FuzzTask]:
        """The prompts, `n_prompt` examples each (the last may be shorter)."""
        parts = [slice(begin, begin + n_prompt) for begin in range(0, len(self.lines), n_prompt)]
        if self.kind is FuzzTask:
            return [FuzzTask(explanation, self.lines[part]) for part in parts]
        return [DetectTask(explanation, self.lines[part], self.images[part]) for part in parts]


@dataclasses.dataclass(frozen=True)
class Score:
    """Scores of one explanation.

    Attributes:
      accuracy, balanced_accuracy, precision, recall, f1: over the answered examples; a ratio without cases is 0.
      by_decile: accuracy on the true examples of each decile, weakest first; None without answered examples.
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


def detection_set(feature: int, rows: Iterable[Mapping[str, Any]], n_least: int, seed: int) -> ScoringSet | str:
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
    return ScoringSet(
        feature,
        DetectTask,
        tuple(shown_text(row["section"], row["tokens"]) for row in kept),
        tuple(image_at(row) for row in kept),
        np.array([row["kind"] == "decile" for row in kept]),
        np.array([-1 if row["decile"] is None else row["decile"] for row in kept]),
    )


def fuzzing_set(feature: int, rows: Iterable[Mapping[str, Any]], seed: int) -> ScoringSet | None:
    """Makes the balanced, shuffled set of a feature for fuzzing; only activating held-out rows are used, each once.

    Tokens are marked as the explainer saw them marked. Wrong marks are the right ones moved, around the end if need be,
    to tokens without activation, so that their shape gives nothing away; contexts where that cannot be done, such as
    images, which are one token, are left out.

    Args:
      feature, rows, seed: as for `detection_set`.

    Returns:
      The set, or None where there are not two contexts to make it of.
    """
    eligible = []
    for row in rows:
        if row["split"] == "held_out" and row["kind"] == "decile":
            activations = np.asarray(row["activations"])
            strong = activations > MARK_ABOVE * activations.max()
            moved = [np.roll(strong, shift) for shift in range(1, len(strong))]
            elsewhere = [marks for marks in moved if not (marks & (activations > 0)).any()]
            if elsewhere:
                eligible.append((row, strong, elsewhere))
    n = len(eligible) // 2 * 2
    if not n:
        return None
    rng = np.random.default_rng((seed, feature, 1))
    kept = [eligible[i] for i in rng.permutation(len(eligible))[:n]]
    truth = rng.permutation(np.arange(n) % 2 == 0)
    lines = []
    for (row, strong, elsewhere), right in zip(kept, truth, strict=True):
        marks = strong if right else elsewhere[rng.integers(len(elsewhere))]
        lines.append(marked(row["section"], row["tokens"], marks.tolist()))
    decile = np.array([row["decile"] for row, _, _ in kept])
    return ScoringSet(feature, FuzzTask, tuple(lines), (None,) * n, truth, decile)


def run(
    judge: Judge, sets: Sequence[ScoringSet], explanations: Sequence[str], n_prompt: int
) -> list[tuple[Score, float]]:
    """Scores one explanation for each set; all sets are of the same kind.

    Returns:
      For each set its score, and what the judge's answers cost in US dollars.
    """
    groups = [examples.tasks(text, n_prompt) for examples, text in zip(sets, explanations, strict=True)]
    tasks: list[Any] = [task for group in groups for task in group]
    fuzzing = any(examples.kind is FuzzTask for examples in sets)
    verdicts = iter(judge.fuzz(tasks) if fuzzing else judge.detect(tasks))
    scores = []
    for examples, group in zip(sets, groups, strict=True):
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
