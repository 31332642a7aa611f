"""Turns a judge's tasks into chat requests, and the answers of a language model back into results.

Prompts are files of `prompts/` whose names end in a number; a changed text is a new file, so that the number beside a
result says what was asked. The instructions are the system message; everything that comes from a study or from another
answer is data in one JSON object, so that text of a report can neither end its example nor pose as an instruction.
"""

import base64
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pydantic

from interp.explainers.evidence import Example, ExplainTask, ImageAt, safe
from interp.explainers.judge import DetectTask, FuzzTask, SteerTask, Task

EXPLAIN, DETECT, FUZZ, STEER = "explain-1", "detect-1", "fuzz-1", "steer-1"
PROMPTS = (EXPLAIN, DETECT, FUZZ)  # that decide what the interpret stage finds
# Strengths listed with an example, as delphi does.
_MOST_STRENGTHS = 11
_LONGEST_LABEL, _LONGEST_EXPLANATION = 200, 2000  # characters
_MOST_CHANGES = 100
# English prose has about four characters a token; an X-ray of 448 px is 256 tokens to MedGemma, 255 to GPT-4o.
_CHARACTERS_PER_TOKEN, _TOKENS_PER_PICTURE = 4, 256

ReadImage: TypeAlias = Callable[[ImageAt], bytes]


class _Answer(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


# No docstrings: they would become part of the schemas.
class Explained(_Answer):
    label: str
    explanation: str


class _Fires(_Answer):
    example: int
    fires: Literal[0, 1]


class Detected(_Answer):
    answers: list[_Fires]


class _Right(_Answer):
    example: int
    right: Literal[0, 1]


class Fuzzed(_Answer):
    answers: list[_Right]


class _Change(_Answer):
    change: str
    on_target: Literal[0, 1]


class Compared(_Answer):
    changes: list[_Change]
    concept: Literal[0, 1, 2]
    report: Literal[0, 1, 2]
    fluency: Literal[0, 1, 2]


_SCHEMAS: dict[str, type[_Answer]] = {EXPLAIN: Explained, DETECT: Detected, FUZZ: Fuzzed, STEER: Compared}


@dataclasses.dataclass(frozen=True)
class Request:
    """One chat request.

    Attributes:
      prompt: one of `PROMPTS`, or `STEER`.
      messages: as the chat API takes them.
      n: examples in it.
      tokens: about how many it has (see `_tokens`).
    """

    prompt: str
    messages: list[dict[str, Any]]
    n: int
    tokens: int

    @classmethod
    def from_messages(cls, messages: list[dict[str, Any]]) -> "Request":
        """The request that messages are, without its number of examples: for the record, not for reading answers."""
        system, content = messages[0]["content"], messages[1]["content"]
        prompt = next(name for name in _SCHEMAS if instructions(name) == system)
        text = content if isinstance(content, str) else content[0]["text"]
        n_pictures = 0 if isinstance(content, str) else sum(part["type"] == "image_url" for part in content)
        return cls(prompt, messages, 0, _tokens(system, text, n_pictures))

    @property
    def size(self) -> int:
        """Characters of the data, pictures included."""
        content = self.messages[-1]["content"]
        if isinstance(content, str):
            return len(content)
        return sum(len(part["text"] if part["type"] == "text" else part["image_url"]["url"]) for part in content)

    @property
    def response_format(self) -> dict[str, Any]:
        """For servers that hold answers to a JSON schema."""
        return _response_format(self.prompt)

    def key(self, model: str, parameters: Mapping[str, Any]) -> str:
        """Hex digest of what decides the answer: the model, its parameters, the prompt with its schema, the data."""
        content = [model, dict(parameters), self.prompt, self.messages]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def read(self, text: str) -> Any:
        """The answer that a text is: (label, explanation), the numbers of a `Comparison`, or 0 and 1 for each example.

        Raises:
          ValueError: the text does not answer this request.
        """
        answer = _SCHEMAS[self.prompt].model_validate_json(_unfenced(text))
        if isinstance(answer, Explained):
            label, explanation = " ".join(answer.label.split()), " ".join(answer.explanation.split())
            if not 0 < len(label) <= _LONGEST_LABEL or not 0 < len(explanation) <= _LONGEST_EXPLANATION:
                raise ValueError("the label or the explanation is empty or too long")
            return label, explanation
        if isinstance(answer, Compared):
            if len(answer.changes) > _MOST_CHANGES:
                raise ValueError("more changes than two reports can have")
            on_target = sum(change.on_target for change in answer.changes)
            return on_target, len(answer.changes) - on_target, answer.concept, answer.report, answer.fluency
        assert isinstance(answer, Detected | Fuzzed)
        by_number = {one.example: one.fires if isinstance(one, _Fires) else one.right for one in answer.answers}
        if len(answer.answers) != self.n or by_number.keys() != set(range(1, self.n + 1)):
            raise ValueError(f"the answers are not numbered 1 to {self.n}")
        return tuple(int(by_number[number]) for number in range(1, self.n + 1))

    def stored(self) -> dict[str, Any]:
        """The data of the request for the record: the prompt by its name, pictures by their digests."""
        return {"prompt": self.prompt, "content": _without_pictures(self.messages[-1]["content"])}


def _unfenced(text: str) -> str:
    """The text without the code fence that models put around JSON."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        return text[3:-3].removeprefix("json").strip()
    return text


def _without_pictures(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [
        hashlib.sha256(part["image_url"]["url"].encode()).hexdigest() if part["type"] == "image_url" else part["text"]
        for part in content
    ]


@functools.cache
def _response_format(prompt: str) -> dict[str, Any]:
    schema = _SCHEMAS[prompt]
    name = schema.__name__.lower()
    return {
        "type": "json_schema",
        "json_schema": {"name": name, "strict": True, "schema": schema.model_json_schema()},
    }


@functools.cache
def instructions(prompt: str) -> str:
    """The text of a prompt's file."""
    return (Path(__file__).parent / "prompts" / f"{prompt}.txt").read_text()


def request(task: Task, n_examples: int, n_images: int, read_image: ReadImage) -> Request:
    """The request for a task.

    Args:
      task: for any of the prompts.
      n_examples: most activating examples in an explaining prompt, spread evenly over the deciles.
      n_images: most X-rays in an explaining prompt, spread evenly over its examples of images; 0: never any.
      read_image: gives the PNG file of an image.
    """
    if isinstance(task, ExplainTask):
        examples = _spread(task.activating, n_examples)
        pictured = _spread([example.image for example in examples if example.image is not None], n_images)
        entries, images = [], []
        for example in examples:
            entry: dict[str, Any] = {"text": example.marked(), "strengths": _strengths(example)}
            entries.append(entry)
            images.append(example.image if example.image in pictured else None)
        return _build(EXPLAIN, {}, entries, images, read_image)
    if isinstance(task, SteerTask):
        reports = {"original": safe(task.original), "edited": safe(task.edited)}
        text = json.dumps({"explanation": safe(task.explanation), **reports}, ensure_ascii=False)
        system = instructions(STEER)
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        return Request(STEER, messages, 0, _tokens(system, text, 0))
    entries = [{"text": text if isinstance(task, FuzzTask) else safe(text)} for text in task.examples]
    shown: Sequence[ImageAt | None] = [None] * len(entries)
    if n_images and isinstance(task, DetectTask) and task.images:
        shown = task.images
    prompt = FUZZ if isinstance(task, FuzzTask) else DETECT
    return _build(prompt, {"explanation": safe(task.explanation)}, entries, shown, read_image)


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spaced, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)] if count else []


