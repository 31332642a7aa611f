"""Renders the phantom's chest images.

Every shape is painted once for each of a few *bodies* (thoraxes that differ in build), as a sprite: how much of the
image below it to keep, and what to add. Rendering a batch is then a gather and a multiply-add for each finding, on the
images that have it, followed by a shift, a change of contrast and noise. Coordinates are in units of 1/112 of the
image side, whatever the size. The patient's left is on the right of the image.
"""

import functools
from dataclasses import dataclass

import numpy as np
import scipy

from maira_jax.phantom.world.latents import SLOTS, Latents, uniforms
from maira_jax.studies.study import Box

UNITS = 112
BODIES = 16
MAX_SHIFT = 3  # of an image, in units
NOISE = 0.022  # standard deviation, of a grey scale from 0 to 1
_BANK = 1 << 18
_CHUNK = 64  # images painted at once: their canvas stays in the processor's cache

_HEART = {
    0: (4.0, 14.0),
    1: (6.0, 18.5),
    2: (7.5, 22.0),
    3: (9.0, 25.5),
}  # centre offset, half width
_FLUID = {1: 11.0, 2: 25.0, 3: 41.0}  # height of the meniscus
_AIR = {1: 4.5, 2: 11.5}  # thickness of the band without lung
_ZONE = {
    "upper": (-2.0, 17.0),
    "mid": (3.0, 35.0),
    "lower": (5.0, 54.0),
}  # outwards, below the apex


_Layer = tuple[np.ndarray, np.ndarray | float]  # coverage from 0 to 1 and grey value, [H, W] each


@dataclass(frozen=True)
class _Body:
    """The build of a thorax, in units; a study and its prior study have the same."""

    grid: tuple[np.ndarray, np.ndarray]  # x, y of pixel centres, [H, W] each
    texture: np.ndarray  # [H, W] smooth noise, standard deviation 1
    sharpness: float  # pixels per unit
    centre: float  # of a lung, from the midline
    width: float  # half of a lung's
    apex: float
    base: float
    rib: float  # phase of the ribs, in periods
    wobble: np.ndarray  # [slots] small offsets, -1 to 1

    def cover(self, distance: np.ndarray) -> np.ndarray:
        """1 inside (negative distance), 0 outside, with an edge one pixel wide."""
        return np.clip(0.5 - distance * self.sharpness, 0, 1)

    def lung(self, sign: int, inset: float = 0.0) -> np.ndarray:
        """Distance to the outline of the pleural space, which has no floor; `inset` shrinks it on the outside and the
        top alone."""
        x, y = self.grid
        outwards = (x - 56) * sign - self.centre + inset / 2
        width = self.width - inset / 2
        top = self.apex + 1.3 * inset
        height = (self.base + 30 - top) / 2
        down = (y - top) / height - 1
        radius = (np.abs(outwards / width) ** 2.8 + np.abs(down) ** 2.8) ** (1 / 2.8)
        return (radius - 1) * width

    def floor(self, sign: int) -> np.ndarray:
        """Height of the diaphragm at the x of each pixel."""
        x, _ = self.grid
        outwards = ((x - 56) * sign - self.centre) / self.width
        return self.base - (3 if sign < 0 else 0) - 7 * (1 - outwards**2) + 3

    def aerated(self, sign: int) -> np.ndarray:
        """Coverage of a lung above the diaphragm."""
        _, y = self.grid
        return self.cover(self.lung(sign)) * self.cover(y - self.floor(sign))

    def stroke(self, points: list[tuple[float, float]], width: float) -> np.ndarray:
        """Coverage of a line through points (x, y)."""
        x, y = self.grid
        best = np.full(x.shape, np.inf)
        for (x0, y0), (x1, y1) in zip(points[:-1], points[1:], strict=True):
            dx, dy = x1 - x0, y1 - y0
            along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
            best = np.minimum(best, np.hypot(x - x0 - along * dx, y - y0 - along * dy))
        return self.cover(best - width / 2)


@dataclass(frozen=True)
class _Sprite:
    """canvas[:, rows, cols] becomes canvas * keep + add; keep and add are [bodies, rows, cols]."""

    rows: slice
    cols: slice
    keep: np.ndarray
    add: np.ndarray


@dataclass(frozen=True)
class _SpriteSet:
    """Everything that is painted, at one size."""

    bodies: np.ndarray  # float32 [bodies, H, W], without a heart
    findings: dict[tuple[int, int], _Sprite]  # by (slot's column, level), in painting order


