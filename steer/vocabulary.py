"""The words of chest X-ray reports: which phrases name a finding, negate, hedge or qualify it.

Everything here is data for `steer.labels`. All patterns run on lower-case text in which runs of
white space are one space. Gaps inside a pattern are bounded, so that text of any kind (a steered
model may repeat itself for ever) is read in linear time.

The fourteen observations are those of the CheXpert labeller (Irvin et al., arXiv 1901.07031,
table 1); cues follow NegEx (Chapman et al. 2001): before the mention, after it, and pseudo-cues
such as "no change" that look like a negation and are none.
"""

import re
from collections.abc import Sequence

CHEXPERT: tuple[str, ...] = (
    "no finding",
    "enlarged cardiomediastinum",
    "cardiomegaly",
    "lung opacity",
    "lung lesion",
    "oedema",
    "consolidation",
    "pneumonia",
    "atelectasis",
    "pneumothorax",
    "pleural effusion",
    "pleural other",
    "fracture",
    "support devices",
)
DEVICES: tuple[str, ...] = (
    "pacemaker",
    "endotracheal tube",
    "nasogastric tube",
    "central venous line",
)
TUBES: tuple[str, ...] = DEVICES[1:]
#: Said in a denial, these deny each device, or each tube and line.
ALL_DEVICES: re.Pattern[str] = re.compile(r"(?:support|medical) (?:devices?|apparatus)")
ALL_TUBES: re.Pattern[str] = re.compile(r"(?:support )?(?:lines?|tubes?)\b")
#: Findings whose side or zone is not kept: the middle has none, and oedema is on both sides
#: ("bilateral perihilar haze" is one finding).
MIDLINE: frozenset[str] = frozenset(
    {"no finding", "cardiomegaly", "enlarged cardiomediastinum", "endotracheal tube", "oedema"}
)


#: Findings that are told apart by zone: there can be one in each.
ZONAL: frozenset[str] = frozenset({"consolidation", "lung opacity", "atelectasis", "lung lesion"})


def _any(words: Sequence[str]) -> re.Pattern[str]:
    return re.compile(r"\b(?:" + "|".join(words) + r")\b")


# Up to five words in between, not crossing punctuation.
_GAP = r"(?:[ -][\w/%-]+){0,5}?[ -]"
_SHORT_GAP = r"(?:[ -][\w/%-]+){0,2}?[ -]"
_HEART = (
    r"(?:heart|cardiac (?:silhouette|shadow|size|contours?|and mediastinal (?:silhouettes?|contours?))"
    r"|cardio-?mediastinal (?:silhouettes?|contours?|structures)|cardio-?pericardial silhouette"
    r"|cardio-?thoracic ratio|cardiac)"
)
_MEDIASTINUM = r"(?:mediastin\w+|cardio-?mediastin\w+)"
_NORMAL = (
    r"(?:normal|unremarkable|within (?:the )?(?:limits of normal|normal limits|normal range)|"
    r"not (?:significantly |overtly )?enlarged|not widened)"
)

