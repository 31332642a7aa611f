"""The hidden state of the phantom's studies: which findings are present, and which were in the prior study.

A study's state is a row of levels with one column per *slot*, a finding at a place ("left pleural effusion"). Level 0
is absent; higher levels are sizes, tip positions, or just presence. Everything is sampled from counter-based random
numbers addressed by the study's index, so that study 17 of a seed is the same in whichever range it is sampled.
"""

from dataclasses import dataclass

import numpy as np

from maira_jax.studies.study import SIDES, ZONES, Finding

HEALTHY = 0.18  # share of studies whose first state has no finding
WITH_PRIOR = 0.5


def slot_name(finding: str, side: str | None, zone: str | None) -> str:
    """The name of the slot of a finding at a place, e.g. "left pleural effusion", "right upper consolidation"."""
    return " ".join(part for part in (side, zone, finding) if part)


@dataclass(frozen=True)
class Slot:
    """A finding at a place, and the meaning of its levels above 0.

    Attributes:
      finding: name of the finding, as in `Finding.name`.
      kind: what the levels are: "size" (see `sizes`), "presence" or "tip".
      prevalence: share of studies in which the finding is present.
      side: the patient's side, None for a finding without sides.
      zone: the lung zone, None for a finding without zones.
      sizes: the sizes of levels 1, 2, ..., for kind "size".
    """

    finding: str
    kind: str
    prevalence: float
    side: str | None = None
    zone: str | None = None
    sizes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """E.g. "left pleural effusion", "pacemaker"."""
        return slot_name(self.finding, self.side, self.zone)

    @property
    def levels(self) -> int:
        """Number of levels, absent included."""
        return 1 + {"size": len(self.sizes), "presence": 1, "tip": 2}[self.kind]


SLOTS = (
    Slot("cardiomegaly", "size", 0.30, sizes=("small", "moderate", "large")),
    *(Slot("pleural effusion", "size", 0.19, side=side, sizes=("small", "moderate", "large")) for side in SIDES),
    *(Slot("pneumothorax", "size", 0.13, side=side, sizes=("small", "large")) for side in SIDES),
    *(Slot("consolidation", "presence", 0.08, side=side, zone=zone) for side in SIDES for zone in ZONES),
    Slot("oedema", "presence", 0.23),
    Slot("pacemaker", "presence", 0.23),
    Slot("endotracheal tube", "tip", 0.25),
    Slot("nasogastric tube", "tip", 0.25),
    Slot("central venous line", "tip", 0.25),
)
COLUMN = {slot.name: column for column, slot in enumerate(SLOTS)}

# By number of levels: the share of each level above 0 when a finding is new; then, for each level above 0, the
# probabilities of the level in the next study (column 0: it has resolved).
_ONSET = {4: (0.36, 0.34, 0.30), 3: (0.5, 0.5), 2: (1.0,)}
_NEXT = {
    4: ((0.34, 0.36, 0.20, 0.10), (0.15, 0.25, 0.35, 0.25), (0.10, 0.15, 0.30, 0.45)),
    3: ((0.34, 0.40, 0.26), (0.20, 0.35, 0.45)),
    2: ((0.40, 0.60),),
}
_NEXT_TIP = ((0.35, 0.65, 0.0), (0.35, 0.0, 0.65))
_ONSET_TIP = (0.6, 0.4)


@dataclass(frozen=True)
class Latents:
    """The state of the studies start, start + 1, ... of a seed.

    Attributes:
      start: index of the first study.
      seed: seed of the synthetic data.
      has_prior: whether each study has a prior study, bool [n].
      levels: int8 [n, slots], columns as in `SLOTS`.
      prior_levels: levels of the prior studies, int8 [n, slots]; zeros where there is none.
    """

    start: int
    seed: int
    has_prior: np.ndarray
    levels: np.ndarray
    prior_levels: np.ndarray

    def __len__(self) -> int:
        return len(self.levels)


