"""Intruder test: do the contexts of a feature have something in common by which one that is none of them stands out?

The protocol of arXiv 2507.08473, which needs no explanation: four contexts in which the feature is active, of any
decile, and one in which it is not, shuffled. The question is which one does not belong. Half of the intruders are hard
to tell from the others.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from interp.exemplars.selection import shown_non_activating
from interp.exemplars.shown import image_at, shown_text
from interp.scorers.judge import Judge, Question, Verdict
from interp.scorers.scorer import SCORERS, Rows, Scorer, ScoringExamples

N_SHOWN = 5  # contexts of a question, one of which does not belong


@SCORERS.register("intruder")
class IntruderScorer(Scorer):
    """Balanced accuracy of a judge that says which context does not belong.

    The intruders are the examples of which yes is the right answer, so that guessing scores 0.5 as it does for other
    scorers, and finding a share p of the intruders 0.375 + 0.625 p.
    """

    def __init__(self, judge: Judge, *, min_contexts: int, n_prompt: int, n_bootstrap: int, seed: int):
        super().__init__(judge, min_contexts=min_contexts, n_prompt=N_SHOWN, n_bootstrap=n_bootstrap, seed=seed)

    def examples(self, feature: int, rows: Rows) -> ScoringExamples | str:
        activating = [row for row in rows if row["kind"] == "decile"]
        others = shown_non_activating(rows, len(activating))
        n = min(len(activating) // (N_SHOWN - 1), len(others))
        if not n:
            return f"active in fewer than {N_SHOWN - 1} held-out contexts"
        rng = np.random.default_rng((self.seed, feature, 2))
        own = rng.permutation(len(activating))[: n * (N_SHOWN - 1)].reshape(n, N_SHOWN - 1)
        intruders = rng.permutation(len(others))[:n]
        kept, truth = [], []
        for group, intruder in zip(own.tolist(), intruders.tolist(), strict=True):
            shown = [(activating[i], False) for i in group] + [(others[intruder], True)]
            for i in rng.permutation(N_SHOWN).tolist():
                kept.append(shown[i][0])
                truth.append(shown[i][1])
        lines = [shown_text(row["section"], row["tokens"]) for row in kept]
        return ScoringExamples.from_rows(kept, lines, np.array(truth), [image_at(row) for row in kept])

    def answer(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        return self.judge.find_intruder(questions)
