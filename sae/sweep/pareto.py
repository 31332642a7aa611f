"""A plot of what sparsity costs: the fraction of variance unexplained of each member against its L0."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

_COLOURS = ("#1f6f8b", "#c8553d", "#6a8d3a", "#7d5ba6", "#b08900", "#444444")
_LEFT, _RIGHT, _TOP, _BOTTOM = 70.0, 690.0, 20.0, 380.0  # the plot's edges, in pixels


def svg(rows: Sequence[dict[str, Any]]) -> str:
    """The plot as an SVG file.

    Args:
      rows: the sweep's table: `member`, `n_features`, `lr`, `k`, `l1`, `fvu`, `l0`, `dead` and `best`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    # A member without any active feature lies at the left edge.
    exponents = [math.log10(max(row["l0"], 1e-2)) for row in rows]
    across, up = _Scale(exponents, _LEFT, _RIGHT), _Scale([row["fvu"] for row in rows], _BOTTOM, _TOP)
    widths = sorted({row["n_features"] for row in rows})
    colours = dict(zip(widths, itertools.cycle(_COLOURS), strict=False))
    points = [
        row | {"x": across(exponent), "y": up(row["fvu"]), "colour": colours[row["n_features"]]}
        for row, exponent in zip(rows, exponents, strict=True)
    ]
    return environment.get_template("pareto.svg.jinja").render(
        points=points,
        front=[points[index] for index in front(rows)],
        across=[{"x": across(tick), "text": f"{10**tick:.3g}"} for tick in across.ticks()],
        up=[{"y": up(tick), "text": f"{tick:.3f}"} for tick in up.ticks()],
        legend=[{"text": f"{width:,} features", "colour": colours[width]} for width in widths],
        edges={"left": _LEFT, "right": _RIGHT, "top": _TOP, "bottom": _BOTTOM},
    )


def front(rows: Sequence[dict[str, Any]]) -> list[int]:
    """Indices of the members that no other one beats in both `fvu` and `l0`, from the sparsest on."""
    found: list[int] = []
    for index in sorted(range(len(rows)), key=lambda i: (rows[i]["l0"], rows[i]["fvu"])):
        if not found or rows[index]["fvu"] < rows[found[-1]]["fvu"]:
            found.append(index)
    return found


class _Scale:
    """Numbers to pixels, with a margin at both ends."""

    def __init__(self, values: Sequence[float], begin: float, end: float):
        margin = 0.08 * (max(values) - min(values)) or 0.5
        self._low, self._high = min(values) - margin, max(values) + margin
        self._begin, self._end = begin, end

    def __call__(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return round(self._begin + share * (self._end - self._begin), 1)

    def ticks(self) -> list[float]:
        """Five numbers, evenly spread."""
        return [self._low + (self._high - self._low) * i / 4 for i in range(5)]
