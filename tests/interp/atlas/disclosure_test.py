"""What a de-identified atlas masks, and what it leaves."""

import pytest

from interp.atlas.disclosure import MASK, Disclosure


@pytest.mark.parametrize(
    "text, shown",
    [
        ("Compared to 12/03/2019.", f"Compared to {MASK}."),
        ("Compared to 2019-12-03 and March 4, 2020.", f"Compared to {MASK} and {MASK}."),
        ("Seen on 4th of the day, Jan 2018", f"Seen on 4th of the day, {MASK}"),
        ("Called at 14:35 or 9 am by Dr. O'Neil.", f"Called at {MASK} or {MASK} by {MASK}."),
        ("Accession 00123456, phone 555-123-4567", f"Accession {MASK}, phone {MASK}"),
        ("A 12 mm nodule, 2.5 cm above the carina, in 3 of 4 zones.", None),
        ("The heart may be enlarged; march fracture excluded.", None),
    ],
)
def test_dates_times_numbers_and_names_are_masked(text, shown):
    assert Disclosure(deidentify=True).text(text) == (text if shown is None else shown)
    assert Disclosure().text(text) == text


def test_tokens_keep_their_number_and_their_places():
    tokens = [" Compared", " to", " 1", "2", "/", "03", "/", "20", "19", ".", " Normal"]
    shown = Disclosure(deidentify=True).tokens(tokens)
    assert shown == [" Compared", " to", f" {MASK}", "", "", "", "", "", "", ".", " Normal"]
    assert Disclosure().tokens(tokens) == tokens


def test_studies_are_numbered_in_the_order_of_their_appearance():
    disclosure = Disclosure(deidentify=True)
    assert [disclosure.study(name) for name in ("s9", "s1", "s9")] == ["study 1", "study 2", "study 1"]
    assert Disclosure().study("s9") == "s9"