def render(latents: Latents, size: int = UNITS, *, prior: bool = False) -> np.ndarray:
    """Renders the current images of studies, or their prior images.

    Args:
      latents: states of the studies.
      size: side of the images in pixels, at least 28 (lines are not visible below that).
      prior: whether to render `latents.prior_levels`; studies without a prior get a black image.

    Returns:
      uint8 [n, size, size].
    """
    sprites, bank = _sprite_set(size), _noise(size)
    levels = latents.prior_levels if prior else latents.levels
    bodies, pose = _bodies(latents), _pose(latents, prior)
    shifts = _shifts(pose, size)
    gain = (0.90 + 0.20 * pose[:, 2]).astype(np.float32)
    lift = (0.02 + 0.06 * pose[:, 3]).astype(np.float32)
    grain = (pose[:, 4] * _BANK).astype(int)
    out = np.zeros((len(latents), size, size), np.uint8)
    wanted = np.flatnonzero(latents.has_prior) if prior else np.arange(len(latents))
    for at in range(0, len(wanted), _CHUNK):
        rows = wanted[at : at + _CHUNK]
        canvas = _paint(sprites, bodies[rows], levels[rows])
        windows = np.lib.stride_tricks.sliding_window_view(canvas, (size, size), axis=(1, 2))
        image = windows[np.arange(len(rows)), shifts[rows, 0], shifts[rows, 1]]
        image *= 255 * gain[rows, None, None]
        image += bank[grain[rows]].reshape(image.shape)
        image += 255 * lift[rows, None, None]
        out[rows] = np.clip(image, 0, 255, out=image)
    return out


def places(latents: Latents, size: int = UNITS) -> list[dict[str, tuple[Box, ...]]]:
    """Where the present findings of each study are in its current image, by the name of their slot.

    A finding's boxes hold what covers at least half as much as its densest pixel, one box for each connected part, such
    as the two lungs of oedema; what other findings paint over it counts.

    Args:
      latents: states of the studies.
      size: side of the images in pixels.
    """
    shifts, bodies = _shifts(_pose(latents, prior=False), size), _bodies(latents)
    out = []
    for body, (down, across), levels in zip(bodies.tolist(), shifts, latents.levels, strict=True):
        boxes: dict[str, tuple[Box, ...]] = {}
        for column in np.flatnonzero(levels).tolist():
            slot, found = SLOTS[column], []
            for part in _parts(size, column, int(levels[column]), body):
                edges = np.clip(part - [across, down, across, down], 0, size) / size  # left, top, right, bottom
                if (edges[2:] > edges[:2]).all():
                    x, y, right, bottom = edges.tolist()
                    found.append(Box(slot.finding, x, y, right - x, bottom - y))
            boxes[slot.name] = tuple(found)
        out.append(boxes)
    return out


@functools.cache
def _parts(size: int, column: int, level: int, body: int) -> np.ndarray:
    """Left, top, right and bottom of each connected part of a finding on the canvas, in pixels. [parts, 4]"""
    sprite = _sprite_set(size).findings[column, level]
    cover = 1 - sprite.keep[body]
    parts, n = scipy.ndimage.label(cover >= cover.max() / 2, structure=np.ones((3, 3)))
    areas = np.bincount(parts.ravel(), minlength=n + 1)[1:]
    found = [
        box for box, area in zip(scipy.ndimage.find_objects(parts), areas, strict=True) if area >= areas.sum() / 20
    ]
    top, left = sprite.rows.start, sprite.cols.start
    return np.array([[cols.start, rows.start, cols.stop, rows.stop] for rows, cols in found]) + [left, top, left, top]


def _bodies(latents: Latents) -> np.ndarray:
    """The number of each study's body, int [n]."""
    return (uniforms(latents.start, latents.start + len(latents), latents.seed, 1, 1)[:, 0] * BODIES).astype(int)


def _pose(latents: Latents, prior: bool) -> np.ndarray:
    """Random numbers of each image: its shift down and across, contrast, brightness and noise. [n, 5]"""
    return uniforms(latents.start, latents.start + len(latents), latents.seed, 3 if prior else 2, 5)


def _shifts(pose: np.ndarray, size: int) -> np.ndarray:
    """Upper left corner of each image on its canvas, in pixels down and across. int [n, 2]"""
    return (pose[:, :2] * (2 * _margin(size) + 1)).astype(int)


