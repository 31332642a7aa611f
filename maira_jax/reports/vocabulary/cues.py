"""Phrases that deny or hedge a finding, or are about the whole report."""

import re

from maira_jax.reports.vocabulary.pattern import any_of

#: Phrases that look like a negation of a finding but are about a change.
PSEUDO_NEGATION: re.Pattern[str] = any_of(
    [
        (
            r"no (?:\w+ ){0,3}?(?:change|changes|increase|decrease|improvement|progression|"
            r"worsening|difference)"
        ),
        (
            r"without (?:\w+ ){0,3}?(?:change|changes|increase|decrease|improvement|"
            r"progression|worsening)"
        ),
        (
            r"not (?:\w+ ){0,2}?(?:changed|increased|decreased|improved|progressed|worsened|"
            r"larger|smaller)"
        ),
        r"not (?:only|certain|necessarily)",
        (
            r"no (?:further|prior|previous|comparison|priors) (?=an? |the |stud|exam|"
            r"film|radiograph|image|for|available)"
        ),
        r"no (?:prior|previous|comparison|priors)(?: \w+)?",
        r"no (?:acute )?distress",
        # What an earlier image did not show.
        (
            r"not (?:\w+ )?(?:seen|present|visible|evident|identified|apparent|noted) (?:previously|before|"
            r"(?:on|in) (?:the |any )?(?:\w+ )?(?:prior|previous|earlier|last|preceding|comparison))"
        ),
    ]
)
NEGATION_BEFORE: re.Pattern[str] = any_of(
    [
        r"no",
        r"without",
        r"free of",
        r"clear of",
        r"negative for",
        r"absence of",
        r"absent",
        r"devoid of",
        r"lack of",
        r"(?:denies|exclude[sd]?|excluding)(?! by)",
        r"nothing",
        r"(?:cannot|can not|could not) (?:\w+ )?(?:see|identify|appreciate|find|visuali[sz]e|detect)",
        r"fail(?:s|ed)? to (?:\w+ )?(?:show|demonstrate|reveal|identify)",
        r"unlikely(?: to (?:represent|reflect|be|indicate))?",
        r"not that of",
        r"(?:do|does|did) not (?:\w+ )?(?:show|demonstrate|reveal|see|have|identify)",
        r"not (?:show|demonstrate|reveal|see|contain)\w*",
        r"not (?:have|any|an?)",
        r"never",
        r"neither",
        r"nor",
        r"resolved",
        r"(?:interval |complete |near[ -]complete )*(?:resolution|clearing|removal|clearance) of",
        r"(?:interval )?(?:removed|cleared)",
        r"is not (?=enlarged|widened)",
        r"not",
        r"rather than",
    ]
)
RESOLVED: re.Pattern[str] = any_of(
    [
        r"(?:has|have|had|is|are|now|been|fully|completely|entirely|since)? ?(?:resolved|cleared)",
        r"(?:resolution|clearing|clearance) of",
        r"(?:interval )?removal of",
        r"(?:has|have) been (?:\w+ )?(?:removed|withdrawn|taken out|explanted|extubated|evacuated)",
        r"(?:interval )?(?:removed|extubated)",
        (
            r"no longer (?:\w+ )?(?:seen|visible|visuali[sz]ed|present|evident|identified|"
            r"apparent|demonstrated|in place|appreciated|noted)"
        ),
        r"no longer",
        r"(?:has|have) (?:\w+ )?(?:disappeared|gone)",
        r"is gone|are gone",
    ]
)
NEGATION_AFTER: re.Pattern[str] = any_of(
    [
        (
            r"not (?:\w+ )?(?:seen|identified|visuali[sz]ed|present|evident|demonstrated|"
            r"detected|apparent|appreciated|noted|observed|visible|shown|found|enlarged|"
            r"widened|in place|suggested|suspected)"
        ),
        r"(?:is|are|was|were) absent",
        r"absent",
        r"(?:is|are|was|were|(?:has|have) been) (?:ruled out|excluded)",
        (
            r"(?:cannot|can not|could not) be (?:\w+ )?(?:seen|identified|visuali[sz]ed|detected|demonstrated|"
            r"appreciated|found)"
        ),
        r"(?:has|have) not (?:\w+ )?(?:developed|occurred|recurred|re-?accumulated|persisted|formed)",
        r"none|(?<=: )(?:no$|negative)",
        r"(?:is|are|appears?|seems?) (?:\w+ )?unlikely",
        r"unlikely",
        r"(?:is|are) negative",
        r"(?:is|are) (?:not|no)",
    ]
)
#: Phrases of partial resolution, which is an improvement and not an absence.
PARTIAL: re.Pattern[str] = any_of(
    [
        (
            r"(?:partial(?:ly)?|incomplete(?:ly)?|nearly|almost|near[ -]complete(?:ly)?|"
            r"not(?: fully| completely| entirely| yet)?|some) (?:interval )?(?:resolved|resolution|"
            r"resolving|cleared|clearing|clearance)"
        ),
        r"(?:is|are) resolving|resolving",
    ]
)
UNCERTAIN_BEFORE: re.Pattern[str] = any_of(
    [
        r"possibl[ey]",
        r"possibility of",
        r"probabl[ey]",
        r"(?:most |very )?likely",
        r"(?:may|might|could|can) (?:\w+ )?(?:represent|reflect|be|indicate|relate|suggest)\w*",
        r"perhaps|maybe",
        r"suspicious for|suspicion (?:for|of)|suspected|suspect",
        r"concern(?:ing)? (?:for|of)",
        r"question(?:able)?(?: of)?",
        r"equivocal",
        r"suggest(?:s|ed|ive|ing|ion)?(?: of)?",
        r"(?:cannot|can not|can't|could not|difficult to|not) (?:\w+ )?(?:exclude|rule out)",
        r"(?:versus|vs\.?)",
        r"differential(?: diagnosis)?(?: \w+)? (?:includes?|is|of)?",
        r"worrisome for",
        r"presumably|presumed|presumptive",
        r"potential(?:ly)?",
        r"borderline for",
    ]
)
UNCERTAIN_AFTER: re.Pattern[str] = any_of(
    [
        r"(?:cannot|can not|can't|could not|not) (?:be )?(?:\w+ )?(?:excluded|ruled out)",
        r"(?:difficult|hard) to (?:\w+ )?exclude",
        r"not (?:\w+ )?excluded",
        (
            r"(?:is|are|remains?) (?:\w+ )?(?:possible|suspected|questioned|"
            r"in the differential|a possibility|a consideration|a concern|likely|probable|"
            r"questionable)"
        ),
        r"(?:versus|vs\.?)",
        r"should be considered|(?:is|are) considered",
        r"suspected|questioned",
    ]
)
#: Reasons for the study, and what it could show, which are not results of it.
HYPOTHETICAL: re.Pattern[str] = any_of(
    [
        r"(?:to )?evaluat(?:e|ion|ed|ing) (?:for|of)",
        r"(?:assess(?:ment|ing)?|eval|check(?:ing)?|looking) for",
        r"(?:to )?rule out|r/o",
        r"^(?:clinical )?(?:history|indications?|information)",
        r"reason for (?:the )?(?:exam\w*|study|test|request)",
        r"sensitivity (?:to detect|for|of)|insensitive (?:to|for)|detection of",
        r"history of",
        r"(?:correlate|correlation) (?:\w+ )?(?:for|with)",
    ]
)