# name -> phrases that name it. Earlier rows win where phrases overlap at the same place.
_MENTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "pacemaker",
        (
            r"pace-?makers?(?: (?:leads?|wires?|generator|device))?",
            r"pacers?(?: (?:leads?|wires?))?",
            r"pacing (?:device|leads?|wires?|system)",
            r"(?:aicd|icd|defibrillators?)(?: leads?)?",
            r"cardiac (?:conduction |rhythm |assist )?devices?",
            r"(?:dual|single)[ -](?:lead|chamber) (?:device|generator)",
        ),
    ),
    (
        "endotracheal tube",
        (
            r"endo-?tracheal tubes?",
            r"et tubes?",
            r"ett",
            r"tracheal tubes?",
            r"breathing tubes?",
            r"intubated",
            r"intubation",
        ),
    ),
    (
        "nasogastric tube",
        (
            r"(?:naso|oro)-?(?:gastric|enteric)(?: (?:feeding|drainage))? tubes?",
            r"(?:ng|og|enteric|gastric|feeding|dobb?-?hoff)(?: feeding)? tubes?",
            r"ngt",
            r"ogt",
        ),
    ),
    (
        "central venous line",
        (
            r"central(?: venous)? (?:access )?(?:lines?|catheters?)",
            r"(?:internal )?(?:jugular|subclavian|ij)(?: central)?(?: venous)?(?: access)? (?:lines?|catheters?)",
            r"(?:picc|cvc)(?: lines?| catheters?)?",
            r"port-?a-?caths?",
            r"(?:medi-?port|chest port|port catheter)(?: catheter)?",
            r"(?:dialysis|hickman|swan[ -]ganz|pulmonary artery|venous|tunnel+ed) (?:lines?|catheters?)",
        ),
    ),
    (
        "support devices",
        (
            r"support devices?",
            r"(?:lines?|tubes?)(?:,? (?:and|or) |/)(?:tubes?|lines?|catheters?)",
            r"support (?:lines?|tubes?|apparatus)",
            r"(?:medical|implanted|monitoring) devices?",
            r"(?:chest|tracheostomy|drainage|thoracostomy) tubes?",
            r"(?:indwelling |chest |pigtail )?catheters?",
            r"chest drains?|pigtail drains?",
            r"(?:coronary (?:artery )?|vascular |ureteral |biliary )?stents?",
            r"prosthetic valves?|valve (?:prosthesis|replacement)|closure device|electronic device",
            r"monitor(?:ing)? (?:leads?|wires?)|tracheostomy(?= tip| cannula| in )",
            r"(?:vp|ventriculoperitoneal) shunt|shunt catheter|stimulator",
            # De-identified text: the word between "chest" and its tip is a port or a line.
            r"chest xxxx(?= (?:\w+ ){0,4}?(?:tip|svc|superior|cavoatrial))",
        ),
    ),
    (
        "cardiomegaly",
        (
            r"cardiomegaly",
            r"cardiac enlargement|enlargement of the (?:heart|cardiac silhouette)",
            r"(?:enlarged|enlarging|large|prominent|globular|big) (?:heart|cardiac (?:silhouette|shadow|size)|cardio-?pericardial silhouette)",
            r"(?:enlarged|enlarging|prominent) cardio-?mediastinal silhouettes?",
            _HEART
            + r"(?: size| shadow| silhouette)?"
            + _GAP
            + r"(?:enlarged|enlargement|enlarging|cardiomegaly|globular|increased in size|large|big|prominent|dilated|borderline(?: in size)?)",
        ),
    ),
    (
        "enlarged cardiomediastinum",
        (
            r"(?:widened|enlarged|widening of (?:the )?|wide|prominent|prominence of (?:the )?)(?: superior)? ?mediastin\w+(?: silhouette| contours?)?",
            r"mediastin(?:al|um)" + _SHORT_GAP + r"(?:widening|widened|enlarge\w*|prominen\w+|wide)",
            r"(?:prominence|widening|enlargement|fullness) of (?:the )?(?:\w+ )?mediastin\w+(?: contours?| silhouette)?",
        ),
    ),
    (
        "pneumothorax",
        (r"(?:hydro|haemo|hemo)?-?pneumothora(?:x|ces|xes)", r"ptx"),
    ),
    (
        "pleural effusion",
        (
            r"(?:hydro|haemo|hemo)thora(?:x|ces)",
            r"(?:(?:sub)?pleural|para-?pneumonic|sub-?pulmonic) (?:effusions?|fluid)",
            r"(?:effusions?)",
            r"pleural (?:space )?(?:collections?)",
            r"fluid in the (?:pleural space|fissures?|pleural)",
            r"blunting of (?:the |both )?(?:\w+ ){0,3}?(?:costo-?phrenic|cp|xxxx)(?: \w+)?(?: (?:angles?|sul(?:cus|ci)))",
            r"(?:costo-?phrenic|cp)(?: (?:angles?|sul(?:cus|ci)|recess\w*))"
            + _SHORT_GAP
            + r"(?:blunted|blunting)",
            r"blunted (?:\w+ ){0,2}?(?:costo-?phrenic|cp)(?: (?:angles?|sul(?:cus|ci)))",
        ),
    ),
    (
        "pleural other",
        (
            r"pleural[ -](?:and )?(?:\w+ ){0,1}?(?:thickening|plaques?|scarring|calcifications?|fibrosis)",
            r"(?:thickening|calcification) of the (?:\w+ )?pleura",
            r"pleural[ -](?:parenchymal|based) scarring",
            r"fibrothorax",
            r"pleuro-?parenchymal scarring",
        ),
    ),
    (
        "oedema",
        (
            r"(?:pulmonary |interstitial |alveolar |lung |airspace )*(?:o?edema)",
            r"(?:pulmonary |vascular |pulmonary vascular |pulmonary venous |venous |central vascular )congestion",
            r"(?:vascular|venous|vasculature|interstitial) engorgement",
            r"(?:prominent|engorged|indistinct|congested) (?:\w+ ){0,2}?(?:vasculature|vascularity|vessels)",
            r"(?:prominence|indistinctness|engorgement) of (?:the )?(?:\w+ ){0,2}?vascul(?:ature|arity|ar)",
            r"(?:vascular|venous) (?:\w+ ){0,2}?(?:prominence|indistinctness|redistribution|cephali[sz]ation)",
            r"vascul(?:ature|arity)(?: (?:is|are|appears|\w+ly)){1,3} (?:prominent|engorged|indistinct|congested|increased)",
            r"cephali[sz]ation|(?:congestive )?heart failure|chf",
            r"(?:fluid|volume) overload",
            r"kerley b? ?lines",
        ),
    ),
    (
        "lung lesion",
        (
            r"(?:pulmonary |lung |calcified |solitary |non-?calcified |spiculated |noncalcified )*nodul(?:es?|ar (?:density|densities|opacity|opacities|lesions?|mass\w*))",
            r"(?:reticulo|fibro|micro)-?nodular(?: (?!opacit|densit)\w+)?",
            r"nodular (?:\w+ ){0,3}?(?:opacit|densit|infiltrat)\w+",
            r"mass-?like (?:\w+ ){0,2}?(?:opacit|densit|consolidat)\w+|masslike",
            r"(?:pulmonary |lung |hilar |suprahilar |perihilar |mediastinal )?mass(?:es)?",
            r"(?:cavitary|cavitating|lung|pulmonary|focal|suspicious) lesions?",
            r"carcinoma|neoplasms?|tumou?rs?|malignancy|metasta\w+",
        ),
    ),
    (
        "pneumonia",
        (r"(?:broncho)?pneumoni(?:a|as|tis|c process)", r"(?:an? )?infectious process", r"infection"),
    ),
    (
        "consolidation",
        (r"consolidat(?:ions?|ive (?:change|opacit|process|disease)\w*|ing|ed)",),
    ),
    (
        "atelectasis",
        (
            r"(?:micro)?-?atelecta(?:sis|ses|tic(?: \w+)?)",
            r"(?:lobar|lung|lobe) collapse",
            r"collapse of the (?:\w+ ){0,3}(?:lung|lobe)",
        ),
    ),
    (
        "lung opacity",
        (
            r"(?:air-?space|air space|alveolar|parenchymal|interstitial|lung) (?:disease|process|infiltrat\w+|opaci\w+|densit\w+|abnormalit\w+)",
            r"opacit(?:y|ies)|opacifications?|opacified",
            r"infiltrat(?:es?|ions?)",
            r"(?:air-?space|lung|pulmonary|basilar|patchy|streaky|hazy|focal|ill-defined) densit(?:y|ies)",
            r"(?:reticular|interstitial|bronchovascular) (?:markings?|changes?|pattern)" + r"(?= (?:are |is )?(?:prominent|increased|coarse))",
        ),
    ),
    (
        "fracture",
        (r"fractur(?:es?|ed)",),
    ),
)