def _paint(sprites: _SpriteSet, bodies: np.ndarray, levels: np.ndarray) -> np.ndarray:
    canvas = sprites.bodies[bodies]  # [n, H, W]
    for (column, level), sprite in sprites.findings.items():
        where = np.flatnonzero(levels[:, column] == level)
        if len(where):
            part = canvas[:, sprite.rows, sprite.cols]
            painted = part[where]
            painted *= sprite.keep[bodies[where]]
            painted += sprite.add[bodies[where]]
            part[where] = painted
    return canvas


def _margin(size: int) -> int:
    return max(1, round(MAX_SHIFT * size / UNITS))


@functools.lru_cache(maxsize=4)
def _noise(size: int) -> np.ndarray:
    """Windows onto one strip of noise, one per image: float32 [offsets, size * size]."""
    strip = np.random.default_rng(11).standard_normal(_BANK + size * size, np.float32)
    strip *= 255 * NOISE
    return np.lib.stride_tricks.sliding_window_view(strip, size * size)


@functools.lru_cache(maxsize=4)
def _sprite_set(size: int) -> _SpriteSet:
    bodies = [_body(size, k) for k in range(BODIES)]
    base = np.stack([_background(body) for body in bodies]).astype(np.float32)
    findings = {}
    # In painting order: fluid over lung, the heart over fluid, devices over all.
    order = ("oedema", "consolidation", "pneumothorax", "pleural effusion", "cardiomegaly")
    columns = sorted(
        range(len(SLOTS)),
        key=lambda c: order.index(SLOTS[c].finding) if SLOTS[c].finding in order else len(order),
    )
    for column in columns:
        slot = SLOTS[column]
        for level in range(slot.finding != "cardiomegaly", slot.levels):
            layers = [_LAYERS[slot.finding](body, column, level) for body in bodies]
            findings[column, level] = _sprite(layers)
    return _SpriteSet(base, findings)


def _sprite(layers: list[_Layer]) -> _Sprite:
    """Crops layers, one per body, to the box that holds them all."""
    cover = np.stack([cover for cover, _ in layers])
    value = np.stack([np.broadcast_to(value, cover.shape[1:]) for _, value in layers])
    touched = np.any(cover > 1e-3, axis=0)
    rows, cols = np.flatnonzero(touched.any(1)), np.flatnonzero(touched.any(0))
    box = (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))
    cover, value = cover[:, *box], value[:, *box]
    return _Sprite(*box, (1 - cover).astype(np.float32), (cover * value).astype(np.float32))


def _body(size: int, number: int) -> _Body:
    rng = np.random.default_rng((7, number))
    margin = _margin(size)
    line = (np.arange(size + 2 * margin) - margin + 0.5) * UNITS / size
    y, x = np.meshgrid(line, line, indexing="ij")
    texture = np.zeros_like(x)
    for _ in range(24):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        period = rng.uniform(4, 11)
        along = np.cos(angle) * x + np.sin(angle) * y
        texture += np.sin(2 * np.pi * along / period + phase)
    return _Body(
        grid=(x, y),
        texture=texture / texture.std(),
        sharpness=size / UNITS,
        centre=rng.uniform(25, 27),
        width=rng.uniform(19, 21),
        apex=rng.uniform(15.5, 18.5),
        base=rng.uniform(87, 90),
        rib=rng.uniform(0, 1),
        wobble=rng.uniform(-1, 1, len(SLOTS)),
    )


def _background(body: _Body) -> np.ndarray:
    x, y = body.grid
    trunk = body.cover((np.abs((x - 56) / 51) ** 4 + np.abs((y - 75) / 68) ** 4) ** 0.25 * 50 - 50)
    neck = body.cover(np.abs(x - 56) - 15) * body.cover(y - 20)
    image = 0.02 + 0.48 * np.maximum(trunk, neck)
    image += 0.10 * body.cover(np.abs(x - 56) - 5) * np.maximum(trunk, neck)
    for sign in (-1, 1):
        lung = body.aerated(sign)
        outwards = (x - 56) * sign
        ribs = np.sin(2 * np.pi * ((y - 0.012 * (outwards - 20) ** 2) / 10 + body.rib)) > 0.55
        image = image * (1 - lung) + lung * (0.19 + 0.05 * ribs + 0.012 * body.texture)
    windpipe = body.stroke([(56, -5), (56, 38), (50, 44)], 5)
    windpipe = np.maximum(windpipe, body.stroke([(56, 38), (62, 44)], 4))
    return image - 0.22 * windpipe * np.minimum(1, image / 0.4)


def _sign(column: int) -> int:
    """+1 for the patient's left (the right of the image)."""
    return 1 if SLOTS[column].side == "left" else -1