COMPARISON: re.Pattern[str] = any_of(
    [
        r"compar(?:ed|ison|ing|able)",
        r"(?:prior|previous|earlier|last|preceding)(?:ly)?",
        r"interval",
        r"since",
        r"unchanged|stable|persist\w*",
        r"again|re-?demonstrated",
        r"worse(?:n|ned|ning)?|improv(?:ed|ing|ement)",
        r"new(?:ly)?",
        (
            r"(?:in|de)creas(?:ed|ing) (?:in|since|compared|from)|(?:has|have) (?:\w+ )?(?:in|"
            r"de)creased"
        ),
        r"no longer|resolved|resolution of|(?:has|have) been removed|removal of",
        r"(?:no|without) (?:\w+ ){0,2}?change",
        r"larger|smaller",
    ]
)
NO_COMPARISON: re.Pattern[str] = any_of(
    [
        r"no (?:\w+ )?(?:prior|previous|comparison|earlier|priors)(?: \w+){0,3}",
        r"(?:without|none for) comparison",
        r"comparison:? none",
    ]
)
COMMUNICATION: re.Pattern[str] = any_of(
    [
        (
            r"(?:discussed|communicated|notified|telephoned|phoned|conveyed|paged|relayed|"
            r"informed|alerted)"
        ),
        r"(?:was|were|results?|findings?) (?:\w+ )?called",
        (
            r"called (?:to|by|in)|by (?:tele)?phone|via (?:tele)?phone|telephone (?:call|"
            r"discussion|conversation)"
        ),
        r"reported to (?:the |dr)",
        r"(?:critical|urgent) (?:result|finding)s? (?:notification|communication|reported)",
        r"made aware|verbal(?:ly)? (?:report|communicat)\w*",
    ]
)
