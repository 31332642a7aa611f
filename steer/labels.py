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

from maira_jax.studies.study import Finding
from steer import vocabulary as v

_SENTENCE_END = re.compile(r"(?<![0-9])[.!?]+(?=\s|$|[a-z])|(?<=[0-9])\.(?=\s|$)|[;\n]+|\b\d\. (?=[a-z])")
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


@dataclasses.dataclass
class _Mention:
    """A phrase that names a finding, at [start, end) of its clause."""

    name: str
    start: int
    end: int
    status: str = "present"
    normal: bool = False
    before: str = ""
    after: str = ""
    resolved: bool = False
    qualifiers: list[dict[str, str]] = dataclasses.field(default_factory=lambda: [{}])

    def findings(self) -> list[Finding]:
        found = []
        for qualifier in self.qualifiers:
            fields = dict(qualifier)
            if self.status == "absent":
                fields = {key: fields[key] for key in ("side",) if key in fields}
                if self.resolved:
                    fields["change"] = "resolved"
            if self.name in v.MIDLINE:
                fields.pop("side", None)
                fields.pop("zone", None)
            if self.name in v.DEVICES:
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
    pieces = (sentence[a:b].strip() for a, b in zip(cuts, cuts[1:], strict=False))
    return [piece for piece in pieces if piece]


def _find_mentions(clause: str) -> list[_Mention]:
    found: list[_Mention] = []
    free = _blank(clause, v.VETO)
    for names, pattern in v.NORMAL_STATEMENTS:
        for match in pattern.finditer(free):
            for name in names:
                mention = _Mention(name, match.start(), match.end(), status="absent", normal=True)
                found.append(mention)
    for mention in found:
        if mention.name == "cardiomegaly":
            free = free[: mention.start] + "_" * (mention.end - mention.start) + free[mention.end :]
    for name, pattern in v.MENTIONS:
        for match in pattern.finditer(free):
            found.append(_Mention(name, match.start(), match.end()))
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
    text = _blank(_blank(clause, v.PSEUDO_NEGATION), v.PARTIAL)
    head, inside = text[: mention.start], text[mention.start : mention.end]
    own_tail = mention.after
    negated = bool(re.search(r"\b(?:not|no|without)\b", inside))
    for cue in v.NEGATION_BEFORE.finditer(head):
        between = head[cue.end() :]
        if _in_scope_before(between, mention.before) and not _is_after_cue(cue, between):
            negated = True
    tail_text = _blank(_blank(own_tail, v.PSEUDO_NEGATION), v.PARTIAL)
    if v.NEGATION_AFTER.search(v.UNCERTAIN_AFTER.sub(" ", tail_text)) or v.RESOLVED.search(tail_text):
        negated = True
    resolved = bool(v.RESOLVED.search(tail_text) or v.RESOLVED.search(mention.before))
    uncertain = bool(v.UNCERTAIN_AFTER.search(own_tail))
    for cue in v.UNCERTAIN_BEFORE.finditer(head):
        if not re.search(r",(?! (?:or|and/or) )|\bbut\b", head[cue.end() :]):
            uncertain = True
    if v.HYPOTHETICAL.search(head):
        mention.status = "unmentioned"
    elif uncertain and not (negated and not _hedged_negation(clause)):
        mention.status = "uncertain"
    elif negated:
        mention.status, mention.resolved = "absent", resolved


def _hedged_negation(clause: str) -> bool:
    return bool(v.UNCERTAIN_AFTER.search(clause) or re.search(r"(?:exclude|rule out)", clause))


def _is_after_cue(cue: re.Match[str], between: str) -> bool:
    """Whether a cue before this mention is in truth the predicate of an earlier one.

    "The effusion has resolved and atelectasis is ..." or "pneumothorax is not seen, effusion ...".
    """
    word = cue.group()
    if word in ("resolved", "absent", "removed", "cleared", "interval removed") or word.startswith("not"):
        return bool(re.search(r",| and ", between)) or bool(_VERB.search(between))
    return False


def _first(table: tuple[tuple[str, re.Pattern[str]], ...], text: str) -> str | None:
    """The value whose pattern occurs earliest in `text`; a later row loses a tie."""
    best: tuple[int, str] | None = None
    for value, pattern in table:
        match = pattern.search(text)
        if match and (best is None or match.start() < best[0]):
            best = (match.start(), value)
    return best[1] if best else None


def _by_row(table: tuple[tuple[str, re.Pattern[str]], ...], text: str) -> str | None:
    """The value of the first row of the table that occurs in `text` at all."""
    return next((value for value, pattern in table if pattern.search(text)), None)


def _change(text: str) -> str | None:
    return _by_row(v.CHANGES, text)


def _largest_size(text: str) -> str | None:
    text = _blank(text, v.SIZE_OF_CHANGE)
    return next((value for value, pattern in reversed(v.SIZES) if pattern.search(text)), None)