# Statements of normality that deny findings without naming them.
_NORMAL_STATEMENTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("cardiomegaly",), _HEART + r"(?: size| shadow| silhouette)?(?:[ ,-]+[\w/-]+){0,7}?[ ,-]+" + _NORMAL),
    (
        ("cardiomegaly",),
        r"(?:normal|unremarkable)(?: in)?(?: (?:size|sized|appearance))?(?: (?:of )?(?:the )?)?\s?(?:\w+ (?:and )?){0,1}?"
        + _HEART
        + r"(?: size| silhouette| contours?)?",
    ),
    (
        ("enlarged cardiomediastinum",),
        _MEDIASTINUM + r"(?: silhouettes?| contours?| structures| width)?(?:[ ,-]+[\w/-]+){0,7}?[ ,-]+" + _NORMAL,
    ),
    (
        ("enlarged cardiomediastinum",),
        r"(?:normal|unremarkable)(?: appearance of)?(?: the)?(?: \w+(?:,| and)?){0,2}? " + _MEDIASTINUM,
    ),
    (
        ("consolidation", "lung opacity", "oedema", "atelectasis"),
        r"(?:both |the )?(?:lungs?(?: fields?| volumes?)?|lungs and pleural spaces)"
        r"(?: (?:are|is|appear|appears|remain|remains|both|otherwise|well[ -]\w+ and|grossly|fully expanded and|expanded and|bilaterally|hyperexpanded but))*"
        r" (?:clear|normal|unremarkable)(?! of)",
    ),
    (("consolidation", "lung opacity", "oedema", "atelectasis"), r"clear lungs?(?: fields?)?"),
    (
        ("pleural effusion",),
        r"(?:costo-?phrenic (?:angles?|sul(?:cus|ci))|pleural (?:spaces?|angles?))(?: (?:are|is|appear|remain|both|all))* (?:sharp|clear|preserved|unremarkable|normal|dry)",
    ),
    (
        ("fracture",),
        r"(?:bones?|bony (?:structures|thorax)|osseous structures|(?:visuali[sz]ed )?skelet(?:on|al structures))"
        r"(?:[ ,-]+[\w/-]+){0,4}? (?:intact|unremarkable|normal|within normal limits)",
    ),
    (
        ("fracture",),
        r"no (?:acute |significant |definite |suspicious )*(?:osseous|bony|bone|skeletal)(?: \w+){0,1} ?(?:abnormalit\w+|findings?|injur\w+|lesions?)",
    ),
)

