"""The judge that asks a language model."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Self

import pydantic

from interp.exemplars.shown import safe
from interp.explainers.explainer import OpenChatModel, ReadLabels
from interp.llm.requests import ChatAnswer, ChatRequest
from interp.scorers.judge import JUDGES, Question, Verdict

_PROMPTS = Path(__file__).parent / "prompts"
DETECT, FUZZ = _PROMPTS / "detect-1.txt", _PROMPTS / "fuzz-1.txt"


class _Fires(ChatAnswer):
    example: int
    fires: Literal[0, 1]


class Detected(ChatAnswer):
    answers: list[_Fires]

    @pydantic.model_validator(mode="after")
    def _check(self, info: pydantic.ValidationInfo) -> Self:
        _check_numbers([one.example for one in self.answers], info)
        return self


class _Right(ChatAnswer):
    example: int
    right: Literal[0, 1]


class Fuzzed(ChatAnswer):
    answers: list[_Right]

    @pydantic.model_validator(mode="after")
    def _check(self, info: pydantic.ValidationInfo) -> Self:
        _check_numbers([one.example for one in self.answers], info)
        return self


def _check_numbers(numbers: Sequence[int], info: pydantic.ValidationInfo) -> None:
    n_items = (info.context or {})["n_items"]
    if sorted(numbers) != list(range(1, n_items + 1)):
        raise ValueError(f"the answers are not numbered 1 to {n_items}")


@JUDGES.register("llm")
class LlmJudge:
    """Shows an explanation and a few contexts to the model of the section `judge`."""

    versions = (DETECT.stem, FUZZ.stem)

    def __init__(self, open_language_model: OpenChatModel, read_labels: ReadLabels = dict):
        self._model = open_language_model()
        self.name = self._model.client.section.model

    def detect(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        for reply in self._model.client.answer(map(self.detect_request, questions), "interpret: detect"):
            yield verdict([(one.example, one.fires) for one in reply.answer.answers], reply.cost) if reply else None

    def fuzz(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        for reply in self._model.client.answer(map(self.fuzz_request, questions), "interpret: fuzz"):
            yield verdict([(one.example, one.right) for one in reply.answer.answers], reply.cost) if reply else None

    def detect_request(self, question: Question) -> ChatRequest:
        """The request for a question, with the X-rays of its contexts if the model reads images."""
        images = question.images if question.images and self._model.n_images else (None,) * len(question.lines)
        entries = [{"text": safe(line)} for line in question.lines]
        return self._model.request(DETECT, Detected, {"explanation": safe(question.explanation)}, entries, images)

    def fuzz_request(self, question: Question) -> ChatRequest:
        """The request for a question whose contexts have marks; images are never shown."""
        entries = [{"text": line} for line in question.lines]
        images = (None,) * len(question.lines)
        return self._model.request(FUZZ, Fuzzed, {"explanation": safe(question.explanation)}, entries, images)


def verdict(answers: Sequence[tuple[int, int]], cost: float) -> Verdict:
    """The verdict of pairs of an example's number and its answer."""
    return Verdict(tuple(answer for _, answer in sorted(answers)), cost)
