"""Where to read and where to write, in words, from the figures of every site and section."""

import dataclasses
from collections.abc import Sequence
from typing import Any

_NEARLY = 0.1  # of a share: sites that come as close to the best one write nearly as well
_WELL = 0.8  # of the best share on target: sites that reach it count as those where writing works


@dataclasses.dataclass(frozen=True)
class PointFigures:
    """What was measured at a site and a section of the prompt, over all concepts.

    Attributes:
      site, depth, section: as in the table of the localize stage.
      read_auroc: the mean over concepts of a dense probe's area under the ROC curve; None where none was scored.
      written: the table's columns of what was written, over the reports of all concepts.
      ablate_lost, ablate_patches_lost: shares over the reports of all concepts.
    """

    site: str
    depth: int
    section: str
    read_auroc: float | None
    written: dict[str, Any]
    ablate_lost: float | None
    ablate_patches_lost: float | None

    @property
    def on_target(self) -> float:
        """The share of reports that get their concept; 0 where none was written."""
        return self.written.get("write_on_target") or 0.0

    @property
    def gain(self) -> float:
        """The share on target minus the share in which another finding changed; degenerate reports change others."""
        off, degenerate = (self.written.get(f"write_{name}") or 0.0 for name in ("off_target", "degenerate"))
        return self.on_target - off - degenerate

    def row(self) -> dict[str, Any]:
        """As plain values."""
        plain = {name: getattr(self, name) for name in ("site", "depth", "section", "read_auroc")}
        lost = {"ablate_lost": self.ablate_lost, "ablate_patches_lost": self.ablate_patches_lost}
        return plain | {name: value for name, value in self.written.items() if name != "write_strength"} | lost


def recommend(points: Sequence[PointFigures]) -> dict[str, Any]:
    """The part of the summary that says where to read and write.

    Where to steer is the deepest site that writes nearly as well as the best one: what an autoencoder finds there has
    been computed by more of the model. A difference of 0.1 between the shares on minus off target is nearly as well.
    Only sites of the language model are named, where activations are stored.

    Returns:
      `recommendation` (words), `site` and `section` where to steer, and `points`, one per site and section.
    """
    inside = [point for point in points if point.site.startswith("language.")] or list(points)
    best = max(inside, key=lambda point: point.gain)
    steered = max(
        (point for point in inside if point.section == best.section and point.gain >= best.gain - _NEARLY),
        key=lambda point: point.depth,
    )
    works = [
        point
        for point in inside
        if point.section == best.section and point.on_target >= _WELL * max(best.on_target, 1e-9)
    ]
    read = [point for point in inside if point.section == best.section and point.read_auroc is not None]
    sentences = []
    if read:
        first = max(read, key=lambda point: point.read_auroc or 0.0)
        sentences.append(f"read best at {first.site} (mean AUROC {first.read_auroc:.3f})")
    if works:
        sentences.append(f"write at {works[0].site}" + (f" to {works[-1].site}" if len(works) > 1 else ""))
    words = (
        f"In the tokens '{best.section}': {'; '.join(sentences)}. Steer at {steered.site}, tokens '{steered.section}': "
        f"{steered.on_target:.0%} of {steered.written.get('n', 0)} reports on target, "
        f"{steered.written.get('write_off_target') or 0.0:.0%} with another finding changed."
        if works
        else "No site writes any of the concepts: try other sites, sections or strengths."
    )
    return {
        "recommendation": words,
        "site": steered.site,
        "section": steered.section,
        "points": [point.row() for point in points],
    }
