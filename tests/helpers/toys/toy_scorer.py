"""A scorer that asks no judge: an explanation fits a context that has one of its quoted words."""

import re
from collections.abc import Iterable, Iterator

from interp.scorers import SCORERS
from interp.scorers.detection import DetectionScorer
from interp.scorers.judge import Question, Verdict


@SCORERS.register("quoted_words")
class QuotedWordsScorer(DetectionScorer):
    """Balanced accuracy of looking for the explanation's quoted words, on the examples of detection."""

    def answer(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        for question in questions:
            words = re.findall(r'"([^"]+)"', question.explanation)
            yield Verdict(tuple(int(any(word in line for word in words)) for line in question.lines), 0.0)
