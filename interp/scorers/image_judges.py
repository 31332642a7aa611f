"""The judges of explanations of features of images: a vision-language model, and an offline one that reads labels.

A judge of images is registered in `IMAGE_JUDGES` under the name of its companion for text. It answers whether a feature
is active in an image, and no question about marked words.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from interp.exemplars.shown import safe
from interp.explainers import image_explainers, offline_explainer
from interp.explainers.explainer import OpenChatModel, ReadLabels
from interp.explainers.label_rules import LabelRule
from interp.llm.requests import ChatRequest
from interp.scorers.judge import Judge, Question, Verdict
from interp.scorers.llm_judge import Detected, verdict
from maira_jax.run.registry import Registry

DETECT = Path(__file__).parent / "prompts" / "detect_images-1.txt"

IMAGE_JUDGES: Registry[Callable[[OpenChatModel, ReadLabels], Judge]] = Registry("interpret.judge")


class _ImageJudge:
    def fuzz(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        raise NotImplementedError("images have no marked words")

    def find_intruder(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        raise NotImplementedError("only contexts of text are shown without an explanation")

    def favour(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        raise NotImplementedError("an encoder of images writes no reports")


@IMAGE_JUDGES.register("llm")
class LlmImageJudge(_ImageJudge):
    """Shows an explanation and a few images to the model of the section `judge`."""

    versions = (DETECT.stem,)

    def __init__(self, open_language_model: OpenChatModel, read_labels: ReadLabels):
        self._model = image_explainers.open_vision_model(open_language_model)
        self.name = self._model.client.section.model

    def detect(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        for reply in self._model.client.answer(map(self.request, questions), "interpret: detect"):
            yield verdict([(one.example, one.fires) for one in reply.answer.answers], reply.cost) if reply else None

    def request(self, question: Question) -> ChatRequest:
        """The request for a question: the explanation, the images, and nothing else of their studies."""
        entries: list[dict[str, str]] = [{} for _ in question.images]
        data = {"explanation": safe(question.explanation)}
        return self._model.request(DETECT, Detected, data, entries, question.images)


@IMAGE_JUDGES.register("offline")
class OfflineImageJudge(_ImageJudge):
    """A deterministic baseline. It reads only explanations that are rules, and tests them on the images' labels."""

    name, versions = image_explainers.OFFLINE_NAME, image_explainers.OFFLINE_VERSIONS

    def __init__(self, open_language_model: OpenChatModel, read_labels: ReadLabels):
        self._labels = functools.cache(read_labels)

    def detect(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        for question in questions:
            try:
                rule = _parse(question.explanation.removeprefix(offline_explainer.PREFIX).removesuffix("."))
            except ValueError:  # written by another explainer
                yield None
            else:
                shown = (self._labels()[image.study_id] for image in question.images if image is not None)
                yield Verdict(tuple(int(rule.holds(labels)) for labels in shown))


@functools.lru_cache(maxsize=4096)
def _parse(sentence: str) -> LabelRule:
    return LabelRule.parse(sentence)
