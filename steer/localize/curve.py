"""A plot over the depth of the model: how well concepts are read and written in each section of the prompt."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

_COLOURS = ("#1f6f8b", "#c8553d", "#6a8d3a", "#7d5ba6", "#b08900", "#444444")
_LEFT, _RIGHT, _TOP, _BOTTOM = 60.0, 560.0, 20.0, 320.0  # the plot's edges, in pixels
# What is drawn of each section: the column, its words and its dashes.
_CURVES = (
    ("read_auroc", "read (AUROC)", "5 4"),
    ("write_on_target", "written (on target)", ""),
    ("write_off_target", "another finding changed", "1 4"),
)


def svg(points: Sequence[dict[str, Any]]) -> str:
    """The plot as an SVG file.

    Args:
      points: `site`, `depth` and `section` with the measures, which may be None, in the order of a pass.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    sites = list(dict.fromkeys(point["site"] for point in points))
    across = {
        site: round(_LEFT + (_RIGHT - _LEFT) * (number + 0.5) / len(sites), 1) for number, site in enumerate(sites)
    }
    colours = dict(zip(dict.fromkeys(point["section"] for point in points), itertools.cycle(_COLOURS), strict=False))
    curves = [
        {
            "section": section,
            "words": words,
            "colour": colour,
            "dashes": dashes,
            "points": [
                {"x": across[point["site"]], "y": _up(point[column]), "site": point["site"], "value": point[column]}
                for point in points
                if point["section"] == section and point.get(column) is not None
            ],
        }
        for section, colour in colours.items()
        for column, words, dashes in _CURVES
    ]
    return environment.get_template("curve.svg.jinja").render(
        curves=[curve for curve in curves if curve["points"]],
        ticks=[{"y": _up(tick / 4), "text": f"{tick / 4:.2f}"} for tick in range(5)],
        sites=[{"x": x, "name": site} for site, x in across.items()],
        edges={"left": _LEFT, "right": _RIGHT, "top": _TOP, "bottom": _BOTTOM},
    )


def _up(share: float) -> float:
    return round(_BOTTOM - (_BOTTOM - _TOP) * share, 1)
