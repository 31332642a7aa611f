"""What a finding accepts."""

import pytest

from maira_jax.studies.study import Finding


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
