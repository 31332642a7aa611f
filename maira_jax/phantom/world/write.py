"""Writes the report sections of phantom studies in the prose of radiology.

A sentence names its finding with side, size, zone or tip, and, where there is a prior, the change,
so that a report can be read back without loss. The vocabulary is small (a model of a few million
parameters learns it) and the phrasings vary. What a sentence states is kept beside it (`stated`).
"""

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from maira_jax.phantom.world.latents import DEGREES, FINDINGS, Latents, prior_truth, truth
from maira_jax.studies.study import Finding

MOST_WORDS = 72  # longer reports are written again, a few times, in the hope of shorter phrasings
COMMUNICATED = 0.9  # share of the reports of critical findings that say who was told

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

# What is present. {size} {side} {zone} are filled; {degree} and {adverb} are the size of a heart.
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
_NO_SOLID = (*_NOTHING, "no focal {what}")
_SAME = ("no change from the prior study", "no interval change")
_NORMAL_PRIOR = ("No acute abnormality.", "No acute process.", "Normal chest radiograph.")
_TOLD = (
    "Findings were discussed with the referring team by telephone.",
    "These findings were communicated to the referring team by telephone.",
    "The referring team was informed by telephone.",
)
_ORDERS = (
    (0.70, ("lungs", "pleura", "heart", "devices")),
    (0.85, ("heart", "lungs", "pleura", "devices")),
    (1.00, ("devices", "lungs", "pleura", "heart")),
)


class Sentence(NamedTuple):
    """A sentence and what it states (see `stated`)."""

    text: str
    states: frozenset[str]


class Written(NamedTuple):
    """The sections of a study, and for each sentence of the findings and the prior report what it states."""

    indication: str
    technique: str
    comparison: str | None
    prior_report: str | None
    findings: str
    stated: dict[str, frozenset[str]]


def write(latents: Latents, i: int, rng: random.Random) -> Written:
    """Writes the sections of the i-th study.

    The indication and the technique are drawn without looking at the state. Every one of the nine
    findings is stated present or absent. A communication sentence stands only in reports of critical
    findings (`is_critical`), and in most of those.

    Comparison is None without a prior; half of the studies with a prior have its report.
    """
    indication, technique = rng.choice(_INDICATIONS), rng.choice(_TECHNIQUES)
    comparison = None
    earlier: list[Sentence] = []
    if latents.has_prior[i]:
        comparison = rng.choice(_COMPARISONS)
        if rng.random() < 0.5:
            earlier = _impression(prior_truth(latents, i), rng)
    facts = truth(latents, i)
    drafts: list[list[Sentence]] = []
    while not drafts or (len(drafts) < 8 and len(_text(drafts[-1]).split()) > MOST_WORDS):
        drafts.append(_report(facts, bool(latents.has_prior[i]), rng))
    findings = min(drafts, key=lambda draft: len(_text(draft)))
    if is_critical(facts) and rng.random() < COMMUNICATED:
        findings.append(Sentence(rng.choice(_TOLD), frozenset({"communication"})))
    said = {sentence.text: sentence.states for sentence in (*earlier, *findings)}
    return Written(indication, technique, comparison, _text(earlier) or None, _text(findings), said)


def names(fact: Finding) -> frozenset[str]:
    """What a present finding is called, from the finding alone to all that is known of it."""
    size = DEGREES.get(fact.size or "") if fact.name == "cardiomegaly" else fact.size
    parts = ((), (fact.side,), (size,), (size, fact.side), (fact.side, fact.zone))
    found = {" ".join(filter(None, (*words, fact.name))) for words in parts}
    return frozenset(found | ({f"{fact.name} {fact.tip}"} if fact.tip else set()))


def stated(facts: Iterable[Finding]) -> frozenset[str]:
    """What a sentence about findings states.

    For each finding that it is mentioned; the `names` of a present one, or "no " and the name; its side, size, zone
    and tip by themselves; and the change against the prior study, if there is one, and that there is a comparison.
    """
    out: set[str] = set()
    for fact in facts:
        out.add(f"mention of {fact.name}")
        out |= names(fact) if fact.status == "present" else {f"no {fact.name}"}
        out |= {value for value in (fact.side, fact.size, fact.zone and f"{fact.zone} zone", fact.tip) if value}
        if fact.change:
            out |= {fact.change, "comparison with prior"}
    return frozenset(out)


def is_critical(facts: Sequence[Finding]) -> bool:
    """Whether someone should be told: a large pneumothorax or a malpositioned tube."""
    return any(
        (f.name == "pneumothorax" and f.size == "large") or (f.name.endswith("tube") and f.tip == "malpositioned")
        for f in facts
    )


def has_communication(report: str) -> bool:
    """Whether a phantom report says that someone was told."""
    return report.endswith(_TOLD)


