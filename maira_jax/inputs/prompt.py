"""The prompts of MAIRA-2, string for string, and where each study section lies in them.

Source: `processing_maira2.py` of microsoft/maira-2 (revision 795a2b1). A prompt is made of a *content*, which this
module writes, and of the chat template around it, which belongs to the checkpoint (`ChatTemplate`).

The chat template is rendered, and the tokenizer's files are read (`tokens.py`), by this package and not by
transformers, which is no dependency at run time; the tests hold the token ids equal to those of its `AutoTokenizer`.
"""

import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from maira_jax.errors import UserError, first_line
from maira_jax.inputs import render_template
from maira_jax.run import files
from maira_jax.studies.study import ImageSource, Study

IMAGE_TOKEN = "<image>"
NOT_AVAILABLE = "N/A"
_TIMEOUT = 120  # seconds on the clock for a process that may compute for two
SYSTEM = "You are an expert radiology assistant tasked with interpreting a chest X-ray study."

_TASK = " Provide a description of the findings in the radiology study in comparison to the prior frontal image."
_GROUNDING = (
    " Each finding should be described as a self-contained plain-text sentence."
    " If the finding is groundable, locate the finding in the current frontal chest X-ray image, with bounding boxes"
    " indicating all locations where it can be seen in the current frontal image."
    " Otherwise, generate just the ungrounded finding without bounding boxes."
)
_PHRASE = (
    " Repeat the following finding as a grounded phrase with bounding boxes indicating all locations where it can be"
    " seen in the given chest X-ray image. Finding: "
)


class PromptSection(StrEnum):
    """The parts of a prompt that a study fills in; all the rest is boilerplate."""

    INDICATION = "indication"
    TECHNIQUE = "technique"
    COMPARISON = "comparison"
    PRIOR_REPORT = "prior_report"
    PHRASE = "phrase"


@dataclasses.dataclass(frozen=True)
class Span:
    """Characters `start` (inclusive) to `end` (exclusive) of a prompt's content that are `section`."""

    section: PromptSection
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The text of the user turn.

    Attributes:
      content: the text of the turn, with one `<image>` for each image.
      spans: the study sections in `content`, in order. The `N/A` of an empty section counts as that section.
      n_images: how often `<image>` occurs.
    """

    content: str
    spans: tuple[Span, ...]
    n_images: int

    @property
    def text(self) -> str:
        """The prompt in MAIRA-2's own chat template; `Tokenizer.text` uses that of the checkpoint."""
        return MAIRA2_CHAT.render(self.content)


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """The fixed text before and after a prompt's content (no newline, no begin token: that is the tokenizer's)."""

    prefix: str
    suffix: str

    def render(self, content: str) -> str:
        return self.prefix + content + self.suffix

    @classmethod
    def from_dir(cls, checkpoint_dir: Path) -> Self:
        """Renders the checkpoint's own Jinja template, or takes MAIRA-2's known rendering where it has none.

        The template is tried on a turn of texts and images, as MAIRA-2's processor hands it over. It must write them
        in their order with nothing between them: the text before and after is all that `render` adds.

        Raises:
          UserError: the template cannot be rendered within `render_template`'s limits, or does not repeat the turn as
            it is.
        """
        found = _template_source(checkpoint_dir)
        if found is None:
            return cls(MAIRA2_CHAT.prefix, MAIRA2_CHAT.suffix)
        source, path = found
        # No template writes these separators itself; the spaces show whether it strips the texts.
        texts = [f"{space}\u241f{i}\u241f{space}" for i, space in enumerate(("", " ", " "))]
        parts: list[dict[str, Any]] = [{"index": None, "text": text, "type": "text"} for text in texts]
        for i in range(2):
            parts.insert(2 * i + 1, {"index": i, "text": None, "type": "image"})
        user = {"role": "user", "content": parts}
        system = {"role": "system", "content": [{"index": None, "text": SYSTEM, "type": "text"}]}
        answer, with_system = _rendered(source, json.dumps([[user], [system, user]]))
        if SYSTEM not in answer.get("text", SYSTEM):  # the template does not bring the sentence, so it is a message
            answer = with_system
        if "error" in answer:
            reason = first_line(ValueError(answer["error"]))
            raise UserError(f"the chat template in {path} cannot be rendered ({reason}): restore the file")
        rendered = answer["text"]
        content = IMAGE_TOKEN.join(texts)
        if rendered.count(content) != 1:
            raise UserError(
                f"the chat template in {path} does not repeat the texts and images of a prompt once and in order: "
                "restore the file"
            )
        prefix, suffix = rendered.split(content)
        return cls(prefix, suffix)


MAIRA2_CHAT = ChatTemplate(prefix=f"{SYSTEM}  USER:  ", suffix="  ASSISTANT: ")


def _template_source(checkpoint_dir: Path) -> tuple[str, Path] | None:
    """The Jinja text of a checkpoint folder and its file; transformers looks in these places in this order."""
    jinja_file = checkpoint_dir / "chat_template.jinja"
    if jinja_file.is_file():
        return files.read_text(jinja_file), jinja_file
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = checkpoint_dir / name
        if path.is_file():
            source = files.read_object(path).get("chat_template")
            if isinstance(source, list):  # several, by name
                named = [entry for entry in source if isinstance(entry, dict) and entry.get("name") == "default"]
                source = named[0].get("template") if named else None
            if isinstance(source, str):
                return source, path
    return None


