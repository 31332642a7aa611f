"""The explainers of features of images: a vision-language model, and an offline one that reads labels alone.

An explainer of images is registered in `IMAGE_EXPLAINERS` under the name of its companion for text, and is made with
the labels of the store's studies as well.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

from interp.explainers import label_rules, offline_explainer
from interp.explainers.chat_model import ChatModel
from interp.explainers.evidence import Example, ExplainTask
from interp.explainers.explainer import Explainer, Explanation, OpenChatModel, ReadLabels
from interp.explainers.llm_explainer import MAX_EXPLANATION, MAX_NAME, one_line, spread
from interp.llm.requests import ChatAnswer, ChatRequest
from maira_jax.errors import UserError
from maira_jax.run.registry import Registry

PROMPT = Path(__file__).parent / "prompts" / "explain_images-1.txt"
OFFLINE_NAME, OFFLINE_VERSIONS = "offline judge (labels; no vision model)", ("offline-labels-1",)

IMAGE_EXPLAINERS: Registry[Callable[[OpenChatModel, ReadLabels], Explainer]] = Registry("interpret.explainer")


def open_vision_model(open_language_model: OpenChatModel) -> ChatModel:
    """The model of the section `judge`, which has to read images.

    Raises:
      UserError: `judge.images` is below 2.
    """
    model = open_language_model()
    if model.n_images < 2:
        raise UserError(
            f"judge.images is {model.n_images}, but features of images are explained from at least 2: name a model "
            "that reads images, with --config.judge.images=30"
        )
    return model


class ImageExplained(ChatAnswer):
    concept: Annotated[str, one_line(MAX_NAME)]
    description: Annotated[str, one_line(MAX_EXPLANATION)]


@IMAGE_EXPLAINERS.register("llm")
class LlmImageExplainer:
    """Shows strong and weaker images to the model of the section `judge`, half of `judge.images` each."""

    versions = (PROMPT.stem,)

    def __init__(self, open_language_model: OpenChatModel, read_labels: ReadLabels):
        self._model = open_vision_model(open_language_model)
        self.name = self._model.client.section.model

    def explain(self, tasks: Iterable[ExplainTask]) -> Iterator[Explanation | None]:
        for reply in self._model.client.answer(map(self.request, tasks), "interpret: explain"):
            if reply:
                concept, description = reply.answer.concept, reply.answer.description
                yield Explanation(concept, f"{concept}: {description}", reply.cost)
            else:
                yield None

    def request(self, task: ExplainTask) -> ChatRequest:
        """The request for a task: the strongest images, and weaker ones spread evenly over the others."""
        n = self._model.n_images // 2
        strong, weaker = task.activating[:n], spread(task.activating[n:], n)
        entries = [
            {"group": group, "strength": example.strengths[0]}
            for group, examples in (("strong", strong), ("weaker", weaker))
            for example in examples
        ]
        images = [example.image for example in (*strong, *weaker)]
        return self._model.request(PROMPT, ImageExplained, {}, entries, images)


@IMAGE_EXPLAINERS.register("offline")
class OfflineImageExplainer:
    """A deterministic baseline: the combination of labels that best separates active from inactive images."""

    name, versions = OFFLINE_NAME, OFFLINE_VERSIONS

    def __init__(self, open_language_model: OpenChatModel, read_labels: ReadLabels):
        self._labels = functools.cache(read_labels)

    def explain(self, tasks: Iterable[ExplainTask]) -> Iterator[Explanation | None]:
        for task in tasks:
            rule = label_rules.search(self._of(task.activating), self._of(task.others))
            yield Explanation(rule.name, f"{offline_explainer.PREFIX}{rule}.")

    def _of(self, examples: Iterable[Example]) -> list[Mapping[str, bool]]:
        return [self._labels()[example.image.study_id] for example in examples if example.image is not None]
