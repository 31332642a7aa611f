"""Sentences that state a concept, and reports that are rewritten."""

import pytest

from maira_jax.reports.changes import compare
from maira_jax.reports.labeller import concepts, extract
from maira_jax.reports.statements import concept_sentences, joint_denials, rewritten
from maira_jax.studies.readers import load_studies
from tests.helpers.localized import make_config


def test_the_most_frequent_sentences_that_state_a_concept_and_that_deny_it():
    reports = ["There is cardiomegaly. No pneumothorax."] * 2 + ["Severe cardiomegaly, unchanged. Lungs are clear."]
    reports += ["No cardiomegaly. Small left pleural effusion.", "Cardiomegaly with edema."]
    found = concept_sentences(reports, "cardiomegaly")
    assert found == (("There is cardiomegaly.", "Severe cardiomegaly."), ("No cardiomegaly.",))
    assert concept_sentences([], "oedema") == (("There is oedema.",), ("There is no oedema.",))


DENIALS = joint_denials(["No effusion. No effusion or edema. There is no pleural effusion.", "No effusion. New edema."])


def test_the_most_frequent_sentences_that_deny_findings_together():
    assert {
        frozenset(["pleural effusion"]): "No effusion.",
        frozenset(["pleural effusion", "oedema"]): "No effusion or edema.",
    } == DENIALS


@pytest.mark.parametrize(
    ("report", "concept", "statement", "expected"),
    [
        ("No edema. No cardiomegaly. Clear lungs.", "cardiomegaly", "A heart.", None),  # not read as one
        ("No edema. No cardiomegaly. Clear.", "cardiomegaly", "Cardiomegaly.", "No edema. Cardiomegaly. Clear."),
        ("No effusion or pneumothorax.", "pneumothorax", "Left pneumothorax.", "Left pneumothorax. No effusion."),
        ("Big. No effusion. Clear.", "left pleural effusion", "Left effusion.", "Big. Left effusion. Clear."),
        ("Pacemaker.", "pneumothorax", "Small left pneumothorax.", "Small left pneumothorax. Pacemaker."),
        ("Cardiomegaly. It is severe.", "cardiomegaly", None, "No cardiomegaly. It is severe."),
        ("No edema. Left effusion. Right effusion.", "left pleural effusion", None, "No edema. Right effusion."),
        ("Cardiomegaly and edema.", "cardiomegaly", None, None),  # states edema, too
        ("Cardiomegaly.", "cardiomegaly", "Severe cardiomegaly.", None),  # has it already
        ("Cardiomegaly, unchanged.", "comparison with prior", None, "Cardiomegaly."),
        ("Cardiomegaly.", "comparison with prior", "Unchanged.", None),
        ("Cardiomegaly.", "communication", "Dr. A was called.", None),
    ],
)
def test_rewritten_reports(report, concept, statement, expected):
    assert rewritten(report, concept, DENIALS, statement) == expected


@pytest.mark.parametrize("concept", ["cardiomegaly", "left pleural effusion", "pacemaker", "comparison with prior"])
@pytest.mark.parametrize("present", [True, False])
def test_most_reports_can_be_rewritten_and_change_by_the_concept_alone(concept, present):
    reports = [study.findings for study in load_studies(make_config().studies)]
    statement = concept_sentences(reports, concept).stating[0] if present else None
    others = [report for report in reports if concepts(report)[concept] != present]
    denials = joint_denials(reports)
    texts = [(report, rewritten(report, concept, denials, statement)) for report in others]
    done = [(report, text) for report, text in texts if text]
    if concept == "comparison with prior" and present:
        assert not done
        return
    assert len(done) > 0.6 * len(others) > 2
    for report, text in done:
        assert concepts(text)[concept] == present and not compare(report, text, concept).off_target
        names = [{finding.name for finding in extract(each)} for each in (report, text)]
        assert names[0] - {"support devices"} <= names[1] or concept == "comparison with prior"
