"""Sentences that state or deny a concept, and reports that are rewritten to have it, or not to."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from maira_jax.reports.changes import TargetFindings, cached_parse, compare
from maira_jax.reports.history import sentences_of, without_history
from maira_jax.studies.concepts import COMPARISON
from maira_jax.studies.study import Finding

_ALL_DEVICES = "support devices"  # a denial of which is one of each device, too
_N_SENTENCES = 3  # of each kind, the most frequent ones


class ConceptSentences(NamedTuple):
    """Sentences that state a concept, and as many that deny it."""

    stating: tuple[str, ...]
    denying: tuple[str, ...]


def concept_sentences(reports: Iterable[str], concept: str) -> ConceptSentences:
    """The most frequent sentences of reports that state a concept and nothing else, and those that deny it.

    They are taken without comparisons with earlier studies. Where reports have none, "There is CONCEPT." and "There is
    no CONCEPT.".
    """
    stating: Counter[str] = Counter()
    denying: Counter[str] = Counter()
    target = TargetFindings.of(concept)
    for sentence in (without_history(text) for report in reports for text in sentences_of(report)):
        parsed = cached_parse(sentence)
        own = {finding.status for finding in parsed.findings if target.include(finding)}
        if parsed.concepts.get(concept) and not _claims_others(sentence, target):
            stating[sentence] += 1
        elif own == {"absent"} and not _claims_others(sentence, target):
            denying[sentence] += 1
    found = [tuple(text for text, _ in counted.most_common(_N_SENTENCES)) for counted in (stating, denying)]
    return ConceptSentences(found[0] or (f"There is {concept}.",), found[1] or (f"There is no {concept}.",))


def joint_denials(reports: Iterable[str]) -> dict[frozenset[str], str]:
    """Of findings that sentences of reports deny together, and nothing else, the most frequent sentence."""
    counted: dict[frozenset[str], Counter[str]] = defaultdict(Counter)
    for sentence in (text for report in reports for text in sentences_of(report)):
        findings = cached_parse(sentence).findings
        if findings and all(finding.status == "absent" and not finding.change for finding in findings):
            counted[frozenset(finding.name for finding in findings) - {_ALL_DEVICES}][sentence] += 1
    return {names: sentences.most_common(1)[0][0] for names, sentences in counted.items()}


def rewritten(
    report: str, concept: str, denials: Mapping[frozenset[str], str], statement: str | None = None
) -> str | None:
    """A report that differs by a concept and in nothing else.

    The sentences about the concept's findings are replaced by one that states the concept, which stands first where
    there are none, or by one that denies it; what else they denied is denied there, too. Of the comparison with earlier
    studies, which is no sentence, a report can only be rid.

    Args:
      report: the report.
      concept: the concept.
      denials: sentences that deny findings, see `joint_denials`.
      statement: the sentence that states the concept; None: the report is to lack it.

    Returns:
      None where the report is as wanted already, where a sentence about the concept states other findings, and where
      the labeller does not find in the result what was meant to change, or finds that more has changed.
    """
    text = without_history(report) if concept == COMPARISON else _with_findings(report, concept, denials, statement)
    was, now = (cached_parse(each or "").concepts.get(concept) for each in (report, text))
    as_meant = was is not None and was != bool(statement) and now == bool(statement)
    return text if text and as_meant and not compare(report, text, concept).off_target else None


def _with_findings(
    report: str, concept: str, denials: Mapping[frozenset[str], str], statement: str | None
) -> str | None:
    target = TargetFindings.of(concept)
    parts = [(own, cached_parse(own).findings) for own in sentences_of(report)]
    about = [any(_is_about(target, finding) for finding in findings) for _, findings in parts]
    gone = [part for part, dropped in zip(parts, about, strict=True) if dropped]
    if target.name in ("", "*") or any(_claims_others(own, target) for own, _ in gone):
        return None
    kept = [part for part, dropped in zip(parts, about, strict=True) if not dropped]
    denied = frozenset(finding.name for _, findings in gone for finding in findings) - {_ALL_DEVICES}
    if statement or any(finding.name == target.name for _, findings in kept for finding in findings):
        denied -= {target.name}
    place, texts = about.index(True) if gone else 0, [own for own, _ in kept]
    return " ".join([*texts[:place], *filter(None, [statement]), *_denied(denied, denials), *texts[place:]])


def _denied(names: frozenset[str], denials: Mapping[frozenset[str], str]) -> list[str]:
    """Sentences that deny findings: one where reports have one, else one for each finding."""
    if names in denials:
        return [denials[names]]
    return [denials.get(frozenset([name]), f"No {name}.") for name in sorted(names)]


def _is_about(target: TargetFindings, finding: Finding) -> bool:
    """Whether a finding is one of the target's, or denies them all without naming a place."""
    denied = finding.name == target.name and finding.status == "absent" and not (finding.side or finding.zone)
    return denied or target.include(finding)


def _claims_others(sentence: str, target: TargetFindings) -> bool:
    """Whether a sentence has a finding that the target does not include present or uncertain."""
    findings = cached_parse(sentence).findings
    return any(finding.status != "absent" and not target.include(finding) for finding in findings)
