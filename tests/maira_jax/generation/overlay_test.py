"""Pictures of grounded reports: any text and any box, and what can be seen of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maira_jax.generation.grounding import Phrase, PhraseBox
from maira_jax.generation.overlay import draw

GREY = np.tile(np.arange(60, dtype=np.uint8), (40, 1))
corner = st.floats(0, 1)
phrases = st.builds(
    Phrase,
    st.text(max_size=200),
    st.none() | st.lists(st.builds(PhraseBox, corner, corner, corner, corner), max_size=3).map(tuple),
)


@settings(max_examples=15, deadline=None)
@given(st.lists(phrases, max_size=5), st.lists(st.text(max_size=50), max_size=2))
def test_any_text_and_box_can_be_drawn(said, notes):
    picture = draw(GREY, said, notes)
    assert picture.mode == "RGB" and picture.width == 1024
    plain = draw(GREY, [])
    assert picture.height - plain.height >= 28 * (len(said) + len(notes))


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (1, 900), (3000, 7)])
def test_any_size_is_scaled_to_one_edge(shape):
    picture = draw(np.zeros(shape, np.uint8), [Phrase("A.", (PhraseBox(0, 0, 1, 1),))])
    assert picture.width == 1024 and picture.height > 28


def test_each_located_phrase_has_its_colour_in_box_and_legend():
    box = PhraseBox(0.5, 0.1, 0.9, 0.5)
    said = [
        Phrase("One.", (box,)),
        Phrase("None."),
        Phrase("Two.", (PhraseBox(0.1, 0.6, 0.3, 0.9), PhraseBox(0.4, 0.6, 0.5, 0.9))),
    ]
    picture = np.asarray(draw(GREY, said))
    split = round(1024 * 40 / 60)
    for colour, width in (((0x56, 0xB4, 0xE9), 0.4), ((0xE6, 0x9F, 0x00), 0.4)):
        image, legend = (np.nonzero((part == colour).all(axis=-1)) for part in (picture[:split], picture[split:]))
        assert np.ptp(image[1]) == pytest.approx(1024 * width, abs=2)
        assert len(legend[0]) == 21 * 21
    # Corners that a model wrote the other way round are the same rectangle.
    turned = [Phrase("One.", (PhraseBox(box.x_max, box.y_max, box.x_min, box.y_min),)), *said[1:]]
    np.testing.assert_array_equal(np.asarray(draw(GREY, turned)), picture)


def test_long_words_stay_inside():
    picture = np.asarray(draw(GREY, [Phrase("W" * 500)]))
    background = picture[round(1024 * 40 / 60) :, -16:]
    assert (background == background[0, 0]).all() and (picture[-40:, :600] > 200).any()
