"""Grounded reports: phrases with bounding boxes, as text with box tokens and back.

Source: `convert_output_to_plaintext_or_grounded_sequence` and `adjust_box_for_original_image_size` of MAIRA-2's
processor. Whatever that parser accepts is parsed the same here. It raises on anything else, such as a report cut off at
the token limit; this one keeps what is whole and says what was cut.
"""

import dataclasses
import re
from collections.abc import Iterable

N_BINS = 100

_DELIMITER = re.compile(r"</?(?:obj|box)>")
_PHRASE = re.compile(r"<obj>((?:(?!</?obj>).)*)</obj>", re.DOTALL)
_BOX = re.compile(r"<box><x([0-9]{1,2})><y([0-9]{1,2})><x([0-9]{1,2})><y([0-9]{1,2})></box>")


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle, in fractions of the image's width (x) and height (y) from the top left corner."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float


@dataclasses.dataclass(frozen=True)
class Phrase:
    """One finding; `boxes` is None where it was written without a location."""

    text: str
    boxes: tuple[Box, ...] | None = None


@dataclasses.dataclass(frozen=True)
class GroundedReport:
    """A parsed generation.

    Attributes:
      phrases: the whole phrases in order. A plain report is one phrase without boxes.
      grounded: whether the text had any grounding token.
      cut: the pieces of text that could not be kept, in order; empty for a well-formed text.
    """

    phrases: tuple[Phrase, ...]
    grounded: bool
    cut: tuple[str, ...] = ()

    @property
    def plain(self) -> str:
        """The findings as running text, without boxes."""
        return " ".join(phrase.text for phrase in self.phrases)


def box_to_tokens(box: Box) -> str:
    """The six tokens of a box. Each coordinate falls into one of 100 bins; 1.0 falls into the last.

    Raises:
      ValueError: a coordinate outside [0, 1], or a maximum below its minimum.
    """
    corners = dataclasses.astuple(box)
    if not all(0 <= value <= 1 for value in corners) or box.x_min > box.x_max or box.y_min > box.y_max:
        raise ValueError(f"{box} is not a rectangle within the image")
    x0, y0, x1, y1 = (min(int(value * N_BINS), N_BINS - 1) for value in corners)
    return f"<box><x{x0}><y{y0}><x{x1}><y{y1}></box>"


def to_text(phrases: Iterable[Phrase]) -> str:
    """The grounded report that MAIRA-2 would write for these phrases."""
    return "".join(
        f"<obj>{phrase.text}{''.join(box_to_tokens(box) for box in phrase.boxes or ())}</obj>" for phrase in phrases
    )


def parse(text: str) -> GroundedReport:
    """Reads a generated report, grounded or plain; never raises.

    A coordinate is the middle of its bin. Boxes that are broken, and text that is in no closed phrase, go to `cut`.
    """
    text = text.strip()
    if not _DELIMITER.search(text):
        return GroundedReport((Phrase(text),) if text else (), grounded=False)
    phrases: list[Phrase] = []
    cut: list[str] = []
    position = 0
    for match in _PHRASE.finditer(text):
        _keep_rest(text[position : match.start()], cut)
        phrase, broken = _parse_phrase(match[1])
        phrases.append(phrase)
        for piece in broken:
            _keep_rest(piece, cut)
        position = match.end()
    _keep_rest(text[position:], cut)
    return GroundedReport(tuple(phrases), grounded=True, cut=tuple(cut))


def _keep_rest(text: str, cut: list[str]) -> None:
    if text.strip():
        cut.append(text.strip())


def _parse_phrase(inner: str) -> tuple[Phrase, list[str]]:
    start = re.search(r"</?box>", inner)
    if start is None:
        return Phrase(inner.lstrip()), []
    boxes = tuple(Box(*((int(n) + 0.5) / N_BINS for n in match.groups())) for match in _BOX.finditer(inner))
    broken = _BOX.split(inner[start.start() :])[:: _BOX.groups + 1]
    return Phrase(inner[: start.start()].strip(), boxes or None), broken


def adjust_to_original(box: Box, width: int, height: int) -> Box:
    """From the centre-cropped square that the model sees to the original image.

    Args:
      box: in fractions of the square.
      width, height: of the original image, in pixels.

    Returns:
      The box in fractions of the original image, on whole pixels (cut, as MAIRA-2 does).
    """
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2

    def pixel(fraction: float, offset: int) -> int:
        return int(fraction * side + offset)

    return Box(
        pixel(box.x_min, left) / width,
        pixel(box.y_min, top) / height,
        pixel(box.x_max, left) / width,
        pixel(box.y_max, top) / height,
    )


def adjust_to_square(box: Box, width: int, height: int) -> Box | None:
    """From the original image to the centre-cropped square; None where nothing of the box lies in the square."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2

    def fraction(value: float, length: int, offset: int) -> float:
        return min(max((value * length - offset) / side, 0.0), 1.0)

    square = Box(
        fraction(box.x_min, width, left),
        fraction(box.y_min, height, top),
        fraction(box.x_max, width, left),
        fraction(box.y_max, height, top),
    )
    if square.x_min >= square.x_max or square.y_min >= square.y_max:
        return None
    return square
