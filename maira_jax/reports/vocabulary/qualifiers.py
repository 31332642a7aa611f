"""Phrases for the side, size, zone, change and tip position of a finding."""

import re

from maira_jax.reports.vocabulary.pattern import any_of

#: Pseudo-negations ("no evidence of change") come first: the first row that matches counts.
CHANGES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "unchanged",
        any_of(
            [
                r"no (?:\w+ ){0,3}?(?:change|changes|difference)",
                r"without (?:\w+ ){0,3}?(?:change|changes)",
                r"not (?:\w+ ){0,2}?changed",
                (
                    r"(?:no|without) (?:\w+ ){0,2}?(?:increase|decrease|improvement|"
                    r"progression|worsening)"
                ),
                (
                    r"not (?:\w+ ){0,2}?(?:increased|decreased|improved|progressed|worsened|"
                    r"larger|smaller)"
                ),
            ]
        ),
    ),
    (
        "worse",
        any_of(
            [
                r"worse(?:n|ned|ning)?",
                r"increas(?:ed|ing|es?)(?! (?:in )?(?:lucency|size of the heart))",
                r"(?:larger|bigger|greater)(?! (?:on|in|at) | than (?:the )?(?:left|right))",
                r"(?:has|have) (?:\w+ )?(?:enlarged|grown)",
                r"enlarging|growing",
                r"progress(?:ed|ion|ing|ive)",
                (
                    r"more (?:extensive|prominent|conspicuous|pronounced|marked|severe|"
                    r"confluent|dense)"
                ),
                r"deteriorat(?:ed|ion|ing)",
                r"(?:interval )?expansion",
                r"aggravat(?:ed|ion)",
            ]
        ),
    ),
    (
        "improved",
        any_of(
            [
                r"improv(?:ed|ing|es?|ement)",
                r"decreas(?:ed|ing|es?)",
                r"smaller(?! (?:on|in) )",
                (
                    r"less (?:extensive|prominent|conspicuous|pronounced|marked|severe|"
                    r"confluent|dense)"
                ),
                r"reduc(?:ed|tion|ing)",
                r"diminish(?:ed|ing)",
                r"resolving",
                r"regress(?:ed|ion|ing)",
                r"better",
                r"lessened",
                (
                    r"(?:partial(?:ly)?|incomplete(?:ly)?|nearly|almost|"
                    r"near[ -]complete(?:ly)?|some) (?:interval )?(?:resolved|resolution|"
                    r"cleared|clearing|clearance)"
                ),
                r"shrunk|shrinking",
            ]
        ),
    ),
    (
        "unchanged",
        any_of(
            [
                r"unchanged|stable|stably|unaltered|static",
                r"persist(?:s|ed|ent|ing|ence)?(?:ly)?",
                r"similar",
                (
                    r"again (?:\w+ )?(?:seen|noted|identified|demonstrated|present|"
                    r"visuali[sz]ed|evident|shown)"
                ),
                r"(?:once )?again",
                r"re-?demonstrated|re-?demonstration",
                r"remains?|remained",
                r"chronic|long-?standing|known",
                r"as before|as previously|the same",
                r"constant",
            ]
        ),
    ),
    (
        "new",
        any_of(
            [
                r"new(?:ly)?",
                r"(?:has|have) (?:\w+ )?(?:developed|appeared|arisen)",
                r"(?:interval )?development of",
                r"interval (?:appearance|placement|insertion)(?: of)?",
                r"now (?:seen|present|evident|visible)",
                (
                    r"not (?:previously )?(?:seen|present|visible|evident) (?:previously|"
                    r"before|on (?:the )?(?:prior|previous))"
                ),
                r"(?:was|were) not (?:previously )?(?:seen|present)",
                r"recent(?:ly)? (?:placed|inserted)",
            ]
        ),
    ),
)
#: Size words that qualify a change, not the finding.
SIZE_OF_CHANGE: re.Pattern[str] = re.compile(
    r"\b(?:slight|mild|small|marked|moderate|minimal|substantial|significant|minor|subtle|"
    r"trace)(?:ly)?"
    r"(?= (?:interval |overall |further |partial |partially )*"
    r"(?:increas|decreas|improv|wors|progress|reduc|enlarging|larger|smaller|diminish|"
    r"better|more|less"
    r"|change|resol|clear|deterior|regress))"
)
SIZES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "small",
        any_of(
            [
                (
                    r"small|tiny|trace|mild|mildly|minimal|minimally|slight|slightly|minor|"
                    r"subtle|faint|little|minute|miniscule|borderline|low-grade"
                )
            ]
        ),
    ),
    ("moderate", any_of([r"moderate|moderately|medium|moderate-sized|mid-sized|intermediate"])),
    (
        "large",
        any_of(
            [
                (
                    r"large|marked|markedly|severe|severely|extensive|massive|massively|"
                    r"substantial|substantially|gross|grossly|sizeable|sizable|considerable|"
                    r"considerably|big|huge"
                )
            ]
        ),
    ),
)
SIDES: re.Pattern[str] = re.compile(
    r"\b(?P<both>bilateral(?:ly)?|both|bi-?basilar|bi-?basal|bi-?apical|bi-?lateral|"
    r"left and right|right and left|right and the left|left and the right|either)\b"
    r"|\b(?P<left>left(?:-?sided|ward)?|l|lingula)\b|\b(?P<right>right(?:-?sided)?|r)\b"
)
#: Sides that are part of an anatomical name or of a comparison, and are not the finding's side.
SIDE_VETO: re.Pattern[str] = re.compile(
    r"\b(?:left|right)(?= (?:main|mainstem|main-stem|atri|ventric|heart|brachiocephalic|"
    r"innominate|cardiac))"
    r"|\b(?:left|right)(?= (?:greater|larger|more|worse|less|smaller) than)"
    r"|(?<=than )(?:the )?(?:left|right)\b|(?<=than on the )(?:left|right)\b"
)
ZONES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "upper",
        any_of(
            [
                r"upper|apex|apices|apical|bi-?apical|supra-?hilar|apically",
            ]
        ),
    ),
    ("mid", any_of([r"mid|middle|peri-?hilar|lingular?|hilar|mid-?zone|midlung"])),
    (
        "lower",
        any_of(
            [
                (
                    r"lower|bases?|basal|basilar|bi-?basilar|bi-?basal|retro-?cardiac|"
                    r"infra-?hilar|lung base|basally|bases"
                )
            ]
        ),
    ),
)
#: Positions of a tip ("in the upper oesophagus", "mid svc"), which are not zones of the lung.
ZONE_VETO: re.Pattern[str] = re.compile(
    r"\b(?:upper|mid|middle|lower|proximal|distal)[ -]?(?=(?:to (?:upper|mid|"
    r"lower) )?(?:svc|superior vena|trachea|thoracic|oesophag|esophag|abdom|third|lumbar|"
    r"cervical|spine|portion of the svc|half|limits?))"
    r"|\bupper(?= limits)|(?<=base of )neck"
)
#: Malposition comes first: "tip too high, above the satisfactory position".
TIPS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "malpositioned",
        any_of(
            [
                r"mal-?position(?:ed)?|mal-?placed|misplaced|mis-?positioned",
                r"too (?:\w+ )?(?:high|low|deep|far|proximal|distal|shallow)",
                (
                    r"(?:high|low|deep)(?:-lying| lying)?(?: in position|"
                    r" position)?(?=,? (?:and |in position|within|at the (?:thoracic inlet|"
                    r"clavic)))"
                ),
                (
                    r"main-?(?:stem)? ?bronch\w+|mainstem|main bronch\w+|bronchus intermedius|"
                    r"bronchial intubation"
                ),
                (
                    r"(?:in|within|at|into) the (?:\w+ ){0,2}?o?esophag\w+|"
                    r"gastro-?o?esophageal|o?esophageal"
                ),
                r"above the (?:\w+ )?(?:diaphragm|ge junction)",
                r"coil(?:s|ed|ing)|kink(?:ed|ing)?|loop(?:ed|s)|curled",
                (
                    r"(?:should|need(?:s|ed)?|must|could) (?:to )?(?:be )?(?:\w+ )?(?:advanc|"
                    r"retract|withdraw|reposition|pull|adjust|replac)\w*"
                ),
                (
                    r"(?:recommend|suggest|advis|consider|requires?|needs?)(?:ed|s|e|"
                    r"ing)? (?:\w+ ){0,2}?(?:advanc|retract|withdraw|reposition|pull|adjust|"
                    r"replac)\w*"
                ),
                (
                    r"(?:repositioning|advancement|withdrawal|"
                    r"retraction) (?:is )?(?:\w+ )?(?:recommended|suggested|advised|required|"
                    r"needed)"
                ),
                (
                    r"(?:in|within|into|towards?) the (?:\w+ ){0,2}?(?:azygos|contralateral|"
                    r"jugular|brachiocephalic|right ventricle|axillary|neck|airway|pharynx|"
                    r"bronchus)(?: vein)?"
                ),
                (
                    r"(?:sub-?optimal|inappropriate|unsatisfactory|incorrect|abnormal|"
                    r"not (?:in )?(?:an? )?(?:satisfactory|appropriate|standard|adequate|good|"
                    r"ideal|optimal))"
                ),
                r"(?:at|below) the (?:level of the )?carina",
            ]
        ),
    ),
    (
        "satisfactory",
        any_of(
            [
                (
                    r"satisfactor(?:y|ily)|appropriate(?:ly)?|standard|adequate(?:ly)?|"
                    r"expected|good position|well[ -](?:positioned|placed|sited|seated)|"
                    r"proper(?:ly)?|correct(?:ly)?|optimal(?:ly)?|acceptable|as expected|good|"
                    r"suitabl[ey]|usual"
                ),
                r"svc|superior vena cava|cavo-?atrial(?: junction)?",
                r"above the (?:level of the )?carina",
                r"mid-? ?trachea(?:l)?|mid-? ?thoracic trachea|at the level of the clavicles",
                (
                    r"(?:in|within|into|projects? over|overl(?:ies|ying)|reaches|"
                    r"terminat\w+ in) the (?:\w+ ){0,2}?(?:stomach|gastric \w+|fundus|"
                    r"duodenum)"
                ),
                r"below the (?:\w+ )?(?:diaphragm|hemidiaphragm|hemi-diaphragm)",
            ]
        ),
    ),
)

#: Words before a tube or a line that say where it ends.
MALPOSITION_BEFORE: re.Pattern[str] = any_of([r"(?:low|high|deep|malpositioned|misplaced)"])
