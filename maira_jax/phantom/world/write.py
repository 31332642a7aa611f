"""Writes the report sections of phantom studies in the prose of radiology.

A sentence names its finding with side, size, zone or tip and, where there is a prior study, the change, so that a
labeller can recover the findings without loss. The vocabulary is small enough for a model of a few million parameters,
and the phrasings vary. Each sentence is kept with its statements (see `statements`), as ground truth.
"""

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from maira_jax.phantom.world.latents import Latents, prior_truth, truth
from maira_jax.studies.concepts import DEGREES, FINDINGS, concept_names
from maira_jax.studies.study import Finding

MAX_WORDS = 72  # longer reports are written again, up to 8 times, for shorter phrasings
COMMUNICATED = 0.9  # share of the reports of critical findings that mention their communication

_INDICATIONS = (
    "Shortness of breath.",
    "Chest pain.",
    "Fever and cough.",
    "Cough for two weeks.",
    "Follow-up.",
    "Worsening oxygen requirement.",
    "Postoperative assessment.",
    "Admission to intensive care.",
    "Fall, evaluate for injury.",
    "Evaluate for acute process.",
    "Preoperative evaluation.",
    "Low oxygen saturation.",
)
_TECHNIQUES = (
    "Portable AP view of the chest.",
    "AP chest radiograph.",
    "PA view of the chest.",
    "Single frontal view of the chest.",
    "Upright PA chest radiograph.",
)
_COMPARISONS = (
    "Chest radiograph from yesterday.",
    "Prior chest radiograph.",
    "Chest radiograph two days ago.",
    "Radiograph from earlier the same day.",
    "Chest radiograph from last month.",
)

_ADVERBS = {"small": "mildly", "moderate": "moderately", "large": "severely"}

# Present findings. {degree} and {adverb} are the size of cardiomegaly.
_PRESENT = {
    "cardiomegaly": (
        "{degree} cardiomegaly",
        "there is {degree} cardiomegaly",
        "the heart is {adverb} enlarged",
        "{degree} enlargement of the cardiac silhouette",
        "the cardiac silhouette is {adverb} enlarged",
    ),
    "pleural effusion": (
        "{size} {side} pleural effusion",
        "there is a {size} {side} pleural effusion",
        "a {size} pleural effusion is seen on the {side}",
        "{size} pleural effusion on the {side}",
        "{size} {side} pleural effusion is present",
    ),
    "pneumothorax": (
        "{size} {side} pneumothorax",
        "there is a {size} {side} pneumothorax",
        "a {size} pneumothorax is seen on the {side}",
        "{size} pneumothorax on the {side}",
        "{size} {side} pneumothorax is present",
    ),
    "consolidation": (
        "consolidation in the {side} {zone} zone",
        "{side} {zone} zone consolidation",
        "there is consolidation in the {side} {zone} lung",
        "focal consolidation is seen in the {side} {zone} zone",
        "{side} {zone} lung consolidation is present",
    ),
    "oedema": (
        "pulmonary edema",
        "there is pulmonary edema",
        "diffuse pulmonary edema is present",
        "bilateral perihilar haze consistent with pulmonary edema",
    ),
    "pacemaker": (
        "pacemaker in place",
        "a pacemaker projects over the chest",
        "pacemaker with lead in place",
        "a pacemaker is present",
    ),
}
_BILATERAL = (
    "{size} bilateral pleural effusions",
    "there are {size} bilateral pleural effusions",
    "bilateral {size} pleural effusions are present",
)
_TUBES = {
    ("endotracheal tube", "satisfactory"): (
        "endotracheal tube in satisfactory position",
        "endotracheal tube tip is in satisfactory position above the carina",
        "the endotracheal tube ends above the carina",
        "endotracheal tube tip in standard position",
    ),
    ("endotracheal tube", "malpositioned"): (
        "endotracheal tube is malpositioned with the tip in the right main bronchus",
        "endotracheal tube tip is too low in the right main bronchus",
        "low endotracheal tube with the tip in the right main bronchus",
    ),
    ("nasogastric tube", "satisfactory"): (
        "nasogastric tube in satisfactory position",
        "nasogastric tube tip is in the stomach",
        "the nasogastric tube ends in the stomach",
        "nasogastric tube in satisfactory position in the stomach",
    ),
    ("nasogastric tube", "malpositioned"): (
        "nasogastric tube is malpositioned with the tip in the esophagus",
        "nasogastric tube tip is too high in the esophagus",
        "malpositioned nasogastric tube with the tip in the esophagus",
    ),
    ("central venous line", "satisfactory"): (
        "central venous line in satisfactory position",
        "central venous line tip is in the superior vena cava",
        "the central venous line ends in the superior vena cava",
        "central venous line tip in standard position",
    ),
    ("central venous line", "malpositioned"): (
        "central venous line is malpositioned with the tip in the right atrium",
        "central venous line tip is too low in the right atrium",
        "low central venous line with the tip in the right atrium",
    ),
}
_CHANGED = {
    "new": ("new since the prior study", "new from prior", "new compared with the prior study"),
    "worse": (
        "increased compared with the prior study",
        "worse since the prior study",
        "increased from prior",
    ),
    "improved": (
        "decreased compared with the prior study",
        "improved since the prior study",
        "decreased from prior",
    ),
    "unchanged": (
        "unchanged from prior",
        "stable compared with the prior study",
        "unchanged since the prior study",
        "similar to the prior study",
    ),
}
_RESOLVED = (
    "the {what} has resolved",
    "the previously seen {what} has resolved",
    "interval resolution of the {what}",
)
_REMOVED = ("the {what} has been removed", "interval removal of the {what}")
_DEVICES = ("pacemaker", "endotracheal tube", "nasogastric tube", "central venous line")
_WORDS = {"oedema": "pulmonary edema"}

