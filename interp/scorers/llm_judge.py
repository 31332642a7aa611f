"""The judge that asks a language model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import pydantic

from interp.exemplars.shown import safe
from interp.explainers.explainer import OpenChatModel, ReadLabels
from interp.llm.requests import ChatAnswer, ChatRequest, chat_request
from interp.scorers.intruder import N_SHOWN
from interp.scorers.judge import JUDGES, Question, Verdict

_PROMPTS = Path(__file__).parent / "prompts"
DETECT, FUZZ, INTRUDER = _PROMPTS / "detect-1.txt", _PROMPTS / "fuzz-1.txt", _PROMPTS / "intruder-1.txt"
FAVOUR = _PROMPTS / "faithful-1.txt"


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


class Intruder(ChatAnswer):
    intruder: int

    @pydantic.model_validator(mode="after")
    def _check(self, info: pydantic.ValidationInfo) -> Self:
        n_items = (info.context or {})["n_items"]
        if not 1 <= self.intruder <= n_items:
            raise ValueError(f"the intruder is not one of 1 to {n_items}")
        return self


class Favoured(ChatAnswer):
    more_about: Literal[0, 1, 2]


def _check_numbers(numbers: Sequence[int], info: pydantic.ValidationInfo) -> None:
    n_items = (info.context or {})["n_items"]
    if sorted(numbers) != list(range(1, n_items + 1)):
        raise ValueError(f"the answers are not numbered 1 to {n_items}")


@JUDGES.register("llm")
class LlmJudge:
    """Shows an explanation and a few contexts to the model of the section `judge`."""

    versions = (DETECT.stem, FUZZ.stem, INTRUDER.stem)

    def __init__(self, open_language_model: OpenChatModel, read_labels: ReadLabels = dict):
        self._model = open_language_model()
        self.name = self._model.client.section.model

    def detect(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        for reply in self._model.client.answer(map(self.detect_request, questions), "interpret: detect"):
            yield verdict([(one.example, one.fires) for one in reply.answer.answers], reply.cost) if reply else None

    def fuzz(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        for reply in self._model.client.answer(map(self.fuzz_request, questions), "interpret: fuzz"):
            yield verdict([(one.example, one.right) for one in reply.answer.answers], reply.cost) if reply else None

    def find_intruder(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        for reply in self._model.client.answer(map(self.intruder_request, questions), "interpret: intruder"):
            yield _one_of(reply.answer.intruder, N_SHOWN, reply.cost) if reply else None

    def favour(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        for reply in self._model.client.answer(map(self.favour_request, questions), "faithfulness: favour"):
            yield _one_of(reply.answer.more_about, 2, reply.cost) if reply else None

    def detect_request(self, question: Question) -> ChatRequest:
        """The request for a question, with the X-rays of its contexts if the model reads images."""
        return self._about_contexts(DETECT, Detected, {"explanation": safe(question.explanation)}, question)

    def intruder_request(self, question: Question) -> ChatRequest:
        """The request for the context that does not belong, with the X-rays as for `detect_request`."""
        return self._about_contexts(INTRUDER, Intruder, {}, question)

    def _about_contexts(
        self, prompt: Path, schema: type[ChatAnswer], data: Mapping[str, str], question: Question
    ) -> ChatRequest:
        images = question.images if question.images and self._model.n_images else (None,) * len(question.lines)
        entries = [{"text": safe(line)} for line in question.lines]
        return self._model.request(prompt, schema, data, entries, images)

    def favour_request(self, question: Question) -> ChatRequest:
        """The request for the report that is more about the explanation."""
        first, second = map(safe, question.lines)
        return chat_request(
            FAVOUR, {"explanation": safe(question.explanation), "first": first, "second": second}, Favoured
        )

    def fuzz_request(self, question: Question) -> ChatRequest:
        """The request for a question whose contexts have marks; images are never shown."""
        entries = [{"text": line} for line in question.lines]
        images = (None,) * len(question.lines)
        return self._model.request(FUZZ, Fuzzed, {"explanation": safe(question.explanation)}, entries, images)


def _one_of(number: int, n: int, cost: float) -> Verdict:
    """The verdict that names one of n, from 1, or none: 0."""
    return Verdict(tuple(int(i == number) for i in range(1, n + 1)), cost)


def verdict(answers: Sequence[tuple[int, int]], cost: float) -> Verdict:
    """The verdict of pairs of an example's number and its answer."""
    return Verdict(tuple(answer for _, answer in sorted(answers)), cost)
