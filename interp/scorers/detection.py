"""Detection and fuzzing: can a judge tell from an explanation alone where in unseen contexts a feature fires?

The protocols of Paulo et al., arXiv 2410.13928. Detection shows activating contexts from every decile and as many
non-activating ones, half of them hard to tell from those, and asks on which the feature fires. Fuzzing shows activating
contexts, half of them with the activating tokens marked and half with as many others, and asks in which the marks are
right. Both shuffled, five in a prompt, the answer a list of 0 and 1, and balanced, so that chance is 0.5.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from interp.exemplars.selection import KINDS, shown_non_activating
from interp.explainers.evidence import MARK_ABOVE, ImageAt, image_at, marked, shown_text
from interp.explainers.judge import DetectTask, FuzzTask, Judge
from interp.scorers.statistics import Score, score


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
      source: int [n], the examples' kinds in `interp.exemplars.selection.KINDS`.
      study: int [n], which examples are of the same study.
    """

    feature: int
    kind: type[DetectTask] | type[FuzzTask]
    lines: tuple[str, ...]
    images: tuple[ImageAt | None, ...]
    truth: np.ndarray
    decile: np.ndarray
    source: np.ndarray
    study: np.ndarray

    def tasks(self, explanation: str, n_prompt: int) -> list[DetectTask | FuzzTask]:
        """The prompts, `n_prompt` examples each (the last may be shorter)."""
        parts = [slice(begin, begin + n_prompt) for begin in range(0, len(self.lines), n_prompt)]
        if self.kind is FuzzTask:
            return [FuzzTask(explanation, self.lines[part]) for part in parts]
        return [DetectTask(explanation, self.lines[part], self.images[part]) for part in parts]


def detection_set(feature: int, rows: Iterable[Mapping[str, Any]], n_least: int, seed: int) -> ScoringSet | str:
    """Makes the balanced, shuffled set of a feature from its exemplar rows; only held-out rows are used.

    Args:
      feature: its number.
      rows: rows of exemplars.parquet.
      n_least: fewest examples of each class.
      seed: of the shuffle and of what is left out to balance.

    Returns:
      The set, or the reason why there is none.
    """
    held_out = [row for row in rows if row["split"] == "held_out"]
    activating = [row for row in held_out if row["kind"] == "decile"]
    silent = shown_non_activating(held_out, len(activating))
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
        *_origins(kept),
    )


def _origins(rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Kind and study of each row, as numbers. [n], [n]"""
    kinds = np.array([KINDS.index(row["kind"]) for row in rows])
    return kinds, np.unique([row["study_id"] for row in rows], return_inverse=True)[1]


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
    origins = _origins([row for row, _, _ in kept])
    return ScoringSet(feature, FuzzTask, tuple(lines), (None,) * n, truth, decile, *origins)


def run(
    judge: Judge, sets: Sequence[ScoringSet], explanations: Sequence[str], n_prompt: int, n_bootstrap: int, seed: int
) -> list[tuple[Score, float]]:
    """Scores one explanation for each set; all sets are of the same kind. `n_bootstrap` and `seed`: of the intervals.

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
        found = (examples.truth, examples.decile, examples.source, examples.study, np.array(answers))
        scores.append((score(*found, n_bootstrap, seed), cost))
    return scores
