"""Fuzzing: can a judge tell from an explanation alone on which tokens of an unseen context a feature is active?

The protocol of Paulo et al., arXiv 2410.13928: activating contexts, half of them with the activating tokens marked and
half with as many others, shuffled, a few in a prompt. The question is in which the marks are right; chance is 0.5.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from interp.exemplars.shown import MARK_ABOVE, image_at, marked
from interp.scorers.judge import Question, Verdict
from interp.scorers.scorer import SCORERS, Rows, Scorer, ScoringExamples


@SCORERS.register("fuzzing")
class FuzzingScorer(Scorer):
    """Balanced accuracy of a judge that says whether marked tokens are those on which a feature is active.

    Tokens are marked as the explainer saw them marked. Wrong marks are the right ones moved, around the end if need be,
    to tokens without activation, so that their shape gives nothing away; contexts where that cannot be done, such as
    images, which are one token, are left out.
    """

    def examples(self, feature: int, rows: Rows) -> ScoringExamples | str:
        eligible = []
        for row in rows:
            if row["kind"] == "decile":
                activations = np.asarray(row["activations"])
                strong = activations > MARK_ABOVE * activations.max()
                moved = [np.roll(strong, shift) for shift in range(1, len(strong))]
                elsewhere = [marks for marks in moved if not (marks & (activations > 0)).any()]
                if elsewhere:
                    eligible.append((row, strong, elsewhere))
        n = len(eligible) // 2 * 2
        if not n:
            return "marks can be moved in fewer than two held-out contexts"
        rng = np.random.default_rng((self.seed, feature, 1))
        kept = [eligible[i] for i in rng.permutation(len(eligible))[:n]]
        truth = rng.permutation(np.arange(n) % 2 == 0)
        lines = []
        for (row, strong, elsewhere), right in zip(kept, truth, strict=True):
            marks = strong if right else elsewhere[rng.integers(len(elsewhere))]
            lines.append(marked(row["section"], row["tokens"], marks.tolist()))
        return ScoringExamples.from_rows(
            [row for row, _, _ in kept], lines, truth, [image_at(row) for row, _, _ in kept]
        )

    def answer(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        return self.judge.fuzz(questions)