def _heart(body: _Body, column: int, level: int) -> _Layer:
    x, y = body.grid
    offset, width = _HEART[level]
    width += 0.5 * body.wobble[column]
    height = 17 + 0.12 * width
    across, down = (x - 56 - offset) / width, (y - (body.base - 19)) / height
    turned = down - 0.25 * across
    edge = (np.sqrt(across**2 + turned**2) - 1) * width
    return 0.8 * body.cover(edge), 0.62


def _effusion(body: _Body, column: int, level: int) -> _Layer:
    x, y = body.grid
    sign = _sign(column)
    outwards = np.clip(((x - 56) * sign - body.centre) / body.width, -1, 1)
    surface = body.base - _FLUID[level] + body.wobble[column] - 3 * outwards**2 * (outwards > 0)
    surface = surface + 3 * (1 - outwards) / 2
    below = body.cover(y - (body.base + 3))
    cover = body.cover(body.lung(sign)) * body.cover(surface - y) * below
    return 0.95 * cover, 0.84


def _pneumothorax(body: _Body, column: int, level: int) -> _Layer:
    _, y = body.grid
    sign = _sign(column)
    inner = body.lung(sign, _AIR[level] + 0.4 * body.wobble[column])
    above = body.cover(y - (body.base - 14))
    lung = body.aerated(sign)
    air = lung * (1 - body.cover(inner)) * above
    line = lung * body.cover(np.abs(inner) - 0.8) * above
    return np.maximum(air, line), np.where(line > 0.3, 0.62, 0.03)


def _consolidation(body: _Body, column: int, level: int) -> _Layer:
    del level  # present or absent
    x, y = body.grid
    slot, sign = SLOTS[column], _sign(column)
    outwards, down = _ZONE[slot.zone or "mid"]
    wobble = body.wobble[column]
    dx = (x - 56) * sign - body.centre - outwards - wobble
    dy = y - body.apex - down + wobble
    edge = np.hypot(dx / 1.1, dy) - 8.5 - 1.2 * body.texture
    return 0.9 * body.cover(edge / 2) * body.aerated(sign), 0.74 + 0.07 * body.texture


def _oedema(body: _Body, column: int, level: int) -> _Layer:
    del level
    x, y = body.grid
    away = ((np.abs(x - 56) - 17) / 11) ** 2 + ((y - body.apex - 34 - body.wobble[column]) / 17) ** 2
    haze = 0.62 * np.exp(-0.5 * away) * (body.aerated(-1) + body.aerated(1))
    return haze, 0.62 + 0.05 * body.texture


def _pacemaker(body: _Body, column: int, level: int) -> _Layer:
    del level
    x, y = body.grid
    px, py = 87 + body.wobble[column], 25 - body.wobble[column]
    box = body.cover(np.maximum(np.abs(x - px) - 6, np.abs(y - py) - 4.5))
    lead = body.stroke([(px - 5, py), (72, 30), (65, 40), (64, 55), (68, body.base - 14)], 1.6)
    return np.maximum(box, lead), 1.0


def _endotracheal(body: _Body, column: int, level: int) -> _Layer:
    wobble = body.wobble[column]
    path = [(55.0, -6.0), (55.0, 27 + wobble)]
    if level == 2:
        path = [(55.0, -6.0), (55.0, 38.0), (46.0, 49 + wobble)]
    return body.stroke(path, 3.4), 0.95


def _nasogastric(body: _Body, column: int, level: int) -> _Layer:
    wobble = body.wobble[column]
    path = [(60.0, -6.0), (59.0, 56 + wobble)]
    if level == 1:
        path = [(60.0, -6.0), (59.0, 82.0), (64.0, 94.0), (76 + wobble, 99.0)]
    return body.stroke(path, 1.8), 1.0


def _central_line(body: _Body, column: int, level: int) -> _Layer:
    wobble = body.wobble[column]
    tip = {1: 44.0, 2: 67.0}[level] + wobble
    path = [(40.0, -6.0), (42.0, 8.0), (48.0, 24.0), (49.0, tip)]
    return body.stroke(path, 1.8), 1.0


_LAYERS = {
    "cardiomegaly": _heart,
    "pleural effusion": _effusion,
    "pneumothorax": _pneumothorax,
    "consolidation": _consolidation,
    "oedema": _oedema,
    "pacemaker": _pacemaker,
    "endotracheal tube": _endotracheal,
    "nasogastric tube": _nasogastric,
    "central venous line": _central_line,
}
