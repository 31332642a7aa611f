"""Grounding accuracy of a model that knows the truth, of one that places everything wrongly, and of one that cannot."""

from maira_jax.generation import grounding
from maira_jax.phantom.grounding_accuracy import grounding_accuracy
from maira_jax.reports.radfact import MEASURES
from maira_jax.studies.readers import phantom
from tests.helpers.fixed_writer import FixedWriter


def test_accuracy_of_true_and_of_wrong_boxes():
    studies = phantom.studies(0, 12, seed=2, size=28)
    truth = {study.study_id: grounding.reference(study) for study in studies}

    def right(name, prompt):
        asked = [phrase for phrase in truth[name] if prompt.endswith(f"Finding: {phrase.text}  ASSISTANT:")]
        return grounding.write(asked or truth[name])

    def corner(name, prompt):
        box = (grounding.PhraseBox(0.0, 0.98, 0.02, 1.0),)
        return grounding.write(
            grounding.Phrase(one.text, one.boxes and box) for one in grounding.parse(right(name, prompt)).phrases
        )

    located = sum(phrase.boxes is not None for phrases in truth.values() for phrase in phrases)
    perfect, records = grounding_accuracy(FixedWriter(right), studies)
    assert set(perfect.scores.values()) == {1.0} and perfect.phrase_iou > 0.9
    assert (perfect.n_reports, perfect.n_phrases) == (12, located)
    assert [record["study_id"] for record in records] == [study.study_id for study in studies]
    assert sum(len(record["located"]) for record in records) == located
    wrong, _ = grounding_accuracy(FixedWriter(corner), studies)
    assert wrong.scores["logical_precision"] == 1 and wrong.scores["spatial_precision"] == 0 and wrong.phrase_iou == 0
    plain, _ = grounding_accuracy(FixedWriter(lambda name, prompt: "No pneumothorax."), studies)
    assert plain.scores["spatial_precision"] is None and plain.scores["spatial_recall"] == 0
    assert "spatial_precision     -" in str(plain) and set(plain.scores) == set(MEASURES)
