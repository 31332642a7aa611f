"""How a context is shown in every prompt: a line with its section and words, with or without marks, and its image."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from maira_jax.inputs.tokens import SECTION_NAMES, Kind

# Tokens above this share of an example's largest activation are marked (delphi's choice).
MARK_ABOVE = 0.3
MARK_BEGIN, MARK_END = "<<", ">>"
_IMAGE_SECTION = SECTION_NAMES[Kind.IMAGE_LAST]
# Angle and square brackets of a text: they would look like marks, and like a server's own tokens (<|im_end|>, [INST]).
_BRACKETS = str.maketrans("<>[]", "‹›()")


@dataclasses.dataclass(frozen=True)
class ImageAt:
    """An image of a study, found by the position of one of its tokens in the study's sequence."""

    study_id: str
    position: int


def image_at(row: Mapping[str, Any]) -> ImageAt | None:
    """The image that an exemplar row is a part of, if it is of the image section."""
    return ImageAt(row["study_id"], row["position"]) if row["section"] == _IMAGE_SECTION else None


def safe(text: str) -> str:
    """A study's text as language models are shown it."""
    return text.translate(_BRACKETS)


def marked(section: str, tokens: Sequence[str], strong: Sequence[bool]) -> str:
    """The line that shows a context with marks: runs of tokens between << and >>; no other brackets are left."""
    pieces, open_run = [], False
    for token, mark in zip(map(safe, tokens), strong, strict=True):
        if mark and not open_run:
            space = " " if token.startswith(" ") else ""
            pieces.append(f"{space}{MARK_BEGIN}{token[len(space) :]}")
        else:
            pieces.append(f"{MARK_END}{token}" if open_run and not mark else token)
        open_run = mark
    return shown_text(section, (*pieces, MARK_END if open_run else ""))


def section_words(section: str) -> str:
    """A section's name as prompts and explanations write it."""
    return section.replace("_", " ")


def shown_text(section: str, tokens: Iterable[str]) -> str:
    """The line that shows a context in every prompt."""
    return f"{section_words(section)}: {' '.join(''.join(tokens).split())}"


def split_shown(line: str) -> tuple[str, str]:
    """The words for the section, and the text, of a line made by `shown_text`."""
    section, _, words = line.partition(": ")
    return section, words