_NO_HEART = (
    "heart size is normal",
    "the heart is normal in size",
    "the cardiac silhouette is normal in size",
    "no cardiomegaly",
    "the heart is not enlarged",
)
_CLEAR = (
    "no consolidation or edema",
    "lungs are clear without consolidation or edema",
    "there is no consolidation or pulmonary edema",
    "the lungs are clear with no consolidation or edema",
)
_NO_PLEURA = (
    "no pleural effusion or pneumothorax",
    "there is no pleural effusion or pneumothorax",
    "no evidence of pleural effusion or pneumothorax",
    "no pneumothorax or pleural effusion is seen",
)
_NO_DEVICE = (
    "no pacemaker, tubes or lines",
    "no pacemaker, endotracheal tube, nasogastric tube or central venous line",
)
_NOTHING = ("no {what}", "there is no {what}", "no evidence of {what}", "no {what} is seen")
_NO_CONSOLIDATION = (*_NOTHING, "no focal {what}")
_SAME = ("no change from the prior study", "no interval change")
_NORMAL_PRIOR = ("No acute abnormality.", "No acute process.", "Normal chest radiograph.")
_COMMUNICATIONS = (
    "Findings were discussed with the referring team by telephone.",
    "These findings were communicated to the referring team by telephone.",
    "The referring team was informed by telephone.",
)
_ORDERS = (
    (0.70, ("lungs", "pleura", "heart", "devices")),
    (0.85, ("heart", "lungs", "pleura", "devices")),
    (1.00, ("devices", "lungs", "pleura", "heart")),
)


class ReportSentence(NamedTuple):
    """A sentence of a report with its statements, and the findings that it is about."""

    text: str
    states: frozenset[str]
    about: tuple[Finding, ...] = ()


class WrittenSections(NamedTuple):
    """The sections of a study's report.

    Attributes:
      indication, technique, comparison, prior_report, findings: as in `Study`.
      sentences: those of the findings.
      stated: the statements of each sentence of the findings and the prior report.
    """

    indication: str
    technique: str
    comparison: str | None
    prior_report: str | None
    findings: str
    sentences: tuple[ReportSentence, ...]
    stated: dict[str, frozenset[str]]


