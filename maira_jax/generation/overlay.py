"""Grounded reports as pictures: the X-ray with its boxes, and the phrases below it in the boxes' colours."""

import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maira_jax.generation.grounding import Phrase

_LONG_EDGE = 1024  # pixels of the picture of the X-ray
_MARGIN, _FONT_SIZE, _LINE_HEIGHT = 16, 20, 28
# Okabe and Ito's colours, which colour-blind readers can distinguish; without black, which is lost on an X-ray.
COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
_PLAIN = "#B0B0B0"
_BACKGROUND, _TEXT = "#101010", "#F0F0F0"


def draw(grey: np.ndarray, phrases: Sequence[Phrase], notes: Sequence[str] = ()) -> Image.Image:
    """Draws a grounded report.

    Args:
      grey: the original image, uint8 [height, width].
      phrases: the findings, their boxes in fractions of the original image. Each phrase with boxes has its own colour
        (the seven colours repeat); the others are listed in grey.
      notes: lines of text to end with.

    Returns:
      A colour image, the X-ray scaled to 1024 pixels on its long edge, the phrases below.
    """
    scale = _LONG_EDGE / max(grey.shape)
    width, height = (max(1, round(edge * scale)) for edge in grey.shape[::-1])
    xray = Image.fromarray(grey).resize((width, height), Image.Resampling.BICUBIC).convert("RGB")
    font = ImageFont.load_default(_FONT_SIZE)
    located = [phrase for phrase in phrases if phrase.boxes]
    colours = {id(phrase): COLOURS[i % len(COLOURS)] for i, phrase in enumerate(located)}
    pen = ImageDraw.Draw(xray)
    for phrase in located:
        for box in phrase.boxes or ():
            # A model may write the corners in any order.
            xs, ys = sorted((box.x_min * width, box.x_max * width)), sorted((box.y_min * height, box.y_max * height))
            pen.rectangle((xs[0], ys[0], xs[1], ys[1]), outline=colours[id(phrase)], width=4)
    entries = [(colours.get(id(phrase), _PLAIN), phrase.text) for phrase in phrases] + [("", note) for note in notes]
    space = _LONG_EDGE - 3 * _MARGIN - _FONT_SIZE
    lines = [(colour, _wrap(_printable(text), font, space)) for colour, text in entries]
    rows = sum(len(wrapped) for _, wrapped in lines)
    picture = Image.new("RGB", (_LONG_EDGE, height + 2 * _MARGIN + rows * _LINE_HEIGHT), _BACKGROUND)
    picture.paste(xray, ((_LONG_EDGE - width) // 2, 0))
    _legend(ImageDraw.Draw(picture), lines, height + _MARGIN, font)
    return picture


def _legend(
    pen: ImageDraw.ImageDraw,
    lines: Sequence[tuple[str, list[str]]],
    top: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    for colour, wrapped in lines:
        if colour:
            pen.rectangle((_MARGIN, top + 4, _MARGIN + _FONT_SIZE, top + 4 + _FONT_SIZE), fill=colour)
        for line in wrapped:
            pen.text((2 * _MARGIN + _FONT_SIZE, top), line, fill=_TEXT, font=font)
            top += _LINE_HEIGHT


def _printable(text: str) -> str:
    """Text on one line: control characters, which would break the layout or fail, become spaces."""
    return "".join(" " if unicodedata.category(character).startswith("C") else character for character in text)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, space: float) -> list[str]:
    """Breaks text into lines of at most `space` pixels, between words where it can."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".lstrip()
        if font.getlength(joined) <= space:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if font.getlength(lines[-1] + character) > space:
                lines.append("")
            lines[-1] += character
    return lines
