"""Grounded reports: MAIRA-2's own examples, texts cut anywhere, and boxes there and back."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maira_jax.generation.grounding import (
    GroundedReport,
    Phrase,
    PhraseBox,
    adjust_to_original,
    in_square,
    parse,
    reference,
    write,
)
from maira_jax.inputs.image import to_grey_square
from maira_jax.studies.study import Box, LocatedSentence, Study

CARD = (
    "<obj>There is a large right pleural effusion.<box><x5><y27><x44><y66></box></obj>"
    "<obj>The left lung is clear.</obj>"
)
PHRASES = (
    Phrase("There is a large right pleural effusion.", (PhraseBox(0.055, 0.275, 0.445, 0.665),)),
    Phrase("The left lung is clear."),
)


def test_the_model_cards_example():
    assert parse(CARD) == GroundedReport(PHRASES, grounded=True)
    assert parse(CARD).plain == "There is a large right pleural effusion. The left lung is clear."
    assert write(PHRASES) == CARD


def test_plain_text_is_one_phrase():
    assert parse("  The lungs are clear. ") == GroundedReport((Phrase("The lungs are clear."),), grounded=False)
    assert parse(" ") == GroundedReport((), grounded=False)


def test_several_boxes():
    (phrase,) = parse("<obj>Two.<box><x0><y1><x2><y3></box><box><x4><y5><x98><y99></box></obj>").phrases
    assert phrase == Phrase("Two.", (PhraseBox(0.005, 0.015, 0.025, 0.035), PhraseBox(0.045, 0.055, 0.985, 0.995)))


@pytest.mark.parametrize("n", range(len(CARD)))
def test_a_text_cut_anywhere_keeps_what_is_whole_and_names_the_rest(n):
    report = parse(CARD[:n])
    first = CARD.index("</obj>") + len("</obj>")
    if n < len("<obj>"):  # not yet a token: plain text, as in MAIRA-2's parser
        assert not report.grounded
    elif n < first:
        assert report == GroundedReport((), True, (CARD[:n].strip(),))
    else:
        rest = CARD[first:n].strip()
        assert report == GroundedReport(PHRASES[:1], True, (rest,) if rest else ())


@pytest.mark.parametrize(
    ("text", "phrases", "unparsed"),
    [
        ("Lost.<obj>Kept.</obj> lost too", (Phrase("Kept."),), ("Lost.", "lost too")),
        ("<obj>Open <obj>Kept.</obj>", (Phrase("Kept."),), ("<obj>Open",)),
        ("<obj>A.<box><x1><y2><x3></box></obj>", (Phrase("A."),), ("<box><x1><y2><x3></box>",)),
        (
            "<obj>A.<box><x1><y2><x3><y4></box><box><x1></obj>",
            (Phrase("A.", (PhraseBox(0.015, 0.025, 0.035, 0.045),)),),
            ("<box><x1>",),
        ),
        ("text </obj>", (), ("text </obj>",)),
    ],
)
def test_malformed_texts(text, phrases, unparsed):
    assert parse(text) == GroundedReport(phrases, True, unparsed)


@given(st.lists(st.sampled_from(["<obj>", "</obj>", "<box>", "</box>", "<x1>", "<y2>", "a ", " "])))
def test_parsing_never_raises_and_loses_no_letter(pieces):
    text = "".join(pieces)
    report = parse(text)
    kept = "".join(phrase.text for phrase in report.phrases) + "".join(report.unparsed)
    assert kept.count("a") == text.count("a")


@given(st.tuples(*[st.integers(0, 99)] * 4))
def test_every_bin_survives_the_way_through_text(bins):
    x0, x1, y0, y1 = *sorted(bins[:2]), *sorted(bins[2:])
    box = PhraseBox(*((value + 0.5) / 100 for value in (x0, y0, x1, y1)))
    assert parse(write([Phrase("A.", (box,))])).phrases[0].boxes == (box,)


def test_adjustment_as_in_maira2():
    # side = 400, offset = ((600 - 400) // 2, 0): int(0.105 * 400 + 100) = 142, int(0.905 * 400 + 100) = 462, ...
    adjusted = adjust_to_original(PhraseBox(0.105, 0.205, 0.905, 0.505), width=600, height=400)
    assert adjusted == PhraseBox(142 / 600, 82 / 400, 462 / 600, 202 / 400)
    tall = adjust_to_original(PhraseBox(0.105, 0.205, 0.905, 0.505), width=400, height=601)
    assert tall == PhraseBox(42 / 400, 182 / 601, 362 / 400, 302 / 601)
    half = PhraseBox(0.10625, 0.10625, 0.5, 0.5)  # 42.5 pixels, beyond a border of 100 and not of 100.5
    assert adjust_to_original(half, width=601, height=400).x_min == 142 / 601
    assert adjust_to_original(half, width=400, height=601).y_min == 142 / 601


@pytest.mark.parametrize(("height", "width"), [(100, 100), (100, 173), (300, 101), (101, 300), (64, 65)])
def test_a_box_lies_where_the_pixels_that_the_model_sees_come_from(height, width):
    """A bright rectangle is found in the preprocessed square, and leads back to where it was drawn."""
    side = min(height, width)
    left, top = (width - side) // 2 + side // 5, (height - side) // 2 + side // 4
    right, bottom = left + side // 3, top + side // 2
    grey = np.zeros((height, width), np.uint8)
    grey[top:bottom, left:right] = 255
    rows, columns = np.nonzero(to_grey_square(grey, 518) > 127)
    seen = PhraseBox(columns.min() / 518, rows.min() / 518, (columns.max() + 1) / 518, (rows.max() + 1) / 518)
    found = adjust_to_original(seen, width, height)
    drawn = PhraseBox(left / width, top / height, right / width, bottom / height)
    for name, length in (("x_min", width), ("x_max", width), ("y_min", height), ("y_max", height)):
        assert abs(getattr(found, name) - getattr(drawn, name)) * length <= 1.01
    (there,) = in_square([Phrase("A.", (drawn,))], width, height)
    (box,) = there.boxes
    np.testing.assert_allclose(dataclasses.astuple(box), dataclasses.astuple(seen), atol=1.01 / side)


@pytest.mark.parametrize(("height", "width"), [(100, 173), (173, 100)])
def test_the_middle_of_an_image_is_the_middle_of_the_square(height, width):
    half = PhraseBox(0.5, 0.5, 0.5 + 20 / width, 0.5 + 20 / height)
    (phrase,) = in_square([Phrase("A.", (half,))], width, height)
    np.testing.assert_allclose(dataclasses.astuple(phrase.boxes[0]), (0.5, 0.5, 0.7, 0.7), atol=1e-12)


def test_what_the_model_does_not_see_is_cut_off():
    """The square of an image twice as wide as high is its middle half."""
    half, outside = PhraseBox(0.0, 0.2, 0.5, 0.4), PhraseBox(0.8, 0.0, 1.0, 1.0)
    phrases = in_square([Phrase("A.", (half, outside)), Phrase("B.", (outside,)), Phrase("C.")], width=200, height=100)
    assert phrases == (Phrase("A.", (PhraseBox(0.0, 0.2, 0.5, 0.4),)), Phrase("B."), Phrase("C."))
    whole = [Phrase("A.", (PhraseBox(0.0, 0.0, 1.0, 1.0),))]
    assert all(in_square(whole, *size) == tuple(whole) for size in ((200, 100), (100, 200)))


def test_the_reference_is_the_grounded_findings_of_the_study():
    sentences = (LocatedSentence("Mass.", (Box("mass", 0.25, 0.5, 0.25, 0.125),)), LocatedSentence("No edema."))
    study = Study("s", "p", np.zeros((8, 8), np.uint8), grounded_findings=sentences)
    assert reference(study) == (Phrase("Mass.", (PhraseBox(0.25, 0.5, 0.5, 0.625),)), Phrase("No edema."))
    assert write(reference(study)) == "<obj>Mass.<box><x25><y50><x50><y62></box></obj><obj>No edema.</obj>"
    assert write([Phrase("All.", (PhraseBox(0.0, 0.0, 1.0, 1.0),))]) == "<obj>All.<box><x0><y0><x99><y99></box></obj>"