def write_sections(latents: Latents, i: int, rng: random.Random) -> WrittenSections:
    """Writes the sections of the i-th study.

    Indication and technique do not depend on the state. Each of the nine findings is mentioned as present or absent.
    Most reports of critical findings (`is_critical`), and no others, end with a sentence about their communication.

    The comparison is None without a prior study; half of the studies with a prior have its report.
    """
    indication, technique = rng.choice(_INDICATIONS), rng.choice(_TECHNIQUES)
    comparison = None
    earlier: list[ReportSentence] = []
    if latents.has_prior[i]:
        comparison = rng.choice(_COMPARISONS)
        if rng.random() < 0.5:
            earlier = _impression(prior_truth(latents, i), rng)
    findings = truth(latents, i)
    drafts: list[list[ReportSentence]] = []
    while not drafts or (len(drafts) < 8 and len(_text(drafts[-1]).split()) > MAX_WORDS):
        drafts.append(_report(findings, bool(latents.has_prior[i]), rng))
    report = min(drafts, key=lambda draft: len(_text(draft)))
    if is_critical(findings) and rng.random() < COMMUNICATED:
        report.append(ReportSentence(rng.choice(_COMMUNICATIONS), frozenset({"communication"})))
    stated = {sentence.text: sentence.states for sentence in (*earlier, *report)}
    prior_report = _text(earlier) or None
    return WrittenSections(indication, technique, comparison, prior_report, _text(report), tuple(report), stated)


def statements(findings: Iterable[Finding]) -> frozenset[str]:
    """The statements of a sentence about findings.

    For each finding: that it is mentioned; its `concept_names` if it is present, else "no " and the name; its side,
    size, zone and tip by themselves; and, where there is a change, the change and that there is a comparison.
    """
    out: set[str] = set()
    for finding in findings:
        out.add(f"mention of {finding.name}")
        out |= concept_names(finding) if finding.status == "present" else {f"no {finding.name}"}
        zone = finding.zone and f"{finding.zone} zone"
        out |= {value for value in (finding.side, finding.size, zone, finding.tip) if value}
        if finding.change:
            out |= {finding.change, "comparison with prior"}
    return frozenset(out)


def is_critical(findings: Sequence[Finding]) -> bool:
    """Whether the findings must be communicated: a large pneumothorax or a malpositioned tube."""
    return any(
        (f.name == "pneumothorax" and f.size == "large") or (f.name.endswith("tube") and f.tip == "malpositioned")
        for f in findings
    )


def has_communication(report: str) -> bool:
    """Whether a report of the phantom says that its findings were communicated."""
    return report.endswith(_COMMUNICATIONS)


def _report(findings: Sequence[Finding], has_prior: bool, rng: random.Random) -> list[ReportSentence]:
    by_name: dict[str, list[Finding]] = {name: [] for name in FINDINGS}
    for finding in findings:
        by_name[finding.name].append(finding)
    topics = {
        "lungs": _pair(by_name["consolidation"], by_name["oedema"], _CLEAR, rng),
        "pleura": _pair(by_name["pleural effusion"], by_name["pneumothorax"], _NO_PLEURA, rng),
        "heart": _mentioned(by_name["cardiomegaly"], rng) or [_deny(rng.choice(_NO_HEART), by_name["cardiomegaly"])],
        "devices": _devices([by_name[name][0] for name in _DEVICES], rng),
    }
    pick = rng.random()
    order = next(order for below, order in _ORDERS if pick < below)
    sentences = [sentence for topic in order for sentence in topics[topic]]
    if has_prior and all(finding.change is None for finding in findings):
        sentences.append(_sentence(rng.choice(_SAME), (), {"no change", "comparison with prior"}))
    return sentences


def _impression(findings: Sequence[Finding], rng: random.Random) -> list[ReportSentence]:
    present = [_sentence(_core(finding, rng, 1), [finding]) for finding in findings if finding.status == "present"]
    return present or [ReportSentence(rng.choice(_NORMAL_PRIOR), frozenset({"normal study"}))]


