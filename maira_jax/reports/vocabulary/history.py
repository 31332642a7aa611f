"""Phrases that compare a study with an earlier one, by what they say of it."""

import re

from maira_jax.reports.vocabulary import qualifiers
from maira_jax.reports.vocabulary.pattern import any_of

_EARLIER = r"(?:prior|previous|earlier|last|preceding|most recent|recent|old|comparison)"
_IMAGE = r"(?:stud(?:y|ies)|exam(?:ination)?s?|radiographs?|films?|images?|imaging|x-?rays?|cts?|scans?|reports?|ones?)"
_DATE = r"(?:yesterday|(?:one|two|three|\d+) (?:day|week|month|year)s? (?:ago|earlier|prior)|earlier the same day)"


def _change(name: str) -> re.Pattern[str]:
    """The phrases of a change, of all rows that have it."""
    return re.compile("|".join(words.pattern for change, words in qualifiers.CHANGES if change == name))


#: Classes of phrases; of two that overlap the longer one counts, and of equal ones the first class.
PHRASES: dict[str, re.Pattern[str]] = {
    "resolved": any_of(
        [
            r"(?:interval )?(?:resolution|removal|clearing) of",
            r"(?:(?:has|have|had) (?:\w+ )?|been |is |are )?(?:completely |fully )?resolved",
            r"(?:has|have) been (?:\w+ )?(?:removed|withdrawn)",
            r"no longer (?:seen|present|visible|visuali[sz]ed|identified|evident)?",
        ]
    ),
    "comparison": any_of(
        [
            rf"(?:(?:when |as )?compared (?:with|to)|in comparison (?:with|to)|since|from|on|to|than|with) "
            rf"(?:the |a |any |that )?{_EARLIER}(?: (?:chest |frontal |portable )*{_IMAGE})?",
            rf"(?:since|from|compared (?:with|to)) (?:{_IMAGE} from |the {_IMAGE} of )?{_DATE}",
            rf"{_EARLIER} (?:chest |frontal |portable )*{_IMAGE}",
            r"(?:as )?(?:previously|before)(?: (?:seen|noted|described))?",
            r"in the interval|interval",
            r"compared (?:with|to)|in comparison",
            r"priors?|previous",
        ]
    ),
    "stability": _change("unchanged"),
    "worsening": _change("worse"),
    "improvement": _change("improved"),
    "new": _change("new"),
}

#: Phrases with the same words that are not about an earlier image, or say that there is none.
NOT_HISTORY: re.Pattern[str] = any_of(
    [
        rf"no (?:\w+ )?{_EARLIER} (?:\w+ )?(?:{_IMAGE}|available|comparison)",
        r"no (?:priors?|comparisons?|previous)(?: (?:available|for comparison))*",
        r"(?:without|none for|no) (?:\w+ )?comparison|comparison:? (?:none|n/a|not available)",
        r"(?:decreased|reduced|diminished|increased|smaller|larger|greater|better) (?:\w+ )?"
        r"(?:lung volumes?|inspiration|aeration|lucency|density|densities|attenuation|bone|kyphosis|"
        r"(?:interstitial |lung |bronchovascular )?markings|ap diameter|transverse)",
        r"(?:prior|previous|old|remote|recent) (?:\w+ )?(?:sternotomy|surgery|cabg|bypass|fractures?|granulomatous|"
        r"infection|disease|trauma|resection|lobectomy|mastectomy|thoracotomy|tuberculosis|procedure)",
        r"(?:chronic|known) (?:obstructive|lung|renal|kidney|heart|interstitial|history|cancer|malignancy|bronchitis)",
        r"(?:chronic|stable)(?= (?:rib|fracture|deformit))",
        r"better (?:seen|visuali[sz]ed|evaluated|assessed|appreciated) (?:on|by|with) ct",
    ]
)