NO_FINDING: re.Pattern[str] = _any(
    [
        r"no (?:\w+ ){0,4}?(?:acute|active|significant)(?: \w+){0,3}? ?(?:abnormalit\w+|process\w*|disease|findings?|pathology|change|changes)",
        r"(?:normal|unremarkable|negative) (?:chest|examination|study|radiograph|x-?ray)(?: \w+)?",
        r"no (?:acute )?abnormalit\w+",
        r"without (?:\w+ ){0,3}?(?:acute|active) (?:\w+ ){0,2}?(?:abnormalit\w+|process\w*|disease|findings?)",
    ]
)

#: A phrase matched here names nothing, although it contains a word of the lists above.
VETO: re.Pattern[str] = _any(
    [
        r"pericardial effusions?",
        r"(?:knee|joint|bowel|stomach) effusions?",
        r"(?:soft tissue|subcutaneous|leg|ankle|pedal|peripheral|facial) o?edema",
        r"(?:granulomatous|degenerative|coronary|arterial|obstructive|emphysematous|bony|osseous) (?:disease|process|changes?)",
        r"heart,? (?:and|or) (?:lungs?)",
        r"prominent (?:central )?pulmonary (?:arter\w+|vascul\w+)",
        r"(?:granulomatous|tubercul\w+|fungal|prior|previous|old|remote|histoplasm\w+) (?:\w+ )?(?:infection|disease|pneumonia)",
        r"body mass|breast mass|mass effect|soft tissue mass",
        r"o?edema(?:tous)? (?:of|in) the (?:leg|arm|ankle)s?",
        r"(?:left|right) (?:axillary|breast) (?:mass|nodule)s?|nipple shadows?",
        r"lung (?:base|apex|field)s?",
    ]
)