def uniforms(start: int, stop: int, seed: int, stream: int, width: int) -> np.ndarray:
    """Random numbers in [0, 1) addressed by study index.

    Args:
      start, stop: range of study indices.
      seed: seed of the synthetic data.
      stream: number of the purpose; numbers of two streams are independent.
      width: number of values per study.

    Returns:
      float64 [stop - start, width]; a row depends on its index alone, not on the range.
    """
    blocks = -(-width // 4)  # a Philox counter step yields four 64-bit words
    key = np.random.SeedSequence((seed, stream)).generate_state(2, np.uint64)
    bits = np.random.Philox(key=key).advance(start * blocks)
    return np.random.Generator(bits).random((stop - start, 4 * blocks))[:, :width]


def sample(start: int, stop: int, seed: int = 0) -> Latents:
    """Samples the states of studies `start` to `stop - 1`.

    Where there is a prior study, its state is sampled first, and the current one depends on it.
    """
    n, slots = stop - start, len(SLOTS)
    draws = uniforms(start, stop, seed, stream=0, width=2 * slots + 4)
    healthy = draws[:, -1] < HEALTHY
    has_prior = draws[:, -2] < WITH_PRIOR
    keep_left = draws[:, -3] < 0.5

    first = np.zeros((n, slots), np.int8)
    second = np.zeros((n, slots), np.int8)
    for column, slot in enumerate(SLOTS):
        table = _transitions(slot)  # [levels, levels]
        present = slot.prevalence / (1 - HEALTHY)
        share = np.cumsum([1 - present, *(present * np.array(_shares(slot)))])
        first[:, column] = (draws[:, column, None] >= share[:-1]).sum(1)
        first[healthy, column] = 0
        rows = table[first[:, column]]  # [n, levels]
        second[:, column] = (draws[:, slots + column, None] >= rows[:, :-1]).sum(1)
    for levels in (first, second):
        _make_visible(levels, keep_left)
    current = np.where(has_prior[:, None], second, first)
    prior = np.where(has_prior[:, None], first, np.int8(0))
    return Latents(start, seed, has_prior, current, prior)


def _shares(slot: Slot) -> tuple[float, ...]:
    return _ONSET_TIP if slot.kind == "tip" else _ONSET[slot.levels]


def _transitions(slot: Slot) -> np.ndarray:
    """Cumulative probabilities of the next study's level, float64 [levels now, levels next]."""
    onwards = _NEXT_TIP if slot.kind == "tip" else _NEXT[slot.levels]
    shares = np.array(_shares(slot))
    resolved = float(shares @ np.array([row[0] for row in onwards]))
    # As many are new as resolve, so that prevalence is about the same with and without a prior.
    new = resolved * slot.prevalence / (1 - slot.prevalence)
    return np.cumsum([(1 - new, *(new * shares)), *onwards], axis=1)


def _make_visible(levels: np.ndarray, keep_left: np.ndarray) -> None:
    """Removes, in place, what an image could not show.

    These are pneumothorax on both sides, and consolidation under fluid: in the lower zone under a moderate effusion, in
    the mid zone too under a large one.
    """
    left, right = COLUMN["left pneumothorax"], COLUMN["right pneumothorax"]
    both = (levels[:, left] > 0) & (levels[:, right] > 0)
    levels[both & keep_left, right] = 0
    levels[both & ~keep_left, left] = 0
    for side in SIDES:
        fluid = levels[:, COLUMN[f"{side} pleural effusion"]]
        levels[fluid >= 2, COLUMN[f"{side} lower consolidation"]] = 0
        levels[fluid >= 3, COLUMN[f"{side} mid consolidation"]] = 0


def truth(latents: Latents, i: int) -> tuple[Finding, ...]:
    """The ground truth of the i-th study, absent findings included.

    Effusion and pneumothorax have one finding per side; consolidation has one for each zone that has it or had it, or
    a single absent one without any; the others have one each.
    """
    return _findings(latents.levels[i], latents.prior_levels[i] if latents.has_prior[i] else None)


def prior_truth(latents: Latents, i: int) -> tuple[Finding, ...]:
    """The ground truth of the i-th study's prior study, which must exist, without changes."""
    return _findings(latents.prior_levels[i], None)


def _findings(levels: np.ndarray, prior: np.ndarray | None) -> tuple[Finding, ...]:
    now = levels.tolist()
    before = None if prior is None else prior.tolist()
    out, consolidation = [], 0
    for column, slot in enumerate(SLOTS):
        level, change = now[column], None
        if before is not None:
            change = _change(level, before[column])
        if slot.finding == "consolidation":
            if level == 0 and change is None:
                continue
            consolidation += 1
        out.append(
            Finding(
                slot.finding,
                "present" if level else "absent",
                side=slot.side,
                zone=slot.zone,
                size=slot.sizes[level - 1] if level and slot.kind == "size" else None,
                tip=("satisfactory", "malpositioned")[level - 1] if level and slot.kind == "tip" else None,
                change=change,
            )
        )
    if not consolidation:
        out.append(Finding("consolidation", "absent"))
    return tuple(out)


def _change(level: int, before: int) -> str | None:
    if level == before:
        return "unchanged" if level else None
    if before == 0:
        return "new"
    if level == 0:
        return "resolved"
    return "worse" if level > before else "improved"
