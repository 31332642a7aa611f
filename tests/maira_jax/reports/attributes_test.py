"""Side, size, zone, change and tip of a mention, one entry per place."""

import pytest

from maira_jax.reports.attributes import attributes_of
from maira_jax.reports.mentions import find_mentions


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        ("pleural effusion", [{}]),
        ("increased small left pleural effusion", [{"side": "left", "size": "small", "change": "worse"}]),
        ("slightly increased pleural effusion", [{"change": "worse"}]),
        ("bilateral pleural effusions", [{"side": "left"}, {"side": "right"}]),
        (
            "small left and large right pleural effusions",
            [{"side": "left", "size": "small"}, {"side": "right", "size": "large"}],
        ),
        (
            "consolidation in the left upper and right lower zones",
            [{"side": "left", "zone": "upper"}, {"side": "right", "zone": "lower"}],
        ),
        (
            "consolidation in the left upper and lower zones",
            [{"side": "left", "zone": "upper"}, {"side": "left", "zone": "lower"}],
        ),
        ("low endotracheal tube", [{"tip": "malpositioned"}]),
    ],
)
def test_attributes_of_one_mention(clause: str, expected: list[dict[str, str]]) -> None:
    (mention,) = find_mentions(clause)
    assert attributes_of(mention, mention.phrase) == expected
