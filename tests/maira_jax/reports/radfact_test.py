"""RadFact's measures: its worked example, entailment in both directions, and areas against counted pixels."""

import dataclasses
import math

import numpy as np
import pytest

from maira_jax.generation.grounding import Phrase, PhraseBox
from maira_jax.reports.radfact import (
    MEASURES,
    EntailedPhrases,
    entailed_phrases,
    iou,
    mean_scores,
    scores,
    share_inside,
)

A, B, C = PhraseBox(0.1, 0.1, 0.2, 0.2), PhraseBox(0.3, 0.3, 0.4, 0.4), PhraseBox(0.5, 0.5, 0.6, 0.6)


def test_four_phrases_against_four_others():
    generated = (
        Phrase("Cardiomegaly.", (A,)),
        Phrase("Consolidation.", (B, C)),
        Phrase("No pneumothorax."),
        Phrase("Pulmonary edema."),
    )
    reference = (
        Phrase("There is cardiomegaly.", (A,)),
        Phrase("Consolidation is seen.", (B,)),
        Phrase("There is no pneumothorax.", (C,)),
        Phrase("Small left pleural effusion."),
    )
    assert scores(generated, reference) == {
        "logical_precision": 3 / 4,
        "logical_recall": 3 / 4,
        # Half of the boxes of the consolidation lie outside, and half is not enough; there is none of a pneumothorax.
        "grounding_precision": 1 / 2,
        "grounding_recall": 2 / 3,
        "spatial_precision": 1 / 2,
        "spatial_recall": 2 / 3,
    }


def test_what_is_not_entailed_is_not_spatially_entailed():
    reference = [Phrase("Small left pleural effusion.", (A,))]
    report = [Phrase("Large left pleural effusion.", (A,)), Phrase("Left pleural effusion.", (A,))]
    assert entailed_phrases(report, reference) == EntailedPhrases(2, 1, 2, 1, 1)
    found = scores(report, reference)
    assert (found["grounding_precision"], found["spatial_precision"]) == (1, 1 / 2)


@pytest.mark.parametrize(
    ("claim", "known", "entailed"),
    [
        ("Left pleural effusion.", "Small left pleural effusion, unchanged.", True),
        ("Pleural effusion.", "Left pleural effusion.", True),
        ("Left pleural effusion.", "Pleural effusion.", False),
        ("Left pleural effusion.", "Right pleural effusion.", False),
        ("No left pleural effusion.", "No pleural effusion.", True),
        ("No pleural effusion.", "No left pleural effusion.", False),
        ("No pleural effusion.", "Pleural effusion.", False),
        ("Bilateral pleural effusions.", "Left pleural effusion.", False),
    ],
)
def test_less_follows_from_more(claim, known, entailed):
    assert scores([Phrase(claim)], [Phrase(known)])["logical_precision"] == entailed


def test_several_phrases_entail_one_and_their_boxes_count_together():
    both = [Phrase("Bilateral pleural effusions.", (A, B))]
    each = [Phrase("Left pleural effusion.", (A,)), Phrase("Right pleural effusion.", (B,))]
    assert set(scores(both, each).values()) == {1.0}


def test_phrases_that_the_labeller_does_not_know_are_left_out():
    none = dict.fromkeys(MEASURES)
    assert scores([Phrase("Findings were discussed by telephone.")], []) == none
    assert mean_scores([none, scores([Phrase("Cardiomegaly.", (A,))], [])])["logical_precision"] == 0
    assert mean_scores([none]) == none


def test_areas_are_those_of_counted_pixels():
    rng = np.random.default_rng(0)

    def mask(boxes):
        pixels = np.zeros((50, 50), bool)
        for box in boxes:
            left, top, right, bottom = (round(edge * 50) for edge in dataclasses.astuple(box))
            pixels[min(left, right) : max(left, right), min(top, bottom) : max(top, bottom)] = True
        return pixels

    for _ in range(50):  # corners in any order
        one, other = ([PhraseBox(*(rng.integers(0, 51, 4) / 50)) for _ in range(rng.integers(1, 4))] for _ in range(2))
        first, second = mask(one), mask(other)
        if first.any():
            assert math.isclose(share_inside(one, other), (first & second).sum() / first.sum(), abs_tol=1e-9)
        if (first | second).any():
            assert math.isclose(iou(one, other), (first & second).sum() / (first | second).sum(), abs_tol=1e-9)
    assert share_inside([PhraseBox(0.1, 0.1, 0.1, 0.5)], [A]) == 0 and share_inside([A], []) == 0 and iou([], []) == 0
