"""A rule-based labeller of radiology reports, in the manner of NegEx and the CheXpert labeller.

A report is divided into sentences and sentences into clauses (`mentions`). Within a clause, every phrase that names a
finding gets its status from the negations and hedges that reach it (`status`), and its side, size, zone, change and
tip position from the words up to the neighbouring findings (`attributes`). A sentence that begins with a pronoun ("It
is unchanged", "The tip lies ...") qualifies the findings of the sentence before.

The words are in `vocabulary`. Any text is accepted, degenerate text included, in time linear in its length.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import NamedTuple

from maira_jax.reports.attributes import attributes_of
from maira_jax.reports.mentions import Mention, clauses, find_mentions, sentences
from maira_jax.reports.status import set_status
from maira_jax.reports.vocabulary import cues, terms
from maira_jax.reports.vocabulary.pattern import blank
from maira_jax.studies.concepts import study_labels
from maira_jax.studies.study import Finding

_ANAPHOR = re.compile(
    r"^(?:and |but |also,? )?(?:it|its|they|their|these|this|those|both|the (?:\w+ )?tips?|tips?|which)\b"
)
_SUPPORT_DEVICES = "support devices"
_RANK = {"absent": 0, "uncertain": 1, "present": 2}  # of two statuses, the higher one counts


class ParsedReport(NamedTuple):
    """What a report says.

    Attributes:
      findings: its findings, see `extract`.
      concepts: study-level concept -> whether the report has it, see `concepts`.
    """

    findings: tuple[Finding, ...]
    concepts: dict[str, bool]


def parse(report: str) -> ParsedReport:
    """Findings and concepts of a report together, for the time that one of them takes."""
    mentions = _mentions(report)
    findings = _findings(report, mentions)
    found = {name: False for name in (*terms.CHEXPERT, *terms.NARROWER)}
    found |= {name: status == "present" for name, status in chexpert(findings).items()}
    for mention in mentions:
        if mention.status == "present":
            found |= {name: True for name, words in terms.NARROWER.items() if words.search(mention.phrase)}
    return ParsedReport(findings, found | study_labels(findings, has_comparison(report), is_communication(report)))


def extract(report: str) -> tuple[Finding, ...]:
    """The findings that a report mentions as present, absent or uncertain.

    Args:
      report: any text.

    Returns:
      At most one finding for each name and place, in order of status and mention. A bilateral finding is two. "no
      finding" is present where the report says so ("no acute abnormality" and the like) and mentions nothing present
      or uncertain but devices.
    """
    return _findings(report, _mentions(report))


def concepts(report: str) -> dict[str, bool]:
    """Study-level concepts of a report, in the vocabulary of `Study.labels`.

    These are the phantom's concepts (its findings with their sides, sizes, zones and tips, changes, communication,
    comparison), the CheXpert observations and the other labels of the data sets that `maira_jax.studies` reads, all
    from the text alone. An uncertain finding counts as absent.
    """
    return parse(report).concepts


def chexpert(findings: Iterable[Finding]) -> dict[str, str]:
    """Status of each CheXpert observation that findings mention; any device is a support device.

    "no finding" follows the CheXpert labeller: present where no other observation but devices is present or uncertain.
    """
    labels: dict[str, str] = {}
    for finding in findings:
        name = _SUPPORT_DEVICES if finding.name in terms.DEVICES else finding.name
        if name in terms.CHEXPERT and _RANK[finding.status] >= _RANK[labels.get(name, "absent")]:
            labels[name] = finding.status
    others = (status for name, status in labels.items() if name not in (_SUPPORT_DEVICES, "no finding"))
    labels["no finding"] = "present" if all(status == "absent" for status in others) else "absent"
    return labels


def is_communication(report: str) -> bool:
    """Whether the report says that its findings were communicated to somebody."""
    return bool(cues.COMMUNICATION.search(report.lower()))


def has_comparison(report: str) -> bool:
    """Whether the report compares with an earlier image."""
    return bool(cues.COMPARISON.search(blank(report.lower(), cues.NO_COMPARISON)))


def _mentions(report: str) -> list[Mention]:
    """Every mention of a finding in a report, in order."""
    previous: list[Mention] = []
    found: list[Mention] = []
    for sentence in sentences(report):
        own = [mention for clause in clauses(sentence) for mention in _read_clause(clause)]
        if own:
            found += own
            previous = own
        elif previous and _ANAPHOR.match(sentence):
            _qualify_previous(sentence, previous)
        else:
            previous = []
    return found


def _read_clause(clause: str) -> list[Mention]:
    """The mentions of a clause with their status and attributes."""
    found = find_mentions(clause)
    for mention in found:
        if not mention.normal:
            set_status(clause, mention)
        mention.qualifiers = attributes_of(mention, clause[mention.start : mention.end])
    found += [denied for mention in found for denied in _denied_devices(mention, clause[mention.start : mention.end])]
    return [mention for mention in found if mention.status != "unmentioned"]


def _denied_devices(mention: Mention, phrase: str) -> list[Mention]:
    """The devices that a denial of all devices, or of all tubes and lines, denies."""
    if mention.status != "absent" or mention.name != _SUPPORT_DEVICES:
        return []
    names: tuple[str, ...] = ()
    if terms.ALL_DEVICES.match(phrase):
        names = terms.DEVICES
    elif terms.ALL_TUBES.match(phrase):
        names = terms.TUBES
    return [dataclasses.replace(mention, name=name) for name in names]


def _qualify_previous(sentence: str, antecedents: list[Mention]) -> None:
    """Lets a sentence without findings of its own qualify those of the sentence before."""
    for mention in antecedents:
        if mention.status == "absent":
            continue
        extra = attributes_of(dataclasses.replace(mention, before="", after=sentence), "")[0]
        extra.pop("side", None)
        if cues.RESOLVED.search(blank(sentence, cues.PARTIAL)):
            mention.status, mention.resolved = "absent", True
        mention.qualifiers = [extra | qualifier for qualifier in mention.qualifiers]


def _findings(report: str, mentions: Iterable[Mention]) -> tuple[Finding, ...]:
    merged = _merge([finding for mention in mentions for finding in mention.findings()])
    healthy = all(f.status == "absent" or f.name in (*terms.DEVICES, _SUPPORT_DEVICES) for f in merged)
    if healthy and terms.NO_FINDING.search(report.lower()):
        merged += (Finding("no finding", "present"),)
    return merged


def _merge(findings: list[Finding]) -> tuple[Finding, ...]:
    """One finding for each name and place: present outranks uncertain, which outranks absent; attributes are united.

    A finding without a place adds its attributes to those of its name with one, and a denial without a place is
    dropped where the finding is present somewhere.
    """
    merged: list[Finding] = []
    for status in sorted(_RANK, key=lambda status: -_RANK[status]):
        for finding in findings:
            if finding.status == status:
                _add(finding, merged)
    return tuple(merged)


def _add(finding: Finding, merged: list[Finding]) -> None:
    """Unites a finding with those in `merged`, none of which has a lower status, or appends it."""
    same = [i for i, other in enumerate(merged) if other.name == finding.name]
    higher = [merged[i] for i in same if merged[i].status != finding.status]
    if any(_covers(finding, other) or _covers(other, finding) for other in higher):
        return
    same = [i for i in same if merged[i].status == finding.status]
    inside = [i for i in same if _covers(finding, merged[i])]
    around = [i for i in same if i not in inside and _covers(merged[i], finding)]
    for i in inside:
        merged[i] = _united(merged[i], finding)
    if around:
        finding = _united(finding, merged[around[0]])
        merged[:] = [other for i, other in enumerate(merged) if i not in around]
    if not inside:
        merged.append(finding)


def _place(finding: Finding) -> tuple[str | None, str | None]:
    return finding.side, finding.zone if finding.name in terms.ZONAL else None


def _covers(general: Finding, special: Finding) -> bool:
    """Whether the place of `general` is that of `special`, or includes it."""
    return all(a is None or a == b for a, b in zip(_place(general), _place(special), strict=True))


def _united(first: Finding, second: Finding) -> Finding:
    """`first` with the attributes of `second` that it lacks."""
    gained = {field: getattr(second, field) for field in ("size", "zone", "change", "tip")}
    return dataclasses.replace(first, **{field: x for field, x in gained.items() if getattr(first, field) is None})
