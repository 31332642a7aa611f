"""Side, size, zone, change and tip position of a mentioned finding, from the words around it."""

import re
from typing import NamedTuple

from maira_jax.reports.mentions import Mention
from maira_jax.reports.vocabulary import cues, qualifiers, terms
from maira_jax.reports.vocabulary.pattern import blank

_NEW_CLAUSE = re.compile(r", (?:and |which )")


class _Place(NamedTuple):
    """A side, a zone or both, and the span of words that leads up to its side."""

    start: int
    stop: int
    fields: dict[str, str]


def attributes_of(mention: Mention, phrase: str) -> list[dict[str, str]]:
    """The known fields of `Finding` for each place of a mention, at least one.

    Args:
      mention: a mention whose status is known.
      phrase: the phrase that names the finding.
    """
    around = f"{mention.before} {phrase} | {mention.after}"
    before = blank(f"{mention.before} {phrase}", qualifiers.SIDE_VETO)
    text = blank(blank(around, qualifiers.SIDE_VETO), qualifiers.ZONE_VETO)
    device = mention.name in terms.DEVICES
    if device and qualifiers.SIDES.search(before):
        text = before
    shared = _shared(mention, phrase, around)
    places = _places(text, mention.name)
    if len(places) < 2:
        return [shared | place.fields for place in places] or [shared]
    found = []
    for place in places:
        words = text[place.start : place.stop]
        own = {"size": None if device else _largest_size(words), "change": _first(qualifiers.CHANGES, words)}
        found.append(shared | place.fields | {key: value for key, value in own.items() if value})
    return found


def _shared(mention: Mention, phrase: str, around: str) -> dict[str, str]:
    """Size, change and tip, which all places of a mention have in common."""
    size = tip = None
    if mention.name in terms.DEVICES:
        tip = _first(qualifiers.TIPS, f"{mention.before} | {mention.after}")
        if qualifiers.MALPOSITION_BEFORE.search(mention.before):
            tip = "malpositioned"
    else:
        size = _largest_size(f"{mention.before} {phrase} | {_NEW_CLAUSE.split(mention.after)[0]}")
    change = _first(qualifiers.CHANGES, blank(around, cues.RESOLVED) if mention.status == "absent" else around)
    return {key: value for key, value in (("size", size), ("change", change), ("tip", tip)) if value}


def _first(table: tuple[tuple[str, re.Pattern[str]], ...], text: str) -> str | None:
    """The value of the table's first row that occurs anywhere in `text`."""
    return next((value for value, pattern in table if pattern.search(text)), None)


def _largest_size(text: str) -> str | None:
    return _first(qualifiers.SIZES[::-1], blank(text, qualifiers.SIZE_OF_CHANGE))


def _places(text: str, name: str) -> list[_Place]:
    """The places that `text` names: "left upper and right lower" is two, and so is "both bases"."""
    sides = [(match.start(), _sides_of(match)) for match in qualifiers.SIDES.finditer(text)]
    zones: list[tuple[int, str]] = []
    if name not in terms.DEVICES:
        zones = sorted((match.start(), zone) for zone, p in qualifiers.ZONES for match in p.finditer(text))
    names = list(dict.fromkeys(zone for _, zone in zones))
    if name not in terms.ZONAL:
        names = names[:1]
    if not sides:
        return [_Place(0, len(text), {"zone": zone}) for zone in names]
    # Each side has its own zones where there are several of both; the zones follow their side, or precede it.
    separate = len(names) > 1 and len(sides) > 1
    side_first = separate and sides[0][0] <= zones[0][0]
    found: dict[tuple[str, str], _Place] = {}
    start = 0
    for i, (position, names_of_side) in enumerate(sides):
        own = names
        if separate:
            following = sides[i + 1][0] if i + 1 < len(sides) else len(text)
            low, high = (position, following) if side_first else (start, position)
            own = [zone for at, zone in zones if low <= at < high]
        for side in names_of_side:
            for zone in own or [""]:
                fields = {"side": side} | ({"zone": zone} if zone else {})
                found.setdefault((side, zone), _Place(start, position, fields))
        start = position
    return list(found.values())


def _sides_of(match: re.Match[str]) -> tuple[str, ...]:
    return ("left", "right") if match["both"] else ("left",) if match["left"] else ("right",)
