"""Study-level concepts, such as "small left pleural effusion": from the findings of a study, whether each is true.

The findings may be the truth of a phantom study or what the labeller reads in a report.
"""

from collections.abc import Sequence

from maira_jax.studies.study import SIDES, SIZES, ZONES, Finding

_TUBES = ("endotracheal tube", "nasogastric tube", "central venous line")
FINDINGS = ("cardiomegaly", "pleural effusion", "pneumothorax", "consolidation", "oedema", "pacemaker", *_TUBES)
"""The findings whose attributes are known too."""
DEGREES = {"small": "mild", "moderate": "moderate", "large": "severe"}
"""The words for the sizes of cardiomegaly."""
COMPARISON = "comparison with prior"
"""The concept of a report that compares the study with an earlier one."""


def concept_names(finding: Finding) -> frozenset[str]:
    """The concepts of a present finding, from its name alone to its name with all attributes."""
    size = DEGREES.get(finding.size or "") if finding.name == "cardiomegaly" else finding.size
    parts = ((), (finding.side,), (size,), (size, finding.side), (finding.side, finding.zone))
    found = {" ".join(filter(None, (*words, finding.name))) for words in parts}
    return frozenset(found | ({f"{finding.name} {finding.tip}"} if finding.tip else set()))


def study_labels(findings: Sequence[Finding], has_prior: bool, communication: bool) -> dict[str, bool]:
    """The study-level concepts of a study.

    Args:
      findings: what is true of the study, absent findings included.
      has_prior: whether there is a prior study, which the report then compares with.
      communication: whether the report says that a finding was communicated to someone.

    Returns:
      Concept -> whether it is true; the same concepts, in the same order, for every study.
    """
    present = [finding for finding in findings if finding.status == "present"]
    true = {name for finding in present for name in concept_names(finding)}
    changes = {finding.change for finding in findings}
    out = {name: name in true for name in _CONCEPTS}
    out["bilateral pleural effusions"] = {"left pleural effusion", "right pleural effusion"} <= true
    out["new finding"] = "new" in changes
    for change in ("worse", "improved", "unchanged", "resolved"):
        out[change] = change in changes
    out[COMPARISON] = has_prior
    out["communication"] = communication
    out["normal study"] = not present
    return out


def _concepts() -> tuple[str, ...]:
    names = list(FINDINGS)
    names += [f"{degree} cardiomegaly" for degree in DEGREES.values()]
    names += [f"{side} pleural effusion" for side in SIDES]
    names += [f"{size} {side} pleural effusion" for side in SIDES for size in SIZES]
    names += [f"{side} pneumothorax" for side in SIDES]
    names += [f"{size} {side} pneumothorax" for side in SIDES for size in ("small", "large")]
    names += [f"{side} consolidation" for side in SIDES]
    names += [f"{side} {zone} consolidation" for side in SIDES for zone in ZONES]
    names += [f"{tube} malpositioned" for tube in _TUBES]
    return tuple(names)


_CONCEPTS = _concepts()
