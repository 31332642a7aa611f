"""The directions of a sweep: each method's intervention for each target."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from maira_jax.run.progress import progress
from steer.methods.intervention import Intervention
from steer.methods.method import METHODS, MethodInputs, SteeringMethod
from steer.selection.target import Target

NONE = "none"  # the method of the unsteered report


@dataclasses.dataclass(frozen=True)
class Direction:
    """An intervention with what it is meant to steer.

    Attributes:
      key: its name in the results, unique in a sweep.
      method: the name of a method in `METHODS`, "combination" or "none".
      target: what it is meant to steer; None for "none".
      intervention: what is done.
      fixed_strengths: its fixed strengths; empty: those of `steer.strengths`.
      other_concepts: concepts other than the target's that are meant to change.
    """

    key: str
    method: str
    target: Target | None
    intervention: Intervention
    fixed_strengths: tuple[float, ...] = ()
    other_concepts: tuple[str, ...] = ()

    def strengths(self, wanted: Sequence[float]) -> Sequence[float]:
        """Its fixed strengths, or `wanted` where it has none."""
        return self.fixed_strengths or wanted

    @classmethod
    def none(cls, d_model: int) -> "Direction":
        """No direction: the one of the unsteered report."""
        return cls(NONE, NONE, None, Intervention(np.zeros(d_model, np.float32), 0.0))


def make_directions(targets: Iterable[Target], methods: Iterable[str], inputs: MethodInputs) -> list[Direction]:
    """The directions of all methods that can steer them, target by target.

    Args:
      targets: what to steer.
      methods: names in `METHODS`.
      inputs: what the methods need.
    """
    wanted: dict[str, tuple[str, SteeringMethod, Target]] = {}
    chosen = {name: METHODS.get(name)() for name in methods}
    for target in targets:
        for name, method in chosen.items():
            subject = target.concept.replace(" ", "-") if method.of_concept else str(target.feature)
            key = f"{name}-{subject}"
            if target.of_concept and not method.of_concept:  # the feature may be another concept's too
                key = f"{key}-{target.concept.replace(' ', '-')}"
            if subject:
                wanted.setdefault(key, (name, method, target))
    n_learned = sum(method.learned for _, method, _ in wanted.values())
    bar = progress(total=n_learned, unit="edit", desc="learn") if n_learned else None
    found = []
    for key, (name, method, target) in wanted.items():
        intervention = method.intervention(target, inputs)
        if intervention is not None:
            found.append(Direction(key, name, target, intervention, method.strengths))
        if bar and method.learned:
            bar.update()
    if bar:
        bar.close()
    return found
