"""What a radiology report states: findings with status, side, size, zone, change and tip position.

A rule-based reader in the manner of NegEx and the CheXpert labeller. A report is cut into
sentences, sentences into clauses; within a clause every phrase that names a finding gets its
status from the negation and uncertainty cues whose scope reaches it, and its qualifiers from the
words around it up to the neighbouring findings. A sentence that begins with a pronoun ("It is
unchanged", "The tip lies ...") qualifies the findings of the sentence before.

The vocabulary is in `steer.vocabulary`. The reader accepts any text, steered and degenerate text
included, in time linear in its length.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import NamedTuple

from maira_jax.phantom.world.concepts import study_labels
from maira_jax.reports.vocabulary import cues, qualifiers, terms
from maira_jax.studies.study import Finding

_SENTENCE_END = re.compile(r"(?<![0-9])[.!?]+(?=\s|$|[a-z])|(?<=[0-9])\.(?=\s|$)|[;\n]+|\b\d\. (?=[a-z])")
_LONGEST = 100  # words of a clause
_CLAUSE_START = re.compile(
    r",? ?\b(?:but|however|although|though|while|whereas|except|aside from|apart from|other than|"
    r"(?:and )?with no|(?:and )?without(?! (?:\w+ ){0,3}?(?:change|increase|decrease|improvement|worsening)))\b"
    r"|, (?:and )?(?=there (?:is|are|has|have)\b|no\b|the\b|an?\b)"
    r"| and (?=there (?:is|are|has|have)\b|no\b|the (?!left\b|right\b)|an? |it\b|is no\b)"
)
_CONNECTOR = re.compile(r", (?:and |or )?| and | or | with | nor | as well as |/")
_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|had|remains?|persists?|appears?|shows?|seen|noted|present|improved|worsened|resolved)\b"
)
_LIST_ITEM = re.compile(r"^ ?(?:or|nor|and/or)\b")
_ANAPHOR = re.compile(
    r"^(?:and |but |also,? )?(?:it|its|they|their|these|this|those|both|the (?:\w+ )?tips?|tips?|which)\b"
)
_MODIFIER_ONLY = re.compile(r"^[\s\w-]*$")
_FORWARD_STOP = re.compile(
    r"\b(?:but|however|although|though|except|which|that|because|due to|secondary to|related to)\b|[:]"
)


class Reading(NamedTuple):
    """What a report states: its findings (`extract`) and its concepts (`concepts`)."""

    findings: tuple[Finding, ...]
    concepts: dict[str, bool]


@dataclasses.dataclass
class _Mention:
    """A phrase that names a finding, at [start, end) of its clause."""

    name: str
    start: int
    end: int
    status: str = "present"
    phrase: str = ""
    normal: bool = False
    before: str = ""
    after: str = ""
    resolved: bool = False
    qualifiers: list[dict[str, str]] = dataclasses.field(default_factory=lambda: [{}])

    def findings(self) -> list[Finding]:
        found = []
        for qualifier in self.qualifiers[:1] if self.name in terms.MIDLINE else self.qualifiers:
            fields = dict(qualifier)
            if self.status == "absent":
                fields = {key: fields[key] for key in ("side", "zone") if key in fields}
                if self.resolved:
                    fields["change"] = "resolved"
            if self.name in terms.MIDLINE:
                fields.pop("side", None)
                fields.pop("zone", None)
            if self.name in terms.DEVICES:
                fields.pop("size", None)
                fields.pop("zone", None)
            else:
                fields.pop("tip", None)
            found.append(Finding(self.name, self.status, **fields))
        return found


def _blank(text: str, pattern: re.Pattern[str]) -> str:
    """`text` with every match replaced by as many underscores, so that positions stay."""
    return pattern.sub(lambda match: "_" * (match.end() - match.start()), text)


def _sentences(report: str) -> Iterable[str]:
    text = re.sub(r"[ \t\r\f\v]+", " ", report.lower().replace("\u2019", "'"))
    for sentence in _SENTENCE_END.split(text):
        sentence = sentence.strip(" ,.-")
        if sentence:
            yield sentence


def _clauses(sentence: str) -> list[str]:
    cuts = [0]
    for match in _CLAUSE_START.finditer(sentence):
        cut = match.start()
        if match.group().startswith(","):
            cut += 1
        if cut > cuts[-1]:
            cuts.append(cut)
    cuts.append(len(sentence))
    clauses = []
    for start, stop in zip(cuts, cuts[1:], strict=False):
        words = sentence[start:stop].split()
        # Longer ones are no sentences: reading them in pieces keeps the time linear.
        clauses += [" ".join(words[i : i + _LONGEST]) for i in range(0, len(words), _LONGEST)]
    return clauses


def _find_mentions(clause: str) -> list[_Mention]:
    found: list[_Mention] = []
    free = _blank(clause, terms.VETO)
    for names, pattern in terms.NORMAL_STATEMENTS:
        for match in pattern.finditer(free):
            for name in names:
                mention = _Mention(name, match.start(), match.end(), status="absent", normal=True)
                found.append(mention)
    for mention in found:
        if mention.name == "cardiomegaly":
            free = free[: mention.start] + "_" * (mention.end - mention.start) + free[mention.end :]
    for name, pattern in terms.MENTIONS:
        for match in pattern.finditer(free):
            found.append(_Mention(name, match.start(), match.end(), phrase=match.group()))
        free = _blank(free, pattern)
    found.sort(key=lambda mention: mention.start)
    return found


def _territories(clause: str, mentions: list[_Mention]) -> None:
    """Gives each mention the words before and after it that are nearer to it than to another."""
    for i, mention in enumerate(mentions):
        gap_start = mentions[i - 1].end if i else 0
        gap = clause[gap_start : mention.start]
        if i == 0:
            mention.before = gap
            continue
        cuts = list(_CONNECTOR.finditer(gap))
        cut = len(gap) if not cuts and _VERB.search(gap) else 0
        for candidate in cuts:
            rest = gap[candidate.end() :]
            if candidate is cuts[-1] or (_MODIFIER_ONLY.match(rest) and not _VERB.search(rest)):
                cut = candidate.start()
                break
        mentions[i - 1].after = gap[:cut]
        mention.before = gap[cut:]
    if mentions:
        mentions[-1].after = clause[mentions[-1].end :]


def _in_scope_before(between: str, mention_before: str) -> bool:
    """Whether a negation reaches over `between`, the words from the cue to the mention."""
    if _FORWARD_STOP.search(between):
        return False
    pieces = re.split(r",| and ", between)
    if len(pieces) == 1:
        return True
    last = pieces[-1]
    if _LIST_ITEM.match(last):
        return True
    return not _own_clause(pieces[1:], mention_before)


def _own_clause(pieces: list[str], mention_before: str) -> bool:
    return any(_VERB.search(piece) or re.match(r" ?(?:an?|the|there) ", piece) for piece in pieces)


def _status(clause: str, mention: _Mention) -> None:
    """Sets status (and resolved) of a mention from the cues of its clause."""
    text = _blank(_blank(clause, cues.PSEUDO_NEGATION), cues.PARTIAL)
    head, inside = text[: mention.start], text[mention.start : mention.end]
    own_tail = mention.after
    negated = bool(re.search(r"\b(?:not|no|without)\b", inside))
    for cue in cues.NEGATION_BEFORE.finditer(head):
        between = head[cue.end() :]
        if _in_scope_before(between, mention.before) and not _is_after_cue(cue, between):
            negated = True
    tail_text = _blank(_blank(own_tail, cues.PSEUDO_NEGATION), cues.PARTIAL)
    if cues.NEGATION_AFTER.search(cues.UNCERTAIN_AFTER.sub(" ", tail_text)) or cues.RESOLVED.search(tail_text):
        negated = True
    resolved = bool(cues.RESOLVED.search(tail_text) or cues.RESOLVED.search(mention.before))
    uncertain = bool(cues.UNCERTAIN_AFTER.search(own_tail))
    for cue in cues.UNCERTAIN_BEFORE.finditer(head):
        if not re.search(r",(?! (?:or|and/or) )|\bbut\b", head[cue.end() :]):
            uncertain = True
    if cues.HYPOTHETICAL.search(head):
        mention.status = "unmentioned"
    elif uncertain and not (negated and not _hedged_negation(clause)):
        mention.status = "uncertain"
    elif negated:
        mention.status, mention.resolved = "absent", resolved


def _hedged_negation(clause: str) -> bool:
    return bool(cues.UNCERTAIN_AFTER.search(clause) or re.search(r"(?:exclude|rule out)", clause))


def _is_after_cue(cue: re.Match[str], between: str) -> bool:
    """Whether a cue before this mention is in truth the predicate of an earlier one.

    "The effusion has resolved and atelectasis is ..." or "pneumothorax is not seen, effusion ...".
    """
    word = cue.group()
    if word in ("resolved", "absent", "removed", "cleared", "interval removed") or word.startswith("not"):
        return bool(re.search(r",| and ", between)) or bool(_VERB.search(between))
    return False


def _by_row(table: tuple[tuple[str, re.Pattern[str]], ...], text: str) -> str | None:
    """The value of the first row of the table that occurs in `text` at all."""
    return next((value for value, pattern in table if pattern.search(text)), None)


def _change(text: str) -> str | None:
    return _by_row(qualifiers.CHANGES, text)


def _largest_size(text: str) -> str | None:
    text = _blank(text, qualifiers.SIZE_OF_CHANGE)
    return next((value for value, pattern in reversed(qualifiers.SIZES) if pattern.search(text)), None)


def _qualifiers(mention: _Mention, phrase: str) -> list[dict[str, str]]:
    """Side, size, zone, change and tip of a mention; one entry a place."""
    around = f"{mention.before} {phrase} | {mention.after}"
    shared: dict[str, str] = {}
    device = mention.name in terms.DEVICES
    if device:
        low = "malpositioned" if qualifiers.LYING.search(mention.before) else None
        tip = low or _by_row(qualifiers.TIPS, f"{mention.before} | {mention.after}")
        size = None
    else:
        tip = None
        size = _largest_size(f"{mention.before} {phrase} | {_until_new_clause(mention.after)}")
    change = _change(_blank(around, cues.RESOLVED) if mention.status == "absent" else around)
    shared = {k: x for k, x in (("size", size), ("change", change), ("tip", tip)) if x}
    text = _blank(_blank(around, qualifiers.SIDE_VETO), qualifiers.ZONE_VETO)
    before = _blank(f"{mention.before} {phrase}", qualifiers.SIDE_VETO)
    if device and qualifiers.SIDES.search(before):
        text = before
    places = _places(text, mention.name)
    if len(places) < 2:
        return [shared | place for _, _, place in places] or [shared]
    found = []
    for start, end, place in places:
        own = shared | place
        if not device and (size := _largest_size(text[start:end])):
            own["size"] = size
        if change := _change(text[start:end]):
            own["change"] = change
        found.append(own)
    return found


def _places(text: str, name: str) -> list[tuple[int, int, dict[str, str]]]:
    """The places that `text` names, each with the span of words that leads up to it.

    "left upper and right lower" is two places, and so is "left upper and lower" or "both bases".
    """
    marks: list[tuple[int, int, str, tuple[str, ...]]] = []
    for match in qualifiers.SIDES.finditer(text):
        both = ("left", "right") if match["both"] else ("left",) if match["left"] else ("right",)
        marks.append((match.start(), 0, "side", both))
    if name not in terms.DEVICES:
        for zone, pattern in qualifiers.ZONES:
            marks += [(match.start(), 1, "zone", (zone,)) for match in pattern.finditer(text)]
    marks.sort()
    zones = list(dict.fromkeys(mark[3][0] for mark in marks if mark[2] == "zone"))
    sides = [mark for mark in marks if mark[2] == "side"]
    if name not in terms.ZONAL:
        zones = zones[:1]
    if not sides:
        return [(0, len(text), {"zone": zone}) for zone in zones]
    found: dict[tuple[str, str], tuple[int, int, dict[str, str]]] = {}
    start = 0
    for i, (position, _, _, names) in enumerate(sides):
        own = zones
        if len(zones) > 1 and len(sides) > 1:
            limit = sides[i + 1][0] if i + 1 < len(sides) else len(text)
            low, high = (position, limit) if marks[0][2] == "side" else (start, position)
            own = [mark[3][0] for mark in marks if mark[2] == "zone" and low <= mark[0] < high]
        for side in names:
            for zone in own or [""]:
                place = {"side": side} | ({"zone": zone} if zone else {})
                found.setdefault((side, zone), (start, position, place))
        start = position
    return list(found.values())


def _until_new_clause(text: str) -> str:
    return re.split(r", (?:and |which )", text)[0]


def _share(mentions: list[_Mention], clause: str) -> None:
    """Predicates and sides that several coordinated findings of a clause have in common."""
    for i in range(len(mentions) - 1, 0, -1):
        left, right = mentions[i - 1], mentions[i]
        gap = clause[left.end : right.start]
        if _VERB.search(gap) or not re.search(r",| and | or |/", gap) or left.normal or right.normal:
            continue
        predicate = re.match(r"\s*(?:(?:is|are|has|have|appears?|remains?|persists?|again|both)\b.*)", right.after)
        if predicate:
            left.after = f"{left.after} {predicate.group()}"
        if not qualifiers.SIDES.search(_blank(right.before, qualifiers.SIDE_VETO)) and right.name not in terms.DEVICES:
            side = qualifiers.SIDES.search(_blank(left.before, qualifiers.SIDE_VETO))
            tail_side = qualifiers.SIDES.search(_blank(right.after, qualifiers.SIDE_VETO))
            if side and not tail_side and gap.strip(" ") in ("and", "or", "and/or", ",", "/"):
                right.before = f"{side.group()} {right.before}"


def _read_clause(clause: str) -> list[_Mention]:
    mentions = _find_mentions(clause)
    _territories(clause, mentions)
    _share(mentions, clause)
    for mention in mentions:
        if not mention.normal:
            _status(clause, mention)
        mention.qualifiers = _qualifiers(mention, clause[mention.start : mention.end])
    for mention in list(mentions):
        if mention.status == "absent" and mention.name == "support devices":
            phrase = clause[mention.start : mention.end]
            names = terms.DEVICES if terms.ALL_DEVICES.match(phrase) else terms.TUBES
            if names is terms.DEVICES or terms.ALL_TUBES.match(phrase):
                mentions += [dataclasses.replace(mention, name=name) for name in names]
    return [mention for mention in mentions if mention.status != "unmentioned"]


def _anaphora(sentence: str, antecedents: list[_Mention]) -> None:
    """Lets a sentence without findings of its own qualify those of the sentence before."""
    for mention in antecedents:
        if mention.status == "absent":
            continue
        probe = dataclasses.replace(mention, before="", after=sentence)
        extra = _qualifiers(probe, "")[0]
        extra.pop("side", None)
        if cues.RESOLVED.search(_blank(sentence, cues.PARTIAL)):
            mention.status, mention.resolved = "absent", True
        for qualifier in mention.qualifiers:
            for key, value in extra.items():
                qualifier.setdefault(key, value)


def _place(finding: Finding) -> tuple[str | None, str | None]:
    return finding.side, finding.zone if finding.name in terms.ZONAL else None


def _covers(general: Finding, special: Finding) -> bool:
    """Whether `general` speaks of the same place as `special`, or of one that includes it."""
    return all(a is None or a == b for a, b in zip(_place(general), _place(special), strict=True))


def _merge(findings: list[Finding]) -> tuple[Finding, ...]:
    """One finding a (name, place): present beats uncertain beats absent, qualifiers are united.

    A statement without a place adds its qualifiers to those of its name with one, and a denial
    without a place is dropped where the finding is present somewhere.
    """
    merged: list[Finding] = []
    for status in ("present", "uncertain", "absent"):
        for finding in findings:
            if finding.status != status:
                continue
            same = [i for i, other in enumerate(merged) if other.name == finding.name]
            if any(
                merged[i].status != status and (_covers(finding, merged[i]) or _covers(merged[i], finding))
                for i in same
            ):
                continue
            same = [i for i in same if merged[i].status == status]
            inside = [i for i in same if _covers(finding, merged[i])]
            around = [i for i in same if i not in inside and _covers(merged[i], finding)]
            for i in inside:
                merged[i] = _united(merged[i], finding)
            if around:
                finding = _united(finding, merged[around[0]])
                merged = [other for i, other in enumerate(merged) if i not in around]
            if not inside:
                merged.append(finding)
    return tuple(merged)


def _united(first: Finding, second: Finding) -> Finding:
    fields = ("size", "zone", "change", "tip")
    gained = {f: getattr(second, f) for f in fields if getattr(first, f) is None}
    return dataclasses.replace(first, **gained)


def extract(report: str) -> tuple[Finding, ...]:
    """Reads the findings that a report states.

    Args:
      report: any text.

    Returns:
      At most one finding for each name and side, in order of status and mention. A bilateral
      finding is two. What the report does not mention is not in the result. "no finding" is
      present where the report says so (or the like of "no acute abnormality") and states nothing
      present or uncertain but devices.
    """
    return _findings(report, _read(report))


def _read(report: str) -> list[_Mention]:
    """Everything that a report mentions, in order."""
    previous: list[_Mention] = []
    mentions: list[_Mention] = []
    for sentence in _sentences(report):
        clauses = [_read_clause(clause) for clause in _clauses(sentence)]
        own = [mention for clause in clauses for mention in clause]
        if own:
            mentions += own
            previous = own
        elif previous and _ANAPHOR.match(sentence):
            _anaphora(sentence, previous)
        else:
            previous = []
    return mentions


def _findings(report: str, mentions: Iterable[_Mention]) -> tuple[Finding, ...]:
    merged = _merge([finding for mention in mentions for finding in mention.findings()])
    healthy = all(f.status == "absent" or f.name in terms.DEVICES + ("support devices",) for f in merged)
    if healthy and terms.NO_FINDING.search(report.lower()):
        merged += (Finding("no finding", "present"),)
    return merged


def chexpert(findings: Iterable[Finding]) -> dict[str, str]:
    """Status of each CheXpert observation that is stated; any device is a support device.

    "no finding" follows the labeller: present where none of the others but devices is present or
    uncertain.
    """
    rank = {"absent": 0, "uncertain": 1, "present": 2}
    labels: dict[str, str] = {}
    for finding in findings:
        name = "support devices" if finding.name in terms.DEVICES else finding.name
        if name in terms.CHEXPERT and rank[finding.status] >= rank.get(labels.get(name, "absent"), 0):
            labels[name] = finding.status
    found = (s for n, s in labels.items() if n not in ("support devices", "no finding"))
    labels["no finding"] = "present" if all(s == "absent" for s in found) else "absent"
    return labels


def concepts(report: str) -> dict[str, bool]:
    """Study-level concepts of a report, in the vocabulary of `Study.labels`.

    The phantom's concepts (its findings with their sides, sizes, zones and tips, changes,
    communication, comparison), the CheXpert observations and the other labels of the data sets that
    `maira_jax.studies` reads, all from the text alone. An uncertain finding counts as not there.
    """
    return read(report).concepts


def read(report: str) -> Reading:
    """`extract` and `concepts` at once, at the price of one."""
    mentions = _read(report)
    findings = _findings(report, mentions)
    real = {name: False for name in (*terms.CHEXPERT, *terms.NARROWER)}
    real |= {name: status == "present" for name, status in chexpert(findings).items()}
    for mention in mentions:
        if mention.status == "present":
            real |= {name: True for name, words in terms.NARROWER.items() if words.search(mention.phrase)}
    labelled = study_labels(findings, has_comparison(report), is_communication(report))
    return Reading(findings, real | labelled)


def is_communication(report: str) -> bool:
    """Whether the report says that its findings were told to somebody."""
    return bool(cues.COMMUNICATION.search(report.lower()))


def has_comparison(report: str) -> bool:
    """Whether the report compares with an earlier image."""
    return bool(cues.COMPARISON.search(_blank(report.lower(), cues.NO_COMPARISON)))
