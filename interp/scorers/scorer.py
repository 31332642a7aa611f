"""What a scorer is: it puts an explanation to the test on contexts of studies that the explainer has not seen.

A scorer makes examples from a feature's held-out exemplars, some of which the explanation should fit, has them
answered, and compares the answers with the truth:

    @SCORERS.register("mine")
    class MyScorer(Scorer):
        \"\"\"What the score means.\"\"\"

        def examples(self, feature: int, rows: Rows) -> ScoringExamples | str:
            ...

        def answer(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
            ...

A configuration file may import such a file; `interpret.scorers` names the scorers.
"""

import abc
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np

from interp.exemplars.selection import KINDS, shown_non_activating
from interp.exemplars.shown import ImageAt
from interp.scorers.judge import Judge, Question, Verdict
from interp.scorers.statistics import Score, score
from maira_jax.run.registry import Registry

Rows: TypeAlias = Sequence[Mapping[str, Any]]  # of `interp.exemplars.exemplar_table.SCHEMA`


@dataclasses.dataclass(frozen=True)
class ScoringExamples:
    """The held-out examples of a feature, in the order in which they are shown.

    Attributes:
      lines: the contexts as shown.
      images: for each the image that it is a part of, or None.
      truth: bool [n], what the right answers are.
      decile: int [n], the activation decile, -1 where the feature is not active.
      kind: int [n], the exemplars' kinds, as indices into `interp.exemplars.selection.KINDS`.
      study: int [n], a number for each study, to tell which examples are of the same one.
    """

    lines: tuple[str, ...]
    images: tuple[ImageAt | None, ...]
    truth: np.ndarray
    decile: np.ndarray
    kind: np.ndarray
    study: np.ndarray

    @classmethod
    def from_rows(
        cls, rows: Rows, lines: Sequence[str], truth: np.ndarray, images: Sequence[ImageAt | None] = ()
    ) -> "ScoringExamples":
        """Examples made of exemplar rows.

        Args:
          rows: n exemplars.
          lines: the n contexts as shown.
          truth: bool [n].
          images: n images or None; empty: none is shown.
        """
        decile = np.array([-1 if row["decile"] is None else row["decile"] for row in rows])
        kind = np.array([KINDS.index(row["kind"]) for row in rows])
        study = np.unique([row["study_id"] for row in rows], return_inverse=True)[1]
        return cls(tuple(lines), tuple(images) or (None,) * len(rows), truth, decile, kind, study)

    def questions(self, explanation: str, n_prompt: int) -> list[Question]:
        """The questions, of `n_prompt` examples each (the last may have fewer)."""
        parts = [slice(begin, begin + n_prompt) for begin in range(0, len(self.lines), n_prompt)]
        return [Question(explanation, self.lines[part], self.images[part]) for part in parts]


@dataclasses.dataclass(frozen=True)
class ScoreTask:
    """An explanation to score.

    Attributes:
      feature: number of the feature.
      explanation: the text.
      rows: the feature's exemplars of the held-out split.
    """

    feature: int
    explanation: str
    rows: Rows


@dataclasses.dataclass(frozen=True)
class ScoreResult:
    """What came of a task.

    Attributes:
      score: None where the feature has too few examples, or no question was answered.
      reason: why there is no score; None where there is one.
      cost: what the answers cost in US dollars.
    """

    score: Score | None
    reason: str | None
    cost: float


class Scorer(abc.ABC):
    """Scores explanations.

    Attributes:
      scores_images: whether it scores explanations of features of images, too; it is left out for those otherwise.

    Args:
      judge: answers questions about contexts.
      min_contexts: activating and non-activating examples that a score needs, each.
      n_prompt: examples in one question.
      n_bootstrap: resamples of the studies for each interval.
      seed: seed of the examples' order and of the resamples.
    """

    scores_images: ClassVar[bool] = False

    def __init__(self, judge: Judge, *, min_contexts: int, n_prompt: int, n_bootstrap: int, seed: int):
        self.judge = judge
        self.min_contexts, self.n_prompt, self.n_bootstrap, self.seed = min_contexts, n_prompt, n_bootstrap, seed

    @abc.abstractmethod
    def examples(self, feature: int, rows: Rows) -> ScoringExamples | str:
        """The examples of a feature, or the reason why there are none.

        Args:
          feature: number of the feature.
          rows: its held-out exemplars, at least `min_contexts` activating and as many non-activating ones.
        """

    @abc.abstractmethod
    def answer(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        """A verdict on each question, in their order; None where none could be had."""

    def score(self, tasks: Iterable[ScoreTask]) -> Iterator[ScoreResult]:
        """Scores each task, in their order.

        Raises:
          UserError: the work cannot go on.
        """
        made = ((task.explanation, self._examples(task)) for task in tasks)
        asked, scored = itertools.tee(made)
        verdicts = self.answer(
            question
            for explanation, examples in asked
            if not isinstance(examples, str)
            for question in examples.questions(explanation, self.n_prompt)
        )
        for _, examples in scored:
            if isinstance(examples, str):
                yield ScoreResult(None, examples, 0.0)
            else:
                n_questions = -(-len(examples.lines) // self.n_prompt)
                yield self._result(examples, list(itertools.islice(verdicts, n_questions)))
        assert next(verdicts, None) is None  # also lets the judge end what it opened

    def _examples(self, task: ScoreTask) -> ScoringExamples | str:
        """The examples of a task, or the reason why there are none: the same for all scorers where contexts are few."""
        activating = [row for row in task.rows if row["kind"] == "decile"]
        few = f"fewer than {self.min_contexts}"
        unit = "contexts" if any(row["tokens"] for row in task.rows) else "images"
        if len(activating) < self.min_contexts:
            return f"active in {few} held-out {unit}"
        if len(shown_non_activating(task.rows, len(activating))) < self.min_contexts:
            return f"{few} of the sampled held-out {unit} are non-activating"
        return self.examples(task.feature, task.rows)

    def _result(self, examples: ScoringExamples, verdicts: Sequence[Verdict | None]) -> ScoreResult:
        answers = np.full(len(examples.lines), -1)  # [n]; -1 where there is no answer
        for i, verdict in enumerate(verdicts):
            if verdict is not None:
                answers[i * self.n_prompt : (i + 1) * self.n_prompt] = verdict.answers
        cost = sum(verdict.cost for verdict in verdicts if verdict is not None)
        if not (answers >= 0).any():
            return ScoreResult(None, "the judge gave no answers", cost)
        found = (examples.truth, examples.decile, examples.kind, examples.study, answers)
        return ScoreResult(score(*found, self.n_bootstrap, self.seed), None, cost)


SCORERS: Registry[type[Scorer]] = Registry("interpret.scorers")