def _strengths(example: Example) -> list[list[Any]]:
    marked: list[list[Any]] = [
        [safe(token.strip()), strength]
        for token, strength, strong in zip(example.tokens, example.strengths, example.strong, strict=True)
        if strong
    ]
    return sorted(marked, key=lambda pair: -pair[1])[:_MOST_STRENGTHS]


def _build(
    prompt: str,
    data: dict[str, Any],
    entries: Sequence[dict[str, Any]],
    images: Sequence[ImageAt | None],
    read_image: ReadImage,
) -> Request:
    """One JSON object on one line, followed by the pictures."""
    numbered, pictures = [], []
    for number, (entry, image) in enumerate(zip(entries, images, strict=True), start=1):
        numbered.append({"example": number, **entry})
        if image is not None:
            pictures.append(read_image(image))
            numbered[-1]["picture"] = len(pictures)
    text = json.dumps({**data, "examples": numbered}, ensure_ascii=False)
    content: Any = text
    if pictures:
        content = [{"type": "text", "text": text}]
        for number, png in enumerate(pictures, start=1):
            url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
            content.append({"type": "text", "text": f"Picture {number}:"})
            content.append({"type": "image_url", "image_url": {"url": url}})
    system = instructions(prompt)
    messages = [{"role": "system", "content": system}, {"role": "user", "content": content}]
    return Request(prompt, messages, len(entries), _tokens(system, text, len(pictures)))


def _tokens(system: str, text: str, n_pictures: int) -> int:
    """About how many tokens a request has: a guess before there is an answer that says it (see `Client`)."""
    return (len(system) + len(text)) // _CHARACTERS_PER_TOKEN + n_pictures * _TOKENS_PER_PICTURE
