"""Phrases that name a finding, or deny one without naming it."""

import re

from maira_jax.reports.vocabulary.pattern import any_of

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
#: Denials of these deny every device, or every tube and line.
ALL_DEVICES: re.Pattern[str] = re.compile(r"(?:support|medical) (?:devices?|apparatus)")
ALL_TUBES: re.Pattern[str] = re.compile(r"(?:support )?(?:lines?|tubes?)\b")
#: Findings without side or zone: those of the midline, and oedema, which is on both sides ("bilateral perihilar
#: haze" is one finding).
MIDLINE: frozenset[str] = frozenset(
    {"no finding", "cardiomegaly", "enlarged cardiomediastinum", "endotracheal tube", "oedema"}
)
#: Findings that are distinguished by zone: each zone can have one.
ZONAL: frozenset[str] = frozenset({"consolidation", "lung opacity", "atelectasis", "lung lesion"})


# Up to five (or two) words, without punctuation between them.
_GAP = r"(?:[ -][\w/%-]+){0,5}?[ -]"
_SHORT_GAP = r"(?:[ -][\w/%-]+){0,2}?[ -]"
_HEART = (
    r"(?:heart|cardiac (?:silhouette|shadow|size|contours?|"
    r"and mediastinal (?:silhouettes?|contours?))"
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
            (
                r"(?:internal )?(?:jugular|subclavian|"
                r"ij)(?: central)?(?: venous)?(?: access)? (?:lines?|catheters?)"
            ),
            r"(?:picc|cvc)(?: lines?| catheters?)?",
            r"port-?a-?caths?",
            r"(?:medi-?port|chest port|port catheter)(?: catheter)?",
            (
                r"(?:dialysis|hickman|swan[ -]ganz|pulmonary artery|venous|"
                r"tunnel+ed) (?:lines?|catheters?)"
            ),
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
            (
                r"(?:enlarged|enlarging|large|prominent|globular|big) (?:heart|"
                r"cardiac (?:silhouette|shadow|size)|cardio-?pericardial silhouette)"
            ),
            r"(?:enlarged|enlarging|prominent) cardio-?mediastinal silhouettes?",
            _HEART
            + r"(?: size| shadow| silhouette)?"
            + _GAP
            + (
                r"(?:enlarged|enlargement|enlarging|cardiomegaly|globular|increased in size|"
                r"large|big|prominent|dilated|borderline(?: in size)?)"
            ),
        ),
    ),
    (
        "enlarged cardiomediastinum",
        (
            (
                r"(?:widened|enlarged|widening of (?:the )?|wide|prominent|"
                r"prominence of (?:the )?)(?: superior)? ?mediastin\w+(?: silhouette|"
                r" contours?)?"
            ),
            r"mediastin(?:al|um)" + _SHORT_GAP + r"(?:widening|widened|enlarge\w*|prominen\w+|wide)",
            (
                r"(?:prominence|widening|enlargement|"
                r"fullness) of (?:the )?(?:\w+ )?mediastin\w+(?: contours?| silhouette)?"
            ),
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
            (
                r"blunting of (?:the |both )?(?:\w+ ){0,3}?(?:costo-?phrenic|cp|"
                r"xxxx)(?: \w+)?(?: (?:angles?|sul(?:cus|ci)))"
            ),
            r"(?:costo-?phrenic|cp)(?: (?:angles?|sul(?:cus|ci)|recess\w*))" + _SHORT_GAP + r"(?:blunted|blunting)",
            r"blunted (?:\w+ ){0,2}?(?:costo-?phrenic|cp)(?: (?:angles?|sul(?:cus|ci)))",
        ),
    ),
    (
        "pleural other",
        (
            (
                r"pleural[ -](?:and )?(?:\w+ ){0,1}?(?:thickening|plaques?|scarring|"
                r"calcifications?|fibrosis)"
            ),
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
            (
                r"(?:pulmonary |vascular |pulmonary vascular |pulmonary venous |venous |"
                r"central vascular )congestion"
            ),
            r"(?:vascular|venous|vasculature|interstitial) engorgement",
            (
                r"(?:prominent|engorged|indistinct|congested) (?:\w+ ){0,2}?(?:vasculature|"
                r"vascularity|vessels)"
            ),
            (
                r"(?:prominence|indistinctness|"
                r"engorgement) of (?:the )?(?:\w+ ){0,2}?vascul(?:ature|arity|ar)"
            ),
            (
                r"(?:vascular|venous) (?:\w+ ){0,2}?(?:prominence|indistinctness|"
                r"redistribution|cephali[sz]ation)"
            ),
            (
                r"vascul(?:ature|arity)(?: (?:is|are|appears|\w+ly)){1,3} (?:prominent|"
                r"engorged|indistinct|congested|increased)"
            ),
            r"cephali[sz]ation|(?:congestive )?heart failure|chf",
            r"(?:fluid|volume) overload",
            r"kerley b? ?lines",
        ),
    ),
    (
        "lung lesion",
        (
            (
                r"(?:pulmonary |lung |calcified |solitary |non-?calcified |spiculated |"
                r"noncalcified )*nodul(?:es?|ar (?:density|densities|opacity|opacities|"
                r"lesions?|mass\w*))"
            ),
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
            (
                r"(?:air-?space|air space|alveolar|parenchymal|interstitial|lung) (?:disease|"
                r"process|infiltrat\w+|opaci\w+|densit\w+|abnormalit\w+)"
            ),
            r"opacit(?:y|ies)|opacifications?|opacified",
            r"infiltrat(?:es?|ions?)",
            (
                r"(?:air-?space|lung|pulmonary|basilar|patchy|streaky|hazy|focal|"
                r"ill-defined) densit(?:y|ies)"
            ),
            r"(?:reticular|interstitial|bronchovascular) (?:markings?|changes?|pattern)"
            + r"(?= (?:are |is )?(?:prominent|increased|coarse))",
        ),
    ),
    (
        "fracture",
        (r"fractur(?:es?|ed)",),
    ),
    ("emphysema", (r"(?:\w+ )?emphysema(?:tous)?(?: changes?)?", r"copd")),
    (
        "fibrosis",
        (
            r"(?:pulmonary |interstitial |lung )*fibrosis",
            r"fibrotic (?:changes?|scarring|opacit\w+|disease)",
        ),
    ),
    ("hernia", (r"(?:hiatal |hiatus |diaphragmatic )?hernias?",)),
)

