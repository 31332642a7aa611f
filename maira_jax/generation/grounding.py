"""Grounded reports: from generated text with box tokens to phrases with bounding boxes in the original image, and back.

Source: `convert_output_to_plaintext_or_grounded_sequence` and `adjust_box_for_original_image_size` of MAIRA-2's
processor. Whatever that parser accepts is parsed the same here. It raises on anything else, such as a report that ends
at the token limit; this one keeps what is whole and lists what it could not parse.
"""

import dataclasses
import re
from collections.abc import Iterable

from maira_jax.studies.study import Study

N_BINS = 100

_DELIMITER = re.compile(r"</?(?:obj|box)>")
_PHRASE = re.compile(r"<obj>((?:(?!</?obj>).)*)</obj>", re.DOTALL)
_BOX = re.compile(r"<box><x([0-9]{1,2})><y([0-9]{1,2})><x([0-9]{1,2})><y([0-9]{1,2})></box>")


@dataclasses.dataclass(frozen=True)
class PhraseBox:
    """A rectangle, in fractions of the image's width (x) and height (y) from the top left corner."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float


@dataclasses.dataclass(frozen=True)
class Phrase:
    """One finding; `boxes` is None where it was written without a location."""

    text: str
    boxes: tuple[PhraseBox, ...] | None = None


@dataclasses.dataclass(frozen=True)
class GroundedReport:
    """A parsed generation.

    Attributes:
      phrases: the whole phrases in order. A plain report is one phrase without boxes.
      grounded: whether the text had any grounding token.
      unparsed: the pieces of text that are no whole phrase or box, in order; empty for a well-formed text.
    """

    phrases: tuple[Phrase, ...]
    grounded: bool
    unparsed: tuple[str, ...] = ()

    @property
    def plain(self) -> str:
        """The findings as running text, without boxes."""
        return " ".join(phrase.text for phrase in self.phrases)


def parse(text: str) -> GroundedReport:
    """Reads a generated report, grounded or plain; never raises.

    A coordinate is the middle of its bin. Broken boxes, and text that is in no closed phrase, go to `unparsed`.
    """
    text = text.strip()
    if not _DELIMITER.search(text):
        return GroundedReport((Phrase(text),) if text else (), grounded=False)
    phrases: list[Phrase] = []
    unparsed: list[str] = []
    position = 0
    for match in _PHRASE.finditer(text):
        _keep_rest(text[position : match.start()], unparsed)
        phrase, broken = _parse_phrase(match[1])
        phrases.append(phrase)
        for piece in broken:
            _keep_rest(piece, unparsed)
        position = match.end()
    _keep_rest(text[position:], unparsed)
    return GroundedReport(tuple(phrases), grounded=True, unparsed=tuple(unparsed))


def _keep_rest(text: str, unparsed: list[str]) -> None:
    if text.strip():
        unparsed.append(text.strip())


def _parse_phrase(inner: str) -> tuple[Phrase, list[str]]:
    start = re.search(r"</?box>", inner)
    if start is None:
        return Phrase(inner.lstrip()), []
    boxes = tuple(PhraseBox(*((int(n) + 0.5) / N_BINS for n in match.groups())) for match in _BOX.finditer(inner))
    broken = _BOX.split(inner[start.start() :])[:: _BOX.groups + 1]
    return Phrase(inner[: start.start()].strip(), boxes or None), broken


def write(phrases: Iterable[Phrase]) -> str:
    """The text that `parse` reads as these phrases, whose boxes are in fractions of the square that the model sees."""
    return "".join(f"<obj>{phrase.text}{''.join(map(_written, phrase.boxes or ()))}</obj>" for phrase in phrases)


def _written(box: PhraseBox) -> str:
    x_min, y_min, x_max, y_max = (min(max(int(edge * N_BINS), 0), N_BINS - 1) for edge in dataclasses.astuple(box))
    return f"<box><x{x_min}><y{y_min}><x{x_max}><y{y_max}></box>"


def reference(study: Study) -> tuple[Phrase, ...]:
    """The study's `grounded_findings`, with their boxes in fractions of the frontal image."""
    return tuple(
        Phrase(
            sentence.text,
            tuple(PhraseBox(box.x, box.y, box.x + box.width, box.y + box.height) for box in sentence.boxes) or None,
        )
        for sentence in study.grounded_findings
    )


def in_square(phrases: Iterable[Phrase], width: int, height: int) -> tuple[Phrase, ...]:
    """From the original image to the centre-cropped square that the model sees; what lies outside is cut off.

    Args:
      phrases: their boxes in fractions of the original image.
      width, height: size of the original image in pixels.
    """
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2

    def cropped(box: PhraseBox) -> PhraseBox:
        xs = (min(max((x * width - left) / side, 0.0), 1.0) for x in (box.x_min, box.x_max))
        ys = (min(max((y * height - top) / side, 0.0), 1.0) for y in (box.y_min, box.y_max))
        (x_min, x_max), (y_min, y_max) = xs, ys
        return PhraseBox(x_min, y_min, x_max, y_max)

    out = []
    for phrase in phrases:
        boxes = [cropped(box) for box in phrase.boxes or ()]
        seen = tuple(box for box in boxes if box.x_max > box.x_min and box.y_max > box.y_min)
        out.append(Phrase(phrase.text, seen or None))
    return tuple(out)


def adjust_to_original(box: PhraseBox, width: int, height: int) -> PhraseBox:
    """From the centre-cropped square that the model sees to the original image.

    Args:
      box: a rectangle in fractions of the square.
      width, height: size of the original image in pixels.

    Returns:
      The box in fractions of the original image, on whole pixels (rounded down, as MAIRA-2 does).
    """
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2

    def pixel(fraction: float, offset: int) -> int:
        return int(fraction * side + offset)

    return PhraseBox(
        pixel(box.x_min, left) / width,
        pixel(box.y_min, top) / height,
        pixel(box.x_max, left) / width,
        pixel(box.y_max, top) / height,
    )
