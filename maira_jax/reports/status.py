"""Whether a mentioned finding is present, absent or uncertain, in the manner of NegEx (Chapman et al. 2001)."""

import re

from maira_jax.reports.mentions import VERB, Mention
from maira_jax.reports.vocabulary import cues
from maira_jax.reports.vocabulary.pattern import blank

_LIST_ITEM = re.compile(r"^ ?(?:or|nor|and/or)\b")
_NEGATION_END = re.compile(
    r"\b(?:but|however|although|though|except|which|that|because|due to|secondary to|related to)\b|[:]"
)
_HEDGE_END = re.compile(r",(?! (?:or|and/or) )|\bbut\b")


def set_status(clause: str, mention: Mention) -> None:
    """Sets `status`, `resolved` and `hedge` of a mention from the negations and hedges of its clause."""
    text = _without_pseudo_negations(clause)
    head, inside = text[: mention.start], text[mention.start : mention.end]
    tail = _without_pseudo_negations(mention.after)
    negated = (
        bool(re.search(r"\b(?:not|no|without)\b", inside))
        or _negated_before(head)
        or bool(cues.NEGATION_AFTER.search(cues.UNCERTAIN_AFTER.sub(" ", tail)) or cues.RESOLVED.search(tail))
    )
    hedges = [cue for cue in cues.UNCERTAIN_BEFORE.finditer(head) if not _HEDGE_END.search(head[cue.end() :])]
    hedge = cues.UNCERTAIN_AFTER.search(mention.after) or (hedges[-1] if hedges else None)
    if cues.HYPOTHETICAL.search(head):
        mention.status = "unmentioned"
    elif hedge and not (negated and not _hedged_negation(clause)):
        mention.status, mention.hedge = "uncertain", hedge.group()
    elif negated:
        mention.status = "absent"
        mention.resolved = bool(cues.RESOLVED.search(tail) or cues.RESOLVED.search(mention.before))


def _without_pseudo_negations(text: str) -> str:
    return blank(blank(text, cues.PSEUDO_NEGATION), cues.PARTIAL)


def _negated_before(head: str) -> bool:
    """Whether a negation among the words before a mention reaches it."""
    for cue in cues.NEGATION_BEFORE.finditer(head):
        between = head[cue.end() :]
        if _reaches(between) and not _belongs_to_earlier(cue, between):
            return True
    return False


def _reaches(between: str) -> bool:
    """Whether a negation reaches over the words between it and the mention."""
    if _NEGATION_END.search(between):
        return False
    pieces = re.split(r",| and ", between)
    if len(pieces) == 1 or _LIST_ITEM.match(pieces[-1]):
        return True
    return not any(VERB.search(piece) or re.match(r" ?(?:an?|the|there) ", piece) for piece in pieces[1:])


def _belongs_to_earlier(cue: re.Match[str], between: str) -> bool:
    """Whether a negation is the predicate of an earlier finding.

    For example "the effusion has resolved and atelectasis is ..." or "pneumothorax is not seen, effusion ...".
    """
    word = cue.group()
    if word in ("resolved", "absent", "removed", "cleared", "interval removed") or word.startswith("not"):
        return bool(re.search(r",| and ", between) or VERB.search(between))
    return False


def _hedged_negation(clause: str) -> bool:
    return bool(cues.UNCERTAIN_AFTER.search(clause) or re.search(r"(?:exclude|rule out)", clause))
