"""What is added to and removed from a report, and what of it is on target."""

import dataclasses

import pytest

from maira_jax.reports.changes import TargetFindings, compare
from maira_jax.studies.concepts import study_labels

CLEAR = "No consolidation or edema. No pleural effusion or pneumothorax. Heart size is normal. No pacemaker."
LEFT = CLEAR.replace("No pleural effusion or pneumothorax.", "Small left pleural effusion. No pneumothorax.")
BOTH = LEFT.replace("No pacemaker.", "Pacemaker in place.")


def test_what_was_added_and_what_is_off_target() -> None:
    found = compare(CLEAR, BOTH, "left pleural effusion")
    assert found.added == ("left pleural effusion", "pacemaker")
    assert found.removed == ()
    assert found.off_target
    assert "+left pleural effusion" in found.concepts
    lost = compare(BOTH, CLEAR, "left pleural effusion").concepts
    assert {"-left pleural effusion", "-pacemaker"} <= set(lost)
    assert set(lost) == {("-" if name[0] == "+" else "+") + name[1:] for name in found.concepts}
    assert not compare(CLEAR, LEFT, "left pleural effusion").off_target
    assert compare(LEFT, CLEAR, "pleural effusion").removed == ("left pleural effusion",)
    assert compare(CLEAR, LEFT, "right pleural effusion").off_target
    assert compare(CLEAR, LEFT, "communication").off_target
    assert compare(CLEAR, CLEAR.replace("No consolidation", "Left consolidation. No"), "pleural effusion").off_target
    assert not compare(CLEAR, BOTH, "normal study").off_target


def test_a_change_of_an_attribute_is_no_change_of_status() -> None:
    found = compare(BOTH, BOTH.replace("Small", "Large"), "pacemaker")
    assert found.changed == ("left pleural effusion size small > large",)
    assert not found.off_target
    assert found.off_target_attributes
    assert not compare(BOTH, BOTH.replace("Small", "Large"), "large left pleural effusion").off_target_attributes


def test_what_is_off_target_is_weighed_by_size_and_certainty() -> None:
    for steered, concept, extent in (
        (BOTH, "left pleural effusion", 2.0),  # a pacemaker has no size
        (BOTH, "pacemaker", 1.0),  # a small effusion
        (BOTH.replace("Small", "Large"), "pacemaker", 3.0),
        (BOTH, "communication", 3.0),
        (LEFT.replace("Small", "Possible small"), "pacemaker", 0.5),
        (CLEAR, "pacemaker", 0.0),
        (BOTH, "normal study", 0.0),
    ):
        assert compare(CLEAR, steered, concept).off_target_extent == extent, (steered, concept)
        assert compare(steered, CLEAR, concept).off_target_extent == extent
    assert compare(LEFT, LEFT.replace("Small", "Large"), "pacemaker").off_target_extent == 2.0


def test_other_words_for_the_same_are_no_change() -> None:
    found = compare(CLEAR, CLEAR.replace("Heart size is normal", "The heart is not enlarged"), "oedema")
    assert found.none
    # A denied finding that is no longer mentioned is not a change.
    assert compare(CLEAR, CLEAR.replace("Heart size is normal. ", ""), "oedema").none


@pytest.mark.parametrize("field", ["added", "removed", "changed", "concepts"])
def test_any_one_change_is_a_change(field: str) -> None:
    nothing = compare(CLEAR, CLEAR, "")
    assert nothing.none
    assert not dataclasses.replace(nothing, **{field: ("pacemaker",)}).none


def test_uncertainty_is_a_change() -> None:
    found = compare(CLEAR, CLEAR + " Possible pneumonia.", "oedema")
    assert found.added == ("uncertain pneumonia",)
    assert found.off_target


@pytest.mark.parametrize(
    ("concept", "target"),
    [
        ("pleural effusion", TargetFindings("pleural effusion")),
        ("small left pleural effusion", TargetFindings("pleural effusion", "left")),
        ("bilateral pleural effusions", TargetFindings("pleural effusion")),
        ("right upper consolidation", TargetFindings("consolidation", "right", "upper")),
        ("endotracheal tube malpositioned", TargetFindings("endotracheal tube")),
        ("mild cardiomegaly", TargetFindings("cardiomegaly")),
        ("comparison with prior", TargetFindings("")),
        ("normal study", TargetFindings("*")),
    ],
)
def test_target_findings_of_a_concept(concept: str, target: TargetFindings) -> None:
    assert TargetFindings.of(concept) == target


def test_every_phantom_concept_has_target_findings() -> None:
    about_no_finding = {
        c for c in study_labels((), has_prior=False, communication=False) if not TargetFindings.of(c).name
    }
    assert about_no_finding == {
        "new finding", "worse", "improved", "unchanged", "resolved", "comparison with prior", "communication",
    }  # fmt: skip


def test_further_concepts_are_on_target() -> None:
    assert not compare(CLEAR, BOTH, "left pleural effusion", other_concepts=("pacemaker",)).off_target