def _pair(
    first: list[Finding], second: list[Finding], neither: tuple[str, ...], rng: random.Random
) -> list[ReportSentence]:
    """Sentences about two findings, which are mostly denied together where both are simply absent."""
    one, other = _mentioned(first, rng), _mentioned(second, rng)
    if not one and not other and rng.random() < 0.8:
        return [_deny(rng.choice(neither), (*first, *second))]
    return (one or [_denial(first, rng)]) + (other or [_denial(second, rng)])


def _mentioned(findings: list[Finding], rng: random.Random) -> list[ReportSentence]:
    """Sentences about what is present or has resolved; none for what is simply absent."""
    bilateral = (
        len(findings) == 2
        and findings[0].name == "pleural effusion"
        and findings[0].status == findings[1].status == "present"
        and (findings[0].size, findings[0].change) == (findings[1].size, findings[1].change)
    )
    if bilateral and rng.random() < 0.75:
        core = rng.choice(_BILATERAL).format(size=findings[0].size)
        return [_sentence(_with_change(core, findings[0].change, rng), findings, {"bilateral pleural effusions"})]
    out = []
    for finding in findings:
        if finding.status == "present":
            out.append(_sentence(_with_change(_core(finding, rng), finding.change, rng), [finding]))
        elif finding.change == "resolved":
            place = " ".join(filter(None, (finding.side, finding.zone and f"{finding.zone} zone")))
            what = f"{place} {_WORDS.get(finding.name, finding.name)}".strip()
            phrases = _REMOVED if finding.name in _DEVICES else _RESOLVED
            out.append(_sentence(rng.choice(phrases).format(what=what), [finding]))
    sides = [finding for finding in findings if finding.side and finding.zone is None]
    plain = [finding for finding in sides if finding.status == "absent" and finding.change is None]
    if out and len(plain) == 1 and rng.random() < 0.3:
        out.append(_sentence(f"no {plain[0].side} {plain[0].name}", plain))
    return out


def _core(finding: Finding, rng: random.Random, variants: int | None = None) -> str:
    phrases = _TUBES[finding.name, finding.tip] if finding.tip else _PRESENT[finding.name]
    return rng.choice(phrases[:variants]).format(
        size=finding.size,
        side=finding.side,
        zone=finding.zone,
        degree=DEGREES.get(finding.size or ""),
        adverb=_ADVERBS.get(finding.size or ""),
    )


def _with_change(core: str, change: str | None, rng: random.Random) -> str:
    if change is None:
        return core
    # "New small left pleural effusion": only before a phrase without a verb or an article.
    leading = core.split()[0] not in ("there", "the", "a") and not {"is", "are"} & set(core.split())
    if change in ("new", "unchanged") and leading and rng.random() < 0.4:
        return f"{change} {core}"
    return f"{core}, {rng.choice(_CHANGED[change])}"


def _denial(findings: list[Finding], rng: random.Random) -> ReportSentence:
    name = findings[0].name
    phrases = _NO_CONSOLIDATION if name == "consolidation" else _NOTHING
    return _deny(rng.choice(phrases).format(what=_WORDS.get(name, name)), findings)


def _devices(findings: list[Finding], rng: random.Random) -> list[ReportSentence]:
    out, absent = [], []
    for finding in findings:
        sentences = _mentioned([finding], rng)
        out += sentences
        if not sentences:
            absent.append(finding)
    if len(absent) == len(_DEVICES):
        return [_deny(rng.choice(_NO_DEVICE), absent)]
    if absent:
        *others, last = (finding.name for finding in absent)
        out.append(_deny(f"no {', '.join(others)} or {last}" if others else f"no {last}", absent))
    return out


def _sentence(words: str, findings: Sequence[Finding], also: Iterable[str] = ()) -> ReportSentence:
    """The sentence of these words, with the statements about `findings` and the statements `also`."""
    return ReportSentence(f"{words[0].upper()}{words[1:]}.", statements(findings).union(also), tuple(findings))


def _deny(words: str, findings: Iterable[Finding]) -> ReportSentence:
    """A sentence that denies findings everywhere, without their sides."""
    return _sentence(words, [Finding(finding.name, "absent") for finding in findings])


def _text(sentences: Iterable[ReportSentence]) -> str:
    return " ".join(sentence.text for sentence in sentences)
