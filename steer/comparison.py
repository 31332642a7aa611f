"""What a language model says of a steered report: what it changed, on target or not, and how good it is.

The model is shown the explanation of the feature, the original and the steered report, and not which way the feature
was steered.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import pydantic

from interp.exemplars.shown import safe
from interp.llm.client import ChatClient
from interp.llm.requests import ChatAnswer, ChatRequest, chat_request

PROMPT = Path(__file__).parent / "prompts" / "steer-1.txt"
_MAX_CHANGES = 100  # two reports cannot differ in more


class ReportPair(NamedTuple):
    """Two reports on one study.

    Attributes:
      explanation: what the steered feature is believed to stand for.
      original: the report as the model writes it.
      steered: the report that it writes with the feature changed.
    """

    explanation: str
    original: str
    steered: str


class ReportComparison(NamedTuple):
    """What the model says of a pair.

    Attributes:
      on_target: how many differences are about what the explanation describes.
      off_target: how many are about anything else.
      concept: how much of the explanation is in the steered report, 0 to 2.
      report: how far the steered report is a report on a study, 0 to 2.
      fluency: how the steered report reads, 0 to 2. The last three are AxBench's scores, asked in one prompt.
    """

    on_target: int
    off_target: int
    concept: int
    report: int
    fluency: int


class _Change(ChatAnswer):
    change: str
    on_target: Literal[0, 1]


class Compared(ChatAnswer):
    changes: list[_Change]
    concept: Literal[0, 1, 2]
    report: Literal[0, 1, 2]
    fluency: Literal[0, 1, 2]

    @pydantic.field_validator("changes")
    @classmethod
    def _check(cls, changes: list[_Change]) -> list[_Change]:
        if len(changes) > _MAX_CHANGES:
            raise ValueError("more changes than two reports can have")
        return changes


def request(pair: ReportPair) -> ChatRequest:
    """The request that asks for a comparison."""
    data = {"explanation": safe(pair.explanation), "original": safe(pair.original), "edited": safe(pair.steered)}
    return chat_request(PROMPT, data, Compared)


def compare(client: ChatClient, pairs: Iterable[ReportPair]) -> Iterator[ReportComparison | None]:
    """The model's comparison of each pair, in their order; None where none could be had.

    Raises:
      UserError: the work cannot go on.
    """
    for reply in client.answer(map(request, pairs), "evaluate: compare"):
        if reply is None:
            yield None
        else:
            answer = reply.answer
            on_target = sum(change.on_target for change in answer.changes)
            off_target = len(answer.changes) - on_target
            yield ReportComparison(on_target, off_target, answer.concept, answer.report, answer.fluency)
