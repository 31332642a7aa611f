"""What a finding and a box accept."""

import pytest

from maira_jax.studies.study import Box, Finding, parse_boxes


@pytest.mark.parametrize(
    "fields",
    [
        {"status": "here"},
        {"status": None},
        {"side": "bilateral"},
        {"size": "mild"},
        {"zone": "apical"},
        {"change": "gone"},
        {"tip": "low"},
        {"change": "resolved"},
    ],
)
def test_a_finding_takes_only_its_words(fields: dict[str, str | None]) -> None:
    with pytest.raises(ValueError, match="is not one of|needs status"):
        Finding(**{"name": "pneumothorax", "status": "present", **fields})  # type: ignore[arg-type]


def test_boxes_are_areas_of_the_image() -> None:
    (box,) = parse_boxes([["mass", 0, 0.5, 0.25, 0.5004]])
    assert box == Box("mass", 0, 0.5, 0.25, 0.5004)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"mass": [0, 0, 1, 1]}, "not a list"),
        ([["mass", 0, 0, 1]], "not a list"),
        ([["", 0, 0, 1, 1]], "not a label"),
        ([[3, 0, 0, 1, 1]], "not a label"),
        ([["mass", 0, 0, "1", 1]], "not four finite numbers"),
        ([["mass", 0, float("nan"), 1, 1]], "not four finite numbers"),
        ([["mass", 0, 0, 0, 1]], "not an area"),
        ([["mass", -0.1, 0, 1, 1]], "not an area"),
        ([["mass", 0.5, 0, 0.6, 1]], "not an area"),
        ([["mass", 500, 0, 200, 100]], "not an area"),
    ],
)
def test_says_what_is_no_box(value: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_boxes(value)