MENTIONS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, _any(phrases)) for name, phrases in _MENTIONS
)
NORMAL_STATEMENTS: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = tuple(
    (names, re.compile(r"\b" + pattern + r"\b")) for names, pattern in _NORMAL_STATEMENTS
)

# ------------------------------------------------------------------------------------- status cues
#: Looks like a negation and says nothing about presence: it speaks of a change.
PSEUDO_NEGATION: re.Pattern[str] = _any(
    [
        r"no (?:\w+ ){0,3}?(?:change|changes|increase|decrease|improvement|progression|worsening|difference)",
        r"without (?:\w+ ){0,3}?(?:change|changes|increase|decrease|improvement|progression|worsening)",
        r"not (?:\w+ ){0,2}?(?:changed|increased|decreased|improved|progressed|worsened|larger|smaller)",
        r"not (?:only|certain|necessarily)",
        r"no (?:longer|further|prior|previous|comparison|priors) (?=an? |the |stud|exam|film|radiograph|image|for|available)",
        r"no (?:prior|previous|comparison|priors)(?: \w+)?",
        r"no (?:acute )?distress",
    ]
)
NEGATION_BEFORE: re.Pattern[str] = _any(
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
        r"(?:denies|exclude[sd]?|excluding) (?!by)",
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
RESOLVED: re.Pattern[str] = _any(
    [
        r"(?:has|have|had|is|are|now|been|fully|completely|entirely|since)? ?(?:resolved|cleared)",
        r"(?:resolution|clearing|clearance) of",
        r"(?:interval )?removal of",
        r"(?:has|have) been (?:\w+ )?(?:removed|withdrawn|taken out|explanted|extubated)",
        r"(?:interval )?(?:removed|extubated)",
        r"no longer (?:\w+ )?(?:seen|visible|visuali[sz]ed|present|evident|identified|apparent|demonstrated|in place|appreciated|noted)",
        r"no longer",
        r"(?:has|have) (?:\w+ )?(?:disappeared|gone)",
        r"is gone|are gone",
    ]
)
NEGATION_AFTER: re.Pattern[str] = _any(
    [
        r"not (?:\w+ )?(?:seen|identified|visuali[sz]ed|present|evident|demonstrated|detected|apparent|appreciated|noted|observed|visible|shown|found|enlarged|widened|in place|suggested|suspected)",
        r"(?:is|are|was|were) absent",
        r"absent",
        r"(?:is|are) (?:ruled out|excluded)",
        r"(?:is|are|appears?|seems?) (?:\w+ )?unlikely",
        r"unlikely",
        r"(?:is|are) negative",
        r"(?:is|are) (?:not|no)",
    ]
)
#: "partially resolved" and the like are an improvement, not an absence.
PARTIAL: re.Pattern[str] = _any(
    [
        r"(?:partial(?:ly)?|incomplete(?:ly)?|nearly|almost|near[ -]complete(?:ly)?|not (?:fully |completely |yet )?|some) (?:interval )?(?:resolved|resolution|resolving|cleared|clearing|clearance)",
        r"(?:is|are) resolving|resolving",
    ]
)
UNCERTAIN_BEFORE: re.Pattern[str] = _any(
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
UNCERTAIN_AFTER: re.Pattern[str] = _any(
    [
        r"(?:cannot|can not|can't|could not|not) (?:be )?(?:\w+ )?(?:excluded|ruled out)",
        r"(?:difficult|hard) to (?:\w+ )?exclude",
        r"not (?:\w+ )?excluded",
        r"(?:is|are|remains?) (?:\w+ )?(?:possible|suspected|questioned|in the differential|a possibility|a consideration|a concern|likely|probable|questionable)",
        r"(?:versus|vs\.?)",
        r"should be considered|(?:is|are) considered",
        r"suspected|questioned",
    ]
)
#: Reasons for the examination, not results of it.
HYPOTHETICAL: re.Pattern[str] = _any(
    [
        r"(?:to )?evaluat(?:e|ion|ed|ing) (?:for|of)",
        r"assess(?:ment|ing)? for",
        r"(?:to )?rule out",
        r"history of",
        r"(?:correlate|correlation) (?:\w+ )?(?:for|with)",
    ]
)

# ---------------------------------------------------------------------------------------- qualifiers
#: "no evidence of change" and friends first: pseudo-negations that state a change class.
CHANGES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "unchanged",
        _any(
            [
                r"no (?:\w+ ){0,3}?(?:change|changes|difference)",
                r"without (?:\w+ ){0,3}?(?:change|changes)",
                r"not (?:\w+ ){0,2}?changed",
                r"(?:no|without) (?:\w+ ){0,2}?(?:increase|decrease|improvement|progression|worsening)",
                r"not (?:\w+ ){0,2}?(?:increased|decreased|improved|progressed|worsened|larger|smaller)",
            ]
        ),
    ),
    (
        "worse",
        _any(
            [
                r"worse(?:n|ned|ning)?",
                r"increas(?:ed|ing|es?)(?! (?:in )?(?:lucency|size of the heart))",
                r"(?:larger|bigger|greater)(?! (?:on|in|at) | than (?:the )?(?:left|right))",
                r"(?:has|have) (?:\w+ )?(?:enlarged|grown)",
                r"enlarging|growing",
                r"progress(?:ed|ion|ing|ive)",
                r"more (?:extensive|prominent|conspicuous|pronounced|marked|severe|confluent|dense)",
                r"deteriorat(?:ed|ion|ing)",
                r"(?:interval )?expansion",
                r"aggravat(?:ed|ion)",
            ]
        ),
    ),
    (
        "improved",
        _any(
            [
                r"improv(?:ed|ing|es?|ement)",
                r"decreas(?:ed|ing|es?)",
                r"smaller(?! (?:on|in) )",
                r"less (?:extensive|prominent|conspicuous|pronounced|marked|severe|confluent|dense)",
                r"reduc(?:ed|tion|ing)",
                r"diminish(?:ed|ing)",
                r"resolving",
                r"regress(?:ed|ion|ing)",
                r"better",
                r"lessened",
                r"(?:partial(?:ly)?|incomplete(?:ly)?|nearly|almost|near[ -]complete(?:ly)?|some) (?:interval )?(?:resolved|resolution|cleared|clearing|clearance)",
                r"shrunk|shrinking",
            ]
        ),
    ),
    (
        "unchanged",
        _any(
            [
                r"unchanged|stable|stably|unaltered|static",
                r"persist(?:s|ed|ent|ing|ence)?(?:ly)?",
                r"similar",
                r"again (?:\w+ )?(?:seen|noted|identified|demonstrated|present|visuali[sz]ed|evident|shown)",
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
        _any(
            [
                r"new(?:ly)?",
                r"(?:has|have) (?:\w+ )?(?:developed|appeared|arisen)",
                r"(?:interval )?development of",
                r"interval (?:appearance|placement|insertion)(?: of)?",
                r"now (?:seen|present|evident|visible)",
                r"not (?:previously )?(?:seen|present|visible|evident) (?:previously|before|on (?:the )?(?:prior|previous))",
                r"(?:was|were) not (?:previously )?(?:seen|present)",
                r"recent(?:ly)? (?:placed|inserted)",
            ]
        ),
    ),
)
#: The size word in these qualifies the change, not the finding.
SIZE_OF_CHANGE: re.Pattern[str] = re.compile(
    r"\b(?:slight|mild|small|marked|moderate|minimal|substantial|significant|minor|subtle|trace)(?:ly)?"
    r"(?= (?:interval |overall |further |partial |partially )*"
    r"(?:increas|decreas|improv|wors|progress|reduc|enlarging|larger|smaller|diminish|better|more|less"
    r"|change|resol|clear|deterior|regress))"
)
SIZES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "small",
        _any(
            [
                r"small|tiny|trace|mild|mildly|minimal|minimally|slight|slightly|minor|subtle|faint|little|minute|miniscule|borderline|low-grade"
            ]
        ),
    ),
    ("moderate", _any([r"moderate|moderately|medium|moderate-sized|mid-sized|intermediate"])),
    (
        "large",
        _any(
            [
                r"large|marked|markedly|severe|severely|extensive|massive|massively|substantial|substantially|gross|grossly|sizeable|sizable|considerable|considerably|big|huge"
            ]
        ),
    ),
)
SIDES: re.Pattern[str] = re.compile(
    r"\b(?P<both>bilateral(?:ly)?|both|bi-?basilar|bi-?basal|bi-?apical|bi-?lateral|left and right|right and left|right and the left|left and the right|either)\b"
    r"|\b(?P<left>left(?:-?sided|ward)?|l|lingula)\b|\b(?P<right>right(?:-?sided)?|r)\b"
)
#: Anatomy with a side in its name that says nothing of the finding's side.
SIDE_VETO: re.Pattern[str] = re.compile(
    r"\b(?:left|right)(?= (?:main|mainstem|main-stem|atri|ventric|heart|brachiocephalic|innominate|cardiac))"
    r"|\b(?:left|right)(?= (?:greater|larger|more|worse|less|smaller) than)"
    r"|(?<=than )(?:the )?(?:left|right)\b|(?<=than on the )(?:left|right)\b"
)
ZONES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "upper",
        _any(
            [
                r"upper|apex|apices|apical|bi-?apical|supra-?hilar|apically",
            ]
        ),
    ),
    ("mid", _any([r"mid|middle|peri-?hilar|lingular?|hilar|mid-?zone|midlung"])),
    (
        "lower",
        _any(
            [
                r"lower|bases?|basal|basilar|bi-?basilar|bi-?basal|retro-?cardiac|infra-?hilar|lung base|basally|bases"
            ]
        ),
    ),
)
#: "tip in the upper oesophagus", "mid svc": places of a tip, not lung zones.
ZONE_VETO: re.Pattern[str] = re.compile(
    r"\b(?:upper|mid|middle|lower|proximal|distal)[ -]?(?=(?:to (?:upper|mid|lower) )?(?:svc|superior vena|trachea|thoracic|oesophag|esophag|abdom|third|lumbar|cervical|spine|portion of the svc|half|limits?))"
    r"|\bupper(?= limits)|(?<=base of )neck"
)
#: Malposition is looked for first: "tip too high, above the satisfactory position".
TIPS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "malpositioned",
        _any(
            [
                r"mal-?position(?:ed)?|mal-?placed|misplaced|mis-?positioned",
                r"too (?:\w+ )?(?:high|low|deep|far|proximal|distal|shallow)",
                r"(?:high|low|deep)(?:-lying| lying)?(?: in position| position)?(?=,? (?:and |in position|within|at the (?:thoracic inlet|clavic)))",
                r"main-?(?:stem)? ?bronch\w+|mainstem|main bronch\w+|bronchus intermedius|bronchial intubation",
                r"(?:in|within|at|into) the (?:\w+ ){0,2}?o?esophag\w+|gastro-?o?esophageal|o?esophageal",
                r"above the (?:\w+ )?(?:diaphragm|ge junction)",
                r"coil(?:s|ed|ing)|kink(?:ed|ing)?|loop(?:ed|s)|curled",
                r"(?:should|need(?:s|ed)?|must|could) (?:to )?(?:be )?(?:\w+ )?(?:advanc|retract|withdraw|reposition|pull|adjust|replac)\w*",
                r"(?:recommend|suggest|advis|consider|requires?|needs?)(?:ed|s|e|ing)? (?:\w+ ){0,2}?(?:advanc|retract|withdraw|reposition|pull|adjust|replac)\w*",
                r"(?:repositioning|advancement|withdrawal|retraction) (?:is )?(?:\w+ )?(?:recommended|suggested|advised|required|needed)",
                r"(?:in|within|into|towards?) the (?:\w+ ){0,2}?(?:azygos|contralateral|jugular|brachiocephalic|right ventricle|axillary|neck|airway|pharynx|bronchus)(?: vein)?",
                r"(?:sub-?optimal|inappropriate|unsatisfactory|incorrect|abnormal|not (?:in )?(?:an? )?(?:satisfactory|appropriate|standard|adequate|good|ideal|optimal))",
                r"(?:at|below) the (?:level of the )?carina",
            ]
        ),
    ),
    (
        "satisfactory",
        _any(
            [
                r"satisfactor(?:y|ily)|appropriate(?:ly)?|standard|adequate(?:ly)?|expected|good position|well[ -](?:positioned|placed|sited|seated)|proper(?:ly)?|correct(?:ly)?|optimal(?:ly)?|acceptable|as expected|good|suitabl[ey]|usual",
                r"svc|superior vena cava|cavo-?atrial(?: junction)?",
                r"above the (?:level of the )?carina",
                r"mid-? ?trachea(?:l)?|mid-? ?thoracic trachea|at the level of the clavicles",
                r"(?:in|within|into|projects? over|overl(?:ies|ying)|reaches|terminat\w+ in) the (?:\w+ ){0,2}?(?:stomach|gastric \w+|fundus|duodenum)",
                r"below the (?:\w+ )?(?:diaphragm|hemidiaphragm|hemi-diaphragm)",
            ]
        ),
    ),
)

