"""Finds the phrases of a report that name findings: sentences, their clauses, and the mentions in each clause."""

import dataclasses
import re
from collections.abc import Iterator

from maira_jax.reports.vocabulary import qualifiers, terms
from maira_jax.reports.vocabulary.pattern import blank
from maira_jax.studies.study import Finding

# Longer clauses are not sentences; reading them in parts keeps the time linear in the report's length.
_MAX_CLAUSE_WORDS = 100

_SENTENCE_END = re.compile(r"(?<![0-9])[.!?]+(?=\s|$|[a-z])|(?<=[0-9])\.(?=\s|$)|[;\n]+|\b\d\. (?=[a-z])")
_CLAUSE_START = re.compile(
    r",? ?\b(?:but|however|although|though|while|whereas|except|aside from|apart from|other than|"
    r"(?:and )?with no|(?:and )?without(?! (?:\w+ ){0,3}?(?:change|increase|decrease|improvement|worsening)))\b"
    r"|, (?:and )?(?=there (?:is|are|has|have)\b|no\b|the\b|an?\b)"
    r"| and (?=there (?:is|are|has|have)\b|no\b|the (?!left\b|right\b)|an? |it\b|is no\b)"
)
_CONNECTOR = re.compile(r", (?:and |or )?| and | or | with | nor | as well as |/")
_MODIFIER_ONLY = re.compile(r"^[\s\w-]*$")
_SHARED_PREDICATE = re.compile(r"\s*(?:(?:is|are|has|have|appears?|remains?|persists?|again|both)\b.*)")

_WRAPPED = re.compile(r"(?<=[\w,]) *\n *(?=[a-z])")
_CONTRACTED = re.compile(r"\b(is|are|was|were|do|does|did|has|have|could)n't\b")

VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|had|remains?|persists?|appears?|shows?|seen|noted|present|improved|worsened|resolved)\b"
)


@dataclasses.dataclass
class Mention:
    """A phrase that names a finding.

    Attributes:
      name: the finding.
      start, end: position of the phrase in its clause.
      phrase: the phrase itself; "" where a statement of normality denies the finding.
      status: "present", "absent", "uncertain", or "unmentioned" where the phrase is not about this study.
      normal: whether it comes from a statement of normality ("the lungs are clear").
      before, after: the words of the clause that belong to this mention rather than to another.
      resolved: whether the finding is absent because it has resolved.
      hedge: the words that leave an uncertain finding open.
      qualifiers: for each place of the finding, the fields of `Finding` that are known.
    """

    name: str
    start: int
    end: int
    phrase: str = ""
    status: str = "present"
    normal: bool = False
    before: str = ""
    after: str = ""
    resolved: bool = False
    hedge: str | None = None
    qualifiers: list[dict[str, str]] = dataclasses.field(default_factory=lambda: [{}])

    def findings(self) -> list[Finding]:
        """One finding for each place, with the fields that a finding of this name and status can have."""
        midline, device = self.name in terms.MIDLINE, self.name in terms.DEVICES
        unused = {"side", "zone"} if midline else set()
        unused |= {"size", "zone"} if device else {"tip"}
        if self.status == "absent":
            unused |= {"size", "change", "tip"}
        found = []
        for qualifier in self.qualifiers[:1] if midline else self.qualifiers:
            fields = {key: value for key, value in qualifier.items() if key not in unused}
            if self.status == "uncertain" and self.hedge:
                fields["hedge"] = self.hedge
            if self.status == "absent" and self.resolved:
                fields["change"] = "resolved"
            found.append(Finding(self.name, self.status, **fields))
        return found


def sentences(report: str) -> Iterator[str]:
    """The sentences of a report, in lower case, without the characters that end them."""
    text = report.replace("\u2019", "'")
    if text != text.lower():  # without capitals, nothing tells a wrapped line from a new one
        text = _WRAPPED.sub(" ", text)
    text = _CONTRACTED.sub(r"\1 not", re.sub(r"[ \t\r\f\v]+", " ", text.lower())).replace("can't", "cannot")
    for sentence in _SENTENCE_END.split(text):
        sentence = sentence.strip(" ,.-")
        if sentence:
            yield sentence


def clauses(sentence: str) -> list[str]:
    """The parts of a sentence that negation and hedging do not reach across."""
    starts = [0]
    for match in _CLAUSE_START.finditer(sentence):
        start = match.start() + match.group().startswith(",")
        if start > starts[-1]:
            starts.append(start)
    found = []
    for start, stop in zip(starts, [*starts[1:], len(sentence)], strict=True):
        words = sentence[start:stop].split()
        found += [" ".join(words[i : i + _MAX_CLAUSE_WORDS]) for i in range(0, len(words), _MAX_CLAUSE_WORDS)]
    return found


def find_mentions(clause: str) -> list[Mention]:
    """The mentions of a clause, in order, each with the words that belong to it."""
    found = []
    free = blank(clause, terms.VETO)
    for names, pattern in terms.NORMAL_STATEMENTS:
        for match in pattern.finditer(free):
            found += [Mention(name, match.start(), match.end(), status="absent", normal=True) for name in names]
    for mention in found:
        if mention.name == "cardiomegaly":
            free = free[: mention.start] + "_" * (mention.end - mention.start) + free[mention.end :]
    for name, pattern in terms.MENTIONS:
        found += [Mention(name, match.start(), match.end(), match.group()) for match in pattern.finditer(free)]
        free = blank(free, pattern)
    found.sort(key=lambda mention: mention.start)
    _divide_words(clause, found)
    _share_words(clause, found)
    return found


def _divide_words(clause: str, mentions: list[Mention]) -> None:
    """Gives the words between two mentions to the one or the other."""
    if not mentions:
        return
    mentions[0].before = clause[: mentions[0].start]
    mentions[-1].after = clause[mentions[-1].end :]
    for left, right in zip(mentions, mentions[1:], strict=False):
        gap = clause[left.end : right.start]
        boundary = _boundary(gap)
        left.after, right.before = gap[:boundary], gap[boundary:]


def _boundary(gap: str) -> int:
    """Where the words between two mentions begin to belong to the second."""
    connectors = list(_CONNECTOR.finditer(gap))
    for connector in connectors[:-1]:
        rest = gap[connector.end() :]
        if _MODIFIER_ONLY.match(rest) and not VERB.search(rest):
            return connector.start()
    if connectors:
        return connectors[-1].start()
    return len(gap) if VERB.search(gap) else 0


def _share_words(clause: str, mentions: list[Mention]) -> None:
    """Lets coordinated findings share a predicate ("effusion and oedema are new") and a side ("left ... and ...")."""
    for left, right in reversed(list(zip(mentions, mentions[1:], strict=False))):
        gap = clause[left.end : right.start]
        if VERB.search(gap) or not re.search(r",| and | or |/", gap) or left.normal or right.normal:
            continue
        if predicate := _SHARED_PREDICATE.match(right.after):
            left.after = f"{left.after} {predicate.group()}"
        if not _side(right.before) and right.name not in terms.DEVICES:
            side = _side(left.before)
            if side and not _side(right.after) and gap.strip(" ") in ("and", "or", "and/or", ",", "/"):
                right.before = f"{side.group()} {right.before}"


def _side(text: str) -> re.Match[str] | None:
    return qualifiers.SIDES.search(blank(text, qualifiers.SIDE_VETO))
