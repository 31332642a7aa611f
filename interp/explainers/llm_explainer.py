"""The explainer that asks a language model."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic

from interp.exemplars.shown import safe
from interp.explainers.evidence import Example, ExplainTask
from interp.explainers.explainer import EXPLAINERS, Explanation, OpenChatModel, ReadLabels
from interp.llm.requests import ChatAnswer, ChatRequest

PROMPT = Path(__file__).parent / "prompts" / "explain-1.txt"
# Activating examples in a prompt, from all deciles: as many as delphi shows.
N_EXAMPLES = 40
# Strengths listed with an example, as delphi does.
_MAX_STRENGTHS = 11
MAX_NAME, MAX_EXPLANATION = 200, 2000  # characters


def one_line(max_length: int) -> pydantic.AfterValidator:
    """Puts a text on one line, without what a terminal would obey.

    Refuses one that is then empty or longer, or a placeholder, copied from the prompt.
    """

    def check(text: str) -> str:
        line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        if line.startswith("<") and line.endswith(">"):
            raise ValueError("the prompt's own words")
        if not 0 < len(line) <= max_length:
            raise ValueError(f"empty, or longer than {max_length} characters")
        return line

    return pydantic.AfterValidator(check)


class Explained(ChatAnswer):
    label: Annotated[str, one_line(MAX_NAME)]
    explanation: Annotated[str, one_line(MAX_EXPLANATION)]


@EXPLAINERS.register("llm")
class LlmExplainer:
    """Shows activating examples, with marked tokens and strengths, to the model of the section `judge`."""

    versions = (PROMPT.stem,)

    def __init__(self, open_language_model: OpenChatModel, read_labels: ReadLabels = dict):
        self._model = open_language_model()
        self.name = self._model.client.section.model

    def explain(self, tasks: Iterable[ExplainTask]) -> Iterator[Explanation | None]:
        for reply in self._model.client.answer(map(self.request, tasks), "interpret: explain"):
            yield Explanation(reply.answer.label, reply.answer.explanation, reply.cost) if reply else None

    def request(self, task: ExplainTask) -> ChatRequest:
        """The request for a task, with X-rays spread evenly over its examples of images."""
        examples = spread(task.activating, N_EXAMPLES)
        pictured = spread([example.image for example in examples if example.image is not None], self._model.n_images)
        entries = [{"text": example.marked(), "strengths": _strengths(example)} for example in examples]
        images = [example.image if example.image in pictured else None for example in examples]
        return self._model.request(PROMPT, Explained, {}, entries, images)


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spaced, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)] if count else []


def _strengths(example: Example) -> list[list[Any]]:
    """Token and strength of the marked tokens, the strongest first."""
    marked: list[list[Any]] = [
        [safe(token.strip()), strength]
        for token, strength, strong in zip(example.tokens, example.strengths, example.strong, strict=True)
        if strong
    ]
    return sorted(marked, key=lambda pair: -pair[1])[:_MAX_STRENGTHS]