@functools.cache
def _rendered(source: str, conversations: str) -> list[dict[str, str]]:
    """What a template makes of each of the conversations, JSON of lists of messages: `text`, or an `error`."""
    request = f'{{"source": {json.dumps(source)}, "conversations": {conversations}}}'
    command = [sys.executable, "-P", render_template.__file__]
    done = subprocess.run(command, input=request, capture_output=True, text=True, encoding="utf-8", timeout=_TIMEOUT)
    if done.returncode:
        limits = f"{render_template.MAX_SECONDS} s or {render_template.MAX_BYTES // 2**20} MiB"
        return [{"error": f"it takes more than {limits}"}] * 2
    answers: list[dict[str, str]] = json.loads(done.stdout)
    return answers


def study_images(study: Study) -> tuple[ImageSource, ...]:
    """The study's images in the order of their `<image>`: current frontal, current lateral, prior frontal.

    Raises:
      UserError: there is a lateral or a prior image but no frontal one, which MAIRA-2 has no prompt for.
    """
    if study.frontal is None and (study.lateral is not None or study.prior_frontal is not None):
        raise UserError(f"study {study.study_id} has a lateral or prior image but no frontal one: add `frontal`")
    images = (study.frontal, study.lateral, study.prior_frontal)
    return tuple(image for image in images if image is not None)


def reporting_prompt(study: Study, grounded: bool = False) -> Prompt:
    """The prompt that asks for the findings of a study.

    As in MAIRA-2, the sentence always speaks of the prior frontal image; the prior report is part of the prompt only
    when the prior *image* is; a section that is empty or not a string becomes `N/A`. A study without any image, which
    MAIRA-2's own processor does not have, gets the same prompt without the sentence on images.

    Raises:
      UserError: as `study_images`; as `check_text`; `grounded` is asked of a study without an image.
    """
    study_images(study)
    if grounded and study.frontal is None:
        raise UserError(f"study {study.study_id} has no image to locate findings in: ask for an ungrounded report")
    pieces: list[tuple[str, PromptSection | None]] = [(_images_sentence(study), None)]
    if study.prior_frontal is not None:
        pieces += [(" PRIOR_REPORT: ", None), (_section(study, PromptSection.PRIOR_REPORT), PromptSection.PRIOR_REPORT)]
    pieces.append((_TASK + (_GROUNDING if grounded else ""), None))
    for name in (PromptSection.INDICATION, PromptSection.TECHNIQUE, PromptSection.COMPARISON):
        pieces += [(f" {name.upper()}: ", None), (_section(study, name), name)]
    if study.frontal is None:  # the sentence on images is empty: the task begins the turn
        pieces[1] = (pieces[1][0].lstrip(), None)
    return _assemble(pieces)


def phrase_grounding_prompt(phrase: str) -> Prompt:
    """The prompt that asks where a finding is in the current frontal image.

    Raises:
      UserError: the phrase is empty, or as `check_text`.
    """
    if not phrase:
        raise UserError("the phrase to locate is empty: name a finding, such as 'Pleural effusion.'")
    check_text(phrase, "the phrase to locate")
    return _assemble([(f"Given the current frontal image{IMAGE_TOKEN}{_PHRASE}", None), (phrase, PromptSection.PHRASE)])


def _images_sentence(study: Study) -> str:
    lateral, prior = study.lateral is not None, study.prior_frontal is not None
    if study.frontal is None:
        return ""
    start = "Given the current frontal image"
    if lateral and prior:
        return f"{start}{IMAGE_TOKEN} the current lateral image{IMAGE_TOKEN} and the prior frontal image{IMAGE_TOKEN}"
    if lateral:
        return f"{start}{IMAGE_TOKEN} and the current lateral image{IMAGE_TOKEN}"
    if prior:
        return f"{start}{IMAGE_TOKEN} and the prior frontal image{IMAGE_TOKEN}"
    return f"{start} only{IMAGE_TOKEN}"


def _section(study: Study, section: PromptSection) -> str:
    value = getattr(study, section)
    if not isinstance(value, str) or not value:
        return NOT_AVAILABLE
    check_text(value, f"{section} of study {study.study_id}")
    return value


def check_text(text: str, where: str) -> None:
    """Refuses text that cannot be part of a prompt or a report.

    Raises:
      UserError: it holds the image token, which would become an image that does not exist, or a lone surrogate.
    """
    if IMAGE_TOKEN in text:
        raise UserError(f"{where} holds the text {IMAGE_TOKEN}, which marks an image: remove it")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{where} holds a lone surrogate, which is not a character: repair its encoding")


def _assemble(pieces: Sequence[tuple[str, PromptSection | None]]) -> Prompt:
    spans, content = [], ""
    for text, section in pieces:
        if section is not None:
            spans.append(Span(section, len(content), len(content) + len(text)))
        content += text
    return Prompt(content, tuple(spans), content.count(IMAGE_TOKEN))
