"""Splits the text of a radiology report into its sections."""

import re

# A heading begins a line, is in capitals, and ends with a colon.
_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z /,()&-]+):", re.MULTILINE)
_NAMES = {
    "INDICATION": "indication",
    "CLINICAL INDICATION": "indication",
    "CLINICAL INFORMATION": "indication",
    "CLINICAL HISTORY": "indication",
    "HISTORY": "indication",
    "REASON FOR EXAM": "indication",
    "REASON FOR EXAMINATION": "indication",
    "REASON FOR THE EXAM": "indication",
    "TECHNIQUE": "technique",
    "COMPARISON": "comparison",
    "COMPARISONS": "comparison",
    "FINDINGS": "findings",
    "FINDINGS AND IMPRESSION": "findings",
    "IMPRESSION": "impression",
    "CONCLUSION": "impression",
}


def split_sections(report: str) -> dict[str, str]:
    """Finds the sections of a report.

    Args:
      report: its text, with headings such as "FINDINGS:" at line starts.

    Returns:
      Section name ("indication", "technique", "comparison", "findings", "impression") -> text with
      single spaces. A section that is missing or empty is not a key; other headings end a section but are
      not returned. The texts of a section that occurs twice (an addendum) are joined.
    """
    out: dict[str, str] = {}
    headings = list(_HEADING.finditer(report))
    ends = [*(heading.start() for heading in headings[1:]), len(report)]
    for heading, end in zip(headings, ends, strict=False):  # without a heading there is still an end
        name = _NAMES.get(" ".join(heading.group(1).split()))
        text = " ".join(report[heading.end() : end].split())
        if name and text:
            out[name] = f"{out[name]} {text}" if name in out else text
    return out
