"""A feature that is to be steered, with what is known of it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Target:
    """A feature and the concept that it is steered for.

    Attributes:
      concept: the study-level concept; "" when none is known for the feature.
      feature: the number of the feature in the autoencoder.
      max_activation: the feature's largest activation, in raw activation units.
      explanation: the feature's explanation from the interpret stage.
      f1: F1 of the feature as a detector of the concept on held-out studies; None if not measured.
      chosen_by: the rules that chose it, each with its score.
      of_concept: whether it was chosen for the concept, and not the concept found for it.
      others: features that detect the concept about as well, each with its largest activation.
    """

    concept: str
    feature: int
    max_activation: float
    explanation: str = ""
    f1: float | None = None
    others: tuple[tuple[int, float], ...] = ()
    of_concept: bool = False
    chosen_by: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        concept = f" {self.concept}" if self.concept else ""
        known = [f"F1 {self.f1:.2f}"] if self.f1 is not None else []
        known += [f"{rule} {score:.2f}" for rule, score in self.chosen_by if score != self.f1]
        return f"feature {self.feature}{concept}" + (f" ({', '.join(known)})" if known else "")
