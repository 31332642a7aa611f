"""What notebooks show: shaded words, X-rays with heat maps and boxes, and the words that two reports differ in.

Every text is escaped (markupsafe), images stand in the page as data, and nothing is loaded from anywhere.
"""

import base64
import io
from collections.abc import Iterable, Sequence

import numpy as np
from markupsafe import Markup
from PIL import Image

from maira_jax.generation.grounding import PhraseBox
from maira_jax.inputs.regions import patch_boxes

_SIDE, _QUALITY = 384, 80  # longest side in pixels, as shown and at most in the file, and JPEG's quality
_MIN_SHADE = 0.05  # of the largest activation; what is below stays unshaded
_ADDED = "background:rgba(0,158,115,.30);text-decoration:none"
_REMOVED = "background:rgba(213,94,0,.25)"

EMPTY = Markup("")


def join(parts: Iterable[Markup], separator: Markup = EMPTY) -> Markup:
    """The parts one after the other."""
    return separator.join(parts)


def heading(text: str) -> Markup:
    """A line in bold."""
    return Markup('<div style="font-weight:600;margin:.5em 0 .2em">{}</div>').format(text)


def paragraph(content: Markup | str) -> Markup:
    """Running text that is wrapped."""
    return Markup('<div style="max-width:60em;line-height:1.6;white-space:pre-wrap">{}</div>').format(content)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """A table; its cells are escaped unless they are markup."""
    cell = Markup('<td style="text-align:left;padding:.1em .7em">{}</td>')
    head = join(Markup('<th style="text-align:left;padding:.1em .7em">{}</th>').format(name) for name in header)
    body = join(Markup("<tr>{}</tr>").format(join(cell.format(value) for value in row)) for row in rows)
    return Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(head, body)


def shaded(tokens: Sequence[str], activations: Sequence[float] | np.ndarray, largest: float) -> Markup:
    """Text whose tokens are shaded by their activations, which hovering shows; `largest` has the full shade."""
    parts = []
    for token, value in zip(tokens, activations, strict=True):
        share = min(float(value) / largest, 1.0) if largest > 0 else 0.0
        if share < _MIN_SHADE:
            parts.append(Markup.escape(token))
        else:
            style = f"background:rgba(230,159,0,{0.15 + 0.75 * share:.2f});border-radius:2px"
            parts.append(Markup('<span style="{}" title="{}">{}</span>').format(style, f"{float(value):.3g}", token))
    return join(parts)


def x_ray(
    grey: np.ndarray,
    heat: np.ndarray | None = None,
    largest: float = 0.0,
    boxes: Sequence[tuple[str, str, PhraseBox]] = (),
) -> Markup:
    """An X-ray with what lies over it.

    Args:
      grey: the whole image, uint8 [height, width].
      heat: an activation per patch of the model's centre square, [rows, columns]; the largest is most opaque.
      largest: the activation that has the full shade.
      boxes: colour, text and place of each box.
    """
    height, width = grey.shape
    picture = Image.fromarray(grey)
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    data = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    wide, high = (round(side * _SIDE / max(width, height)) for side in (width, height))
    shapes = [] if heat is None else _heat_map(heat, largest, wide, high, (width, height))
    for colour, text, box in boxes:
        # A model may write the corners in any order.
        (left, right), (top, bottom) = sorted((box.x_min, box.x_max)), sorted((box.y_min, box.y_max))
        place = (left * wide, top * high, (right - left) * wide, (bottom - top) * high)
        shapes.append(_rectangle(place, f"fill:none;stroke:{colour};stroke-width:2", text))
    return Markup(
        '<svg width="{0}" height="{1}" viewBox="0 0 {0} {1}" style="margin:.2em" role="img">'
        '<image href="{2}" width="{0}" height="{1}"/>{3}</svg>'
    ).format(wide, high, data, join(shapes))


def _heat_map(heat: np.ndarray, largest: float, wide: int, high: int, size: tuple[int, int]) -> list[Markup]:
    places = patch_boxes(*size, (heat.shape[0], heat.shape[1]), "crop") * [wide, high, wide, high]
    return [
        _rectangle(place, f"fill:#E69F00;fill-opacity:{0.65 * min(value / largest, 1.0):.2f}", f"{value:.3g}")
        for place, value in zip(places.tolist(), heat.ravel().tolist(), strict=True)
        if largest > 0 and value >= _MIN_SHADE * largest
    ]


def _rectangle(place: Sequence[float], style: str, title: str) -> Markup:
    x, y, width, height = (f"{value:.1f}" for value in place)
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" style="{}"><title>{}</title></rect>').format(
        x, y, width, height, style, title
    )


def marked_changes(runs: Iterable[tuple[str, str]]) -> Markup:
    """One text becoming another: words that are gone crossed out, new ones underlaid; see `reports.word_changes`."""
    form = {
        "same": Markup("{}"),
        "removed": Markup(f'<del style="{_REMOVED}">{{}}</del>'),
        "added": Markup(f'<ins style="{_ADDED}">{{}}</ins>'),
    }
    return join((form[name].format(words) for name, words in runs), Markup(" "))
