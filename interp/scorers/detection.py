"""Detection: can a judge tell from an explanation alone in which unseen contexts a feature is active?

The protocol of Paulo et al., arXiv 2410.13928: activating contexts from every decile and as many non-activating ones,
half of them hard to tell from those, shuffled, a few in a prompt. Balanced, so that chance is 0.5.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from interp.exemplars.selection import shown_non_activating
from interp.exemplars.shown import image_at, shown_text
from interp.scorers.judge import Question, Verdict
from interp.scorers.scorer import SCORERS, Rows, Scorer, ScoringExamples

SHUFFLED = "detection_shuffled"  # name of the scores of detection with another feature's explanation


@SCORERS.register("detection")
class DetectionScorer(Scorer):
    """Balanced accuracy of a judge that says in which contexts a feature is active."""

    scores_images = True

    def examples(self, feature: int, rows: Rows) -> ScoringExamples | str:
        activating = [row for row in rows if row["kind"] == "decile"]
        others = shown_non_activating(rows, len(activating))
        rng = np.random.default_rng((self.seed, feature))
        n = min(len(activating), len(others))
        # Random order first: cutting to `n` then leaves out examples of all deciles alike.
        kept = [activating[i] for i in rng.permutation(len(activating))[:n]]
        kept += [others[i] for i in rng.permutation(len(others))[:n]]
        kept = [kept[i] for i in rng.permutation(len(kept))]
        lines = [shown_text(row["section"], row["tokens"]) for row in kept]
        truth = np.array([row["kind"] == "decile" for row in kept])
        return ScoringExamples.from_rows(kept, lines, truth, [image_at(row) for row in kept])

    def answer(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        return self.judge.detect(questions)