#: Said before a tube or a line, of where it ends.
LYING: re.Pattern[str] = _any([r"(?:low|high|deep|malpositioned|misplaced)"])

# ------------------------------------------------------------------------------- concepts of a text
COMPARISON: re.Pattern[str] = _any(
    [
        r"compar(?:ed|ison|ing|able)",
        r"(?:prior|previous|earlier|last|preceding)(?:ly)?",
        r"interval",
        r"since",
        r"unchanged|stable|persist\w*",
        r"again|re-?demonstrated",
        r"worse(?:n|ned|ning)?|improv(?:ed|ing|ement)",
        r"new(?:ly)?",
        r"(?:in|de)creas(?:ed|ing) (?:in|since|compared|from)|(?:has|have) (?:\w+ )?(?:in|de)creased",
        r"no longer|resolved|resolution of|(?:has|have) been removed|removal of",
        r"(?:no|without) (?:\w+ ){0,2}?change",
        r"larger|smaller",
    ]
)
NO_COMPARISON: re.Pattern[str] = _any(
    [
        r"no (?:\w+ )?(?:prior|previous|comparison|earlier|priors)(?: \w+){0,3}",
        r"(?:without|none for) comparison",
        r"comparison:? none",
    ]
)
COMMUNICATION: re.Pattern[str] = _any(
    [
        r"(?:discussed|communicated|notified|telephoned|phoned|conveyed|paged|relayed|informed|alerted)",
        r"(?:was|were|results?|findings?) (?:\w+ )?called",
        r"called (?:to|by|in)|by (?:tele)?phone|via (?:tele)?phone|telephone (?:call|discussion|conversation)",
        r"reported to (?:the |dr)",
        r"(?:critical|urgent) (?:result|finding)s? (?:notification|communication|reported)",
        r"made aware|verbal(?:ly)? (?:report|communicat)\w*",
    ]
)
