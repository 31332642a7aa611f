"""Chat requests: a prompt, the data it is asked about, and the form that an answer must have.

Prompts are files whose names end in a number; a changed text is a new file, so that the number in a result says what
was asked. The instructions are the system message; everything that comes from a study or from another answer is data in
one JSON object, so that text of a report can neither end its example nor pose as an instruction.
"""

import base64
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

# English prose has about four characters a token; an X-ray of 448 px is 256 tokens to MedGemma, 255 to GPT-4o.
CHARACTERS_PER_TOKEN, _TOKENS_PER_PICTURE = 4, 256


class ChatAnswer(pydantic.BaseModel):
    """What an answer must be, as a JSON schema; subclasses have no docstrings, which would become part of the schema.

    Validators find `ChatRequest.n_items` as "n_items" in the context.
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """One chat request.

    Attributes:
      prompt: name of the prompt, which is kept in the record of answers.
      messages: the system message and the user's message, as the chat API takes them.
      schema: the form of its answer.
      n_items: how many numbered items the answer must have; 0 where the form has none.
    """

    prompt: str
    messages: list[dict[str, Any]]
    schema: type[ChatAnswer]
    n_items: int = 0

    @property
    def tokens(self) -> int:
        """A guess at its number of tokens, before an answer says it."""
        texts, pictures = self._parts()
        characters = len(self.messages[0]["content"]) + sum(map(len, texts))
        return characters // CHARACTERS_PER_TOKEN + len(pictures) * _TOKENS_PER_PICTURE

    @property
    def response_format(self) -> dict[str, Any]:
        """The schema, for servers that hold answers to one; a small model's list would not end without its bounds."""
        return _response_format(self.schema, self.n_items)

    def key(self, model: str, parameters: Mapping[str, Any]) -> str:
        """Hex digest of what decides the answer: the model, its parameters, the prompt with its schema, the data."""
        content = [model, dict(parameters), self.prompt, self.messages]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def read(self, text: str) -> ChatAnswer:
        """The answer that a text is.

        Raises:
          ValueError: the text does not answer this request.
        """
        return self.schema.model_validate_json(_unfenced(text), context={"n_items": self.n_items})

    def recorded(self) -> Any:
        """The data of the request for the record: texts, with pictures by their digests."""
        content = self.messages[-1]["content"]
        if isinstance(content, str):
            return content
        return [hashlib.sha256(_url(part).encode()).hexdigest() if _url(part) else part["text"] for part in content]

    def without_messages(self) -> "ChatRequest":
        """What is needed to read an answer, without the data and its pictures, which fill memory."""
        return dataclasses.replace(self, messages=[])

    def _parts(self) -> tuple[list[str], list[str]]:
        """The texts and the pictures' addresses of the user's message."""
        content = self.messages[-1]["content"]
        if isinstance(content, str):
            return [content], []
        return [part["text"] for part in content if not _url(part)], [_url(part) for part in content if _url(part)]


def chat_request(
    prompt: Path,
    data: Mapping[str, Any],
    schema: type[ChatAnswer],
    *,
    n_items: int = 0,
    pictures: Sequence[bytes] = (),
) -> ChatRequest:
    """The request that asks a prompt about some data.

    Args:
      prompt: the file with the instructions; its stem is the prompt's name.
      data: what it is asked about, sent as one JSON object on one line.
      schema: the form of the answer.
      n_items: see `ChatRequest`.
      pictures: PNG files, which the data refers to by their numbers from 1.
    """
    text = json.dumps(data, ensure_ascii=False)
    content: Any = text
    if pictures:
        content = [{"type": "text", "text": text}]
        for number, png in enumerate(pictures, start=1):
            url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
            content.append({"type": "text", "text": f"Picture {number}:"})
            content.append({"type": "image_url", "image_url": {"url": url}})
    messages = [{"role": "system", "content": instructions(prompt)}, {"role": "user", "content": content}]
    return ChatRequest(prompt.stem, messages, schema, n_items)


def message_of(completion: Any) -> str:
    """The text of the first message of a chat completion.

    Raises:
      ValueError: it is none.
    """
    match completion:
        case {"choices": [{"message": {"content": str(content)}}, *_]}:
            return content
        case {"choices": [{"message": dict(message)}, *_]} if message.get("content") is None:
            return ""
    raise ValueError("this is no chat completion")


@functools.cache
def instructions(prompt: Path) -> str:
    """The text of a prompt's file."""
    return prompt.read_text()


def _url(part: Mapping[str, Any]) -> str:
    """The address of a picture; "" for a part that is text."""
    return part["image_url"]["url"] if part["type"] == "image_url" else ""


def _unfenced(text: str) -> str:
    """The text without the code fence that models put around JSON."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        return text[3:-3].removeprefix("json").strip()
    return text


@functools.cache
def _response_format(schema: type[ChatAnswer], n_items: int) -> dict[str, Any]:
    form = schema.model_json_schema()
    for field in form["properties"].values():
        if n_items and field.get("type") == "array":
            field |= {"minItems": n_items, "maxItems": n_items}
    return {"type": "json_schema", "json_schema": {"name": schema.__name__.lower(), "strict": True, "schema": form}}
