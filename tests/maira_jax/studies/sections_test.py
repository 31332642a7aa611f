"""The sections of a report by their headings."""

from maira_jax.studies.sections import split_sections


def test_sections_by_their_many_names() -> None:
    text = (
        "WET READ: x\n HISTORY: Fall.\nREASON FOR EXAM:  pain \nFINDINGS:\n\nIMPRESSION:  A: b.\n IMPRESSION: addendum"
    )
    assert split_sections(text) == {"indication": "Fall. pain", "impression": "A: b. addendum"}
    assert split_sections("No headings here.") == {}