def _qualifiers(mention: _Mention, phrase: str) -> list[dict[str, str]]:
    """Side, size, zone, change and tip of a mention; one entry a side."""
    around = f"{mention.before} {phrase} | {mention.after}"
    shared: dict[str, str] = {}
    device = mention.name in v.DEVICES
    sizes_in = f"{mention.before} {phrase} | {_until_new_clause(mention.after)}"
    for key, value in (
        ("size", None if device else _largest_size(sizes_in)),
        ("zone", None if device else _first(v.ZONES, _blank(around, v.ZONE_VETO))),
        ("change", _change(_blank(around, v.RESOLVED) if mention.status == "absent" else around)),
        ("tip", _by_row(v.TIPS, mention.after) or _by_row(v.TIPS, mention.before) if device else None),
    ):
        if value:
            shared[key] = value
    text = _blank(around, v.SIDE_VETO)
    if device:
        text = text if not v.SIDES.search(mention.before + phrase) else f"{mention.before} {phrase}"
        text = _blank(text, v.SIDE_VETO)
    sides = list(v.SIDES.finditer(text))
    if not sides:
        return [shared]
    found: dict[str, dict[str, str]] = {}
    start = 0
    for match in sides:
        own = dict(shared)
        size = _largest_size(text[start : match.start()])
        if size and len(sides) > 1 and not device:
            own["size"] = size
        change = _change(text[start : match.start()])
        if change and len(sides) > 1:
            own["change"] = change
        for side in ("left", "right"):
            if match[side] or match["both"]:
                found.setdefault(side, own | {"side": side})
        start = match.end()
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
        if not v.SIDES.search(_blank(right.before, v.SIDE_VETO)) and right.name not in v.DEVICES:
            side = v.SIDES.search(_blank(left.before, v.SIDE_VETO))
            tail_side = v.SIDES.search(_blank(right.after, v.SIDE_VETO))
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
    return [mention for mention in mentions if mention.status != "unmentioned"]


def _anaphora(sentence: str, antecedents: list[_Mention]) -> None:
    """Lets a sentence without findings of its own qualify those of the sentence before."""
    for mention in antecedents:
        if mention.status == "absent":
            continue
        probe = dataclasses.replace(mention, before="", after=sentence)
        extra = _qualifiers(probe, "")[0]
        extra.pop("side", None)
        if v.RESOLVED.search(_blank(sentence, v.PARTIAL)):
            mention.status, mention.resolved = "absent", True
        for qualifier in mention.qualifiers:
            for key, value in extra.items():
                qualifier.setdefault(key, value)


def _merge(findings: list[Finding]) -> tuple[Finding, ...]:
    """One finding a (name, side): present beats uncertain beats absent, qualifiers are united."""
    merged: dict[tuple[str, str | None], Finding] = {}
    for status in ("present", "uncertain", "absent"):
        for finding in findings:
            if finding.status != status:
                continue
            same_name = [key for key in merged if key[0] == finding.name]
            key = (finding.name, finding.side)
            if status != "present" and (key in merged or (same_name and finding.side is None)):
                if merged.get(key, finding).status != status:
                    continue
            elif status == "present" and finding.side is None and same_name:
                for other in same_name:
                    merged[other] = _united(merged[other], finding)
                continue
            elif finding.side is not None and (finding.name, None) in merged:
                sideless = merged[finding.name, None]
                if sideless.status == status:
                    del merged[finding.name, None]
                    finding = _united(finding, sideless)
            merged[key] = _united(merged[key], finding) if key in merged else finding
    return tuple(merged.values())


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
    findings: list[Finding] = []
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
    for mention in mentions:
        findings += mention.findings()
    merged = _merge(findings)
    healthy = all(f.status == "absent" or f.name in v.DEVICES + ("support devices",) for f in merged)
    if healthy and v.NO_FINDING.search(report.lower()):
        merged += (Finding("no finding", "present"),)
    return merged


def chexpert(findings: Iterable[Finding]) -> dict[str, str]:
    """Status of each CheXpert observation that is stated; any device is a support device."""
    rank = {"absent": 0, "uncertain": 1, "present": 2}
    labels: dict[str, str] = {}
    for finding in findings:
        name = "support devices" if finding.name in v.DEVICES else finding.name
        if rank[finding.status] >= rank.get(labels.get(name, "absent"), 0):
            labels[name] = finding.status
    return labels


def is_communication(report: str) -> bool:
    """Whether the report says that its findings were told to somebody."""
    return bool(v.COMMUNICATION.search(report.lower()))


def has_comparison(report: str) -> bool:
    """Whether the report compares with an earlier image."""
    return bool(v.COMPARISON.search(_blank(report.lower(), v.NO_COMPARISON)))
