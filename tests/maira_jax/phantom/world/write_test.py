"""The phantom's reports: they say what is true, all of it, and nothing else."""

import re

import pytest

from maira_jax.phantom.world.write import COMMUNICATED, is_critical
from maira_jax.studies.concepts import FINDINGS
from maira_jax.studies.readers import phantom
from maira_jax.studies.study import Finding, Study

_NOUNS = {
    "cardiomegaly": r"cardiomegaly|heart|cardiac silhouette",
    "pleural effusion": r"pleural effusions?|effusions?",
    "pneumothorax": r"pneumothorax",
    "consolidation": r"consolidation",
    "oedema": r"edema",
    "pacemaker": r"pacemaker",
    "endotracheal tube": r"endotracheal tube|tubes",
    "nasogastric tube": r"nasogastric tube|tubes",
    "central venous line": r"central venous line|lines",
}
_SIZES = {"small": "small|mild", "moderate": "moderate", "large": "large|severe"}
_CHANGES = {
    "new": r"\bnew\b",
    "worse": r"\b(increased|worse)\b",
    "improved": r"\b(decreased|improved)\b",
    "unchanged": r"\b(unchanged|stable|similar)\b",
    "resolved": r"\b(resolved|resolution|removed|removal)\b",
}
_TIPS = {
    "satisfactory": r"satisfactory|standard|above the carina|in the stomach|vena cava",
    "malpositioned": r"malpositioned|too low|too high|low",
}
_DENIED = re.compile(r"\b(no|without|normal|not)\b", re.IGNORECASE)


@pytest.fixture(scope="module")
def studies() -> list[Study]:
    return phantom.studies(0, 1500, seed=4, size=28)


def _sentences(study: Study) -> list[str]:
    return [sentence.lower() for sentence in re.split(r"(?<=\.) ", study.findings or "")]


def _says(sentence: str, finding: Finding) -> bool:
    """Whether a sentence says all of a present or resolved finding."""
    side = f"{finding.side}|bilateral" if finding.side else ""
    patterns = [
        _NOUNS[finding.name],
        side,
        _SIZES.get(finding.size or "", ""),
        finding.zone or "",
        _CHANGES.get(finding.change or "", ""),
        _TIPS.get(finding.tip or "", ""),
    ]
    return all(re.search(pattern, sentence) for pattern in patterns) and not _DENIED.search(sentence)


def test_every_present_or_resolved_finding_has_its_sentence(studies: list[Study]) -> None:
    for study in studies:
        for finding in study.truth or ():
            if finding.status == "present" or finding.change == "resolved":
                assert any(_says(sentence, finding) for sentence in _sentences(study)), (finding, study.findings)


def test_every_absent_finding_is_denied_and_nothing_is_invented(studies: list[Study]) -> None:
    for study in studies:
        findings = study.truth or ()
        mentioned = {f.name for f in findings if f.status == "present" or f.change == "resolved"}
        for name in set(FINDINGS) - mentioned:
            about = [sentence for sentence in _sentences(study) if re.search(_NOUNS[name], sentence)]
            others = "tube" if "tube" in name else "line"
            about = [s for s in about if name in s or not re.search(rf"\w+ {others}\b", s)]
            assert about, (name, study.findings)
            assert all(_DENIED.search(sentence) for sentence in about), (name, study.findings)


def test_changes_are_mentioned_only_with_a_prior(studies: list[Study]) -> None:
    words = re.compile(r"prior|previously|interval|unchanged|\bnew\b|increased|decreased|resolved", re.IGNORECASE)
    for study in studies:
        has_prior = study.prior_frontal is not None
        assert bool(words.search(study.findings or "")) == has_prior == study.labels["comparison with prior"]
        assert (study.comparison is not None) == has_prior
        assert has_prior or study.prior_report is None


def test_half_of_the_priors_have_a_report(studies: list[Study]) -> None:
    with_prior = [study for study in studies if study.prior_frontal is not None]
    assert 0.42 < sum(study.prior_report is not None for study in with_prior) / len(with_prior) < 0.58


def test_communication_follows_the_text_and_needs_a_critical_finding(studies: list[Study]) -> None:
    critical = [study for study in studies if is_critical(study.truth or ())]
    for study in studies:
        assert study.labels["communication"] == ("telephone" in (study.findings or ""))
        assert not study.labels["communication"] or study in critical
    share = sum(study.labels["communication"] for study in critical) / len(critical)
    assert abs(share - COMMUNICATED) < 0.05


def test_the_indication_gives_no_answer(studies: list[Study]) -> None:
    """The commonest finding is about as common after every indication (200 studies or so each: +-0.15)."""
    share = sum(study.labels["consolidation"] for study in studies) / len(studies)
    for indication in {study.indication for study in studies}:
        asked = [study for study in studies if study.indication == indication]
        assert abs(sum(study.labels["consolidation"] for study in asked) / len(asked) - share) < 0.15


def test_small_vocabulary_and_length(studies: list[Study]) -> None:
    lengths = sorted(len((study.findings or "").split()) for study in studies)
    assert 40 < sum(lengths) / len(lengths) < 60
    assert lengths[int(0.95 * len(lengths))] <= 80
    texts = [(s.indication, s.technique, s.comparison, s.prior_report, s.findings) for s in studies]
    words = {word for text in texts for part in text if part for word in re.findall(r"[a-z-]+", part.lower())}
    assert len(words) < 300


def test_reports_vary(studies: list[Study]) -> None:
    normal = {study.findings for study in studies if study.labels["normal study"] and study.prior_frontal is None}
    assert len(normal) > 50
