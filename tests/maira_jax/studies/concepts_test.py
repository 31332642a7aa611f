"""Study-level concepts, against the truth of the phantom's studies."""

from maira_jax.studies.concepts import FINDINGS
from maira_jax.studies.readers import phantom


def test_concepts_follow_the_truth() -> None:
    studies = phantom.studies(0, 800, size=28)
    assert len(studies[0].labels) >= 30
    for study in studies:
        present = [f for f in study.truth or () if f.status == "present"]
        labels = study.labels
        assert labels.keys() == studies[0].labels.keys()
        for name in FINDINGS:
            assert labels[name] == any(f.name == name for f in present)
        assert labels["large left pleural effusion"] == any(
            (f.name, f.side, f.size) == ("pleural effusion", "left", "large") for f in present
        )
        assert labels["severe cardiomegaly"] == any((f.name, f.size) == ("cardiomegaly", "large") for f in present)
        assert labels["endotracheal tube malpositioned"] == any(
            (f.name, f.tip) == ("endotracheal tube", "malpositioned") for f in present
        )
        assert labels["right consolidation"] == any((f.name, f.side) == ("consolidation", "right") for f in present)
        assert labels["bilateral pleural effusions"] == (
            labels["left pleural effusion"] and labels["right pleural effusion"]
        )
        assert labels["new finding"] == any(f.change == "new" for f in present)
        assert labels["normal study"] == (not present)
    for name in studies[0].labels:
        count = sum(study.labels[name] for study in studies)
        assert 0.02 * len(studies) < count < 0.6 * len(studies), name