# Statements of normality that deny findings without naming them.
_NORMAL_STATEMENTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("cardiomegaly",), _HEART + r"(?: size| shadow| silhouette)?(?:[ ,-]+[\w/-]+){0,7}?[ ,-]+" + _NORMAL),
    (
        ("cardiomegaly",),
        (
            r"(?:normal|unremarkable)(?: in)?(?: (?:size|sized|"
            r"appearance))?(?: (?:of )?(?:the )?)?\s?(?:\w+ (?:and )?){0,1}?"
        )
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
        r"(?: (?:are|is|appear|appears|remain|remains|both|otherwise|well[ -]\w+ and|"
        r"grossly|fully expanded and|expanded and|bilaterally|hyperexpanded but))*"
        r" (?:clear|normal|unremarkable)(?! of)",
    ),
    (("consolidation", "lung opacity", "oedema", "atelectasis"), r"clear lungs?(?: fields?)?"),
    (
        ("pleural effusion",),
        (
            r"(?:costo-?phrenic (?:angles?|sul(?:cus|ci))|pleural (?:spaces?|"
            r"angles?))(?: (?:are|is|appear|remain|both|all))* (?:sharp|clear|preserved|"
            r"unremarkable|normal|dry)"
        ),
    ),
    (
        ("fracture",),
        r"(?:bones?|bony (?:structures|thorax)|osseous structures|"
        r"(?:visuali[sz]ed )?skelet(?:on|al structures))"
        r"(?:[ ,-]+[\w/-]+){0,4}? (?:intact|unremarkable|normal|within normal limits)",
    ),
    (
        ("fracture",),
        (
            r"no (?:acute |significant |definite |suspicious )*(?:osseous|bony|bone|"
            r"skeletal)(?: \w+){0,1} ?(?:abnormalit\w+|findings?|injur\w+|lesions?)"
        ),
    ),
)

NO_FINDING: re.Pattern[str] = any_of(
    [
        (
            r"no (?:\w+ ){0,4}?(?:acute|active|significant)(?: \w+){0,3}? ?(?:abnormalit\w+|"
            r"process\w*|disease|findings?|pathology|change|changes)"
        ),
        r"(?:normal|unremarkable|negative) (?:chest|examination|study|radiograph|x-?ray)(?: \w+)?",
        r"no (?:acute )?abnormalit\w+",
        (
            r"without (?:\w+ ){0,3}?(?:acute|active) (?:\w+ ){0,2}?(?:abnormalit\w+|"
            r"process\w*|disease|findings?)"
        ),
    ]
)

#: Phrases that name no finding although they contain a word of the lists above.
VETO: re.Pattern[str] = any_of(
    [
        r"pericardial effusions?",
        r"(?:knee|joint|bowel|stomach) effusions?",
        r"(?:soft tissue|subcutaneous|leg|ankle|pedal|peripheral|facial) o?edema",
        (
            r"(?:granulomatous|degenerative|coronary|arterial|obstructive|bony|"
            r"osseous) (?:disease|process|changes?)"
        ),
        r"heart,? (?:and|or) (?:lungs?)",
        r"prominent (?:central )?pulmonary (?:arter\w+|vascul\w+)",
        (
            r"(?:granulomatous|tubercul\w+|fungal|prior|previous|old|remote|"
            r"histoplasm\w+) (?:\w+ )?(?:infection|disease|pneumonia)"
        ),
        r"body mass|breast mass|mass effect|soft tissue mass",
        r"o?edema(?:tous)? (?:of|in) the (?:leg|arm|ankle)s?",
        r"(?:left|right) (?:axillary|breast) (?:mass|nodule)s?|nipple shadows?",
        r"lung (?:base|apex|field)s?",
    ]
)

#: Labels of data sets that are a kind of one of the findings above, and the phrases that name them.
NARROWER: dict[str, re.Pattern[str]] = {
    "emphysema": re.compile(r"emphysema"),
    "fibrosis": re.compile(r"fibro(?:sis|tic)"),
    "hernia": re.compile(r"hernia"),
    "infiltration": re.compile(r"infiltrat"),
    "mass": re.compile(r"\bmass"),
    "nodule": re.compile(r"nodul"),
    "pleural thickening": re.compile(r"pleural.*thickening|thickening.*pleura"),
}

MENTIONS: tuple[tuple[str, re.Pattern[str]], ...] = tuple((name, any_of(phrases)) for name, phrases in _MENTIONS)
NORMAL_STATEMENTS: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = tuple(
    (names, re.compile(r"\b" + pattern + r"\b")) for names, pattern in _NORMAL_STATEMENTS
)