def _report(facts: Sequence[Finding], has_prior: bool, rng: random.Random) -> list[Sentence]:
    by_name: dict[str, list[Finding]] = {name: [] for name in FINDINGS}
    for fact in facts:
        by_name[fact.name].append(fact)
    topics = {
        "lungs": _pair(by_name["consolidation"], by_name["oedema"], _CLEAR, rng),
        "pleura": _pair(by_name["pleural effusion"], by_name["pneumothorax"], _NO_PLEURA, rng),
        "heart": _stated(by_name["cardiomegaly"], rng) or [_deny(rng.choice(_NO_HEART), by_name["cardiomegaly"])],
        "devices": _devices([by_name[name][0] for name in _DEVICES], rng),
    }
    pick = rng.random()
    order = next(order for below, order in _ORDERS if pick < below)
    sentences = [sentence for topic in order for sentence in topics[topic]]
    if has_prior and all(fact.change is None for fact in facts):
        sentences.append(_sentence(rng.choice(_SAME), (), {"no change", "comparison with prior"}))
    return sentences


def _impression(facts: Sequence[Finding], rng: random.Random) -> list[Sentence]:
    present = [_sentence(_core(fact, rng, 1), [fact]) for fact in facts if fact.status == "present"]
    return present or [Sentence(rng.choice(_NORMAL_PRIOR), frozenset({"normal study"}))]


def _pair(first: list[Finding], second: list[Finding], neither: tuple[str, ...], rng: random.Random) -> list[Sentence]:
    """Two findings that are denied together when neither has anything to be said of it."""
    said, also = _stated(first, rng), _stated(second, rng)
    if not said and not also and rng.random() < 0.8:
        return [_deny(rng.choice(neither), (*first, *second))]
    return (said or [_denial(first, rng)]) + (also or [_denial(second, rng)])


def _stated(facts: list[Finding], rng: random.Random) -> list[Sentence]:
    """Sentences for what is present or has resolved; empty when it is simply absent."""
    bilateral = (
        len(facts) == 2
        and facts[0].name == "pleural effusion"
        and facts[0].status == facts[1].status == "present"
        and (facts[0].size, facts[0].change) == (facts[1].size, facts[1].change)
    )
    if bilateral and rng.random() < 0.75:
        core = rng.choice(_BILATERAL).format(size=facts[0].size)
        return [_sentence(_with_change(core, facts[0].change, rng), facts, {"bilateral pleural effusions"})]
    out = []
    for fact in facts:
        if fact.status == "present":
            out.append(_sentence(_with_change(_core(fact, rng), fact.change, rng), [fact]))
        elif fact.change == "resolved":
            place = " ".join(filter(None, (fact.side, fact.zone and f"{fact.zone} zone")))
            what = f"{place} {_WORDS.get(fact.name, fact.name)}".strip()
            phrases = _REMOVED if fact.name in _DEVICES else _RESOLVED
            out.append(_sentence(rng.choice(phrases).format(what=what), [fact]))
    sides = [fact for fact in facts if fact.side and fact.zone is None]
    plain = [fact for fact in sides if fact.status == "absent" and fact.change is None]
    if out and len(plain) == 1 and rng.random() < 0.3:
        out.append(_sentence(f"no {plain[0].side} {plain[0].name}", plain))
    return out


def _core(fact: Finding, rng: random.Random, variants: int | None = None) -> str:
    phrases = _TUBES[fact.name, fact.tip] if fact.tip else _PRESENT[fact.name]
    return rng.choice(phrases[:variants]).format(
        size=fact.size,
        side=fact.side,
        zone=fact.zone,
        degree=DEGREES.get(fact.size or ""),
        adverb=_ADVERBS.get(fact.size or ""),
    )


def _with_change(core: str, change: str | None, rng: random.Random) -> str:
    if change is None:
        return core
    # "New small left pleural effusion": only before a phrase without a verb or an article.
    leading = core.split()[0] not in ("there", "the", "a") and not {"is", "are"} & set(core.split())
    if change in ("new", "unchanged") and leading and rng.random() < 0.4:
        return f"{change} {core}"
    return f"{core}, {rng.choice(_CHANGED[change])}"


def _denial(facts: list[Finding], rng: random.Random) -> Sentence:
    name = facts[0].name
    phrases = _NO_SOLID if name == "consolidation" else _NOTHING
    return _deny(rng.choice(phrases).format(what=_WORDS.get(name, name)), facts)


def _devices(facts: list[Finding], rng: random.Random) -> list[Sentence]:
    out, absent = [], []
    for fact in facts:
        sentences = _stated([fact], rng)
        out += sentences
        if not sentences:
            absent.append(fact)
    if len(absent) == len(_DEVICES):
        return [_deny(rng.choice(_NO_DEVICE), absent)]
    if absent:
        *others, last = (fact.name for fact in absent)
        out.append(_deny(f"no {', '.join(others)} or {last}" if others else f"no {last}", absent))
    return out


def _sentence(words: str, facts: Sequence[Finding], also: Iterable[str] = ()) -> Sentence:
    return Sentence(f"{words[0].upper()}{words[1:]}.", stated(facts).union(also))


def _deny(words: str, facts: Iterable[Finding]) -> Sentence:
    """A sentence that denies findings everywhere, without their sides."""
    return _sentence(words, [Finding(fact.name, "absent") for fact in facts])


def _text(sentences: Iterable[Sentence]) -> str:
    return " ".join(sentence.text for sentence in sentences)
