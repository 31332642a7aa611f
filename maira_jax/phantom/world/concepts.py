"""Study-level concepts of the phantom, such as "small left pleural effusion": `Study.labels`, from its truth."""

from collections.abc import Sequence

from maira_jax.phantom.world.latents import DEGREES, FINDINGS
from maira_jax.phantom.world.write import concept_names
from maira_jax.studies.study import SIDES, SIZES, ZONES, Finding

_TUBES = ("endotracheal tube", "nasogastric tube", "central venous line")


def study_labels(findings: Sequence[Finding], has_prior: bool, communication: bool) -> dict[str, bool]:
    """Study-level concepts of a phantom study.

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
    out["comparison with prior"] = has_prior
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
