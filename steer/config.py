"""The `steer` section of the configuration."""

import re
from typing import Literal

import numpy as np

from interp.sets import OWN_SET
from maira_jax.errors import UserError
from maira_jax.inputs.tokens import FRONTAL, Kind, token_filter_mask
from maira_jax.run.config import Section, setting
from steer.methods import METHODS
from steer.methods.combination import members
from steer.methods.method import StrengthUnit
from steer.selection import SELECTIONS

GENERATED = "generated"  # the position of every token that produces a token
PriorImage = Literal["own", "none", "repeated"]
# Parts of a prompt by the names that `steer.positions` gives them.
PARTS = {
    **{kind.name.lower(): (kind,) for kind in Kind if kind not in (Kind.PAD, Kind.FINDINGS, Kind.EOS, Kind.IMAGE_LAST)},
    "image": (Kind.IMAGE, Kind.IMAGE_LAST),
    "prompt": tuple(kind for kind in Kind if kind != Kind.PAD),
}


class SteerSection(Section, name="steer"):
    """Which reports are written: every study, along every direction, at every strength or at the method's own."""

    name: str = setting(
        "concepts", "Name of the sweep, and of its folder in steer/ and evaluation/: a run may have several."
    )
    features: tuple[int, ...] = setting(
        (), "Features to steer; empty: those that match, or the best one of each concept.", ge=0
    )
    match: str = setting("", "Regular expression on explanations that selects features, e.g. 'pleural effusion'.")
    set: str = setting(
        OWN_SET,
        f"Set of interpretations whose explanations those are; {OWN_SET} is the run's own.",
        decides=False,  # the set is an input
    )
    concepts: tuple[str, ...] = setting(
        (),
        "Concepts to steer, each by its best feature if one is known; empty: the steer.top that features detect best. "
        "With steer.features or steer.match at most one, which all those features are steered for; empty: for the "
        "concept that is known for each.",
    )
    select: tuple[str, ...] = setting(
        ("concept",),
        "Rules by which the features of a concept are chosen where steer.features and steer.match are empty: all that "
        "any rule chooses are steered. concept: it detects the concept best; explanation: its explanation states the "
        "concept and has the best detection score; gradient: it raises, to first order, the probability of sentences "
        "that state the concept most. Of their candidates, output_score: it makes its own direction's tokens likely; "
        "confidence: it changes what is expected next; pilot: it steers a few reports best.",
        choices=SELECTIONS.names,
    )
    candidates: int = setting(1, "Features that are steered for each concept and rule of steer.select.", ge=1)
    pool: int = setting(
        8, "Candidates for each concept that each of the rules concept, explanation and gradient proposes.", ge=1
    )
    select_studies: int = setting(
        8, "Training studies on whose prompts rules take gradients, amplify features and steer, all at once.", ge=1
    )
    learn_studies: int = setting(
        32,
        "Largest number of training studies, with their reports rewritten, from which methods learn that learn an "
        "edit through the model: reft_r1 and smallest_set.",
        ge=4,
    )
    top: int = setting(
        12, "Largest number of features that are chosen by match or concept; those of steer.features all are.", ge=1
    )
    combinations: tuple[str, ...] = setting(
        (), "Features to boost and to suppress together: ('12+30-7',); the first one gives the concept."
    )
    methods: tuple[str, ...] = setting(("add", "random"), "Steering methods.", choices=METHODS.names)
    strengths: tuple[float, ...] = setting(
        (-1.5, -0.75, 0.75, 1.5), "Strengths, in units; 0, the unsteered report, is always there."
    )
    unit: StrengthUnit = setting(
        "max_activation",
        "Unit of strength. max_activation: the feature's largest activation; residual_norm: the mean norm of the "
        "residual stream where edited; raw: 1.",
    )
    positions: tuple[str, ...] = setting(
        (GENERATED,),
        "Edited tokens: those that are generated, and parts of the prompt.",
        choices=lambda: (GENERATED, FRONTAL, *PARTS),
    )
    sae: str = setting(
        "", "Folder or file of another autoencoder, whose steer.features are steered; empty: the run's own."
    )
    manifest: str = setting("", "Manifest of studies to steer; empty: studies that the autoencoder was not trained on.")
    prior_image: PriorImage = setting(
        "own",
        "Image that stands for the prior one. own: the study's own, if it has one. none: only studies without one are "
        "steered. repeated: only those, and their current image is shown in its place, on which a model may report "
        "changes that nothing shows.",
    )
    studies: int = setting(24, "Largest number of studies, in the order of the store or of the manifest.", ge=1)
    batch_studies: int = setting(
        8, "Studies whose reports are written together; each prompt is read once.", ge=1, decides=False
    )
    batch_rows: int = setting(16, "Reports of each study that are written together.", ge=1, decides=False)
    workers: int = setting(
        2,
        "Batches that are written in parallel, which keeps a processor's cores busy; on an accelerator take 1.",
        ge=1,
        decides=False,
    )
    max_new_tokens: int = setting(136, "Largest number of tokens of a report.", ge=1)
    temperature: float = setting(
        0.0, "0 takes the most likely token; else tokens are drawn, the same draws for all reports of a study.", ge=0
    )
    top_p: float = setting(1.0, "Only the most likely tokens whose probabilities add up to this are drawn.", gt=0, le=1)
    dry_run: bool = setting(
        False, "Only say how many reports there are, and what memory and time they take.", decides=False
    )

    def check(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise UserError(f"steer.name {self.name!r} cannot name a folder: use letters, digits, '-' and '_'")
        if not self.nonzero_strengths:
            raise UserError(f"steer.strengths {self.strengths} must hold a number other than 0: add one")
        for name in ("methods", "positions", "select"):
            if not getattr(self, name):
                raise UserError(f"steer.{name} is empty: choose at least one")
        if self.features and self.match:
            raise UserError("steer.features and steer.match exclude each other: empty one of them")
        if len(self.concepts) > 1 and (self.features or self.match):
            raise UserError(
                f"steer.concepts names {len(self.concepts)} concepts, but the features of steer.features or "
                "steer.match are steered for one: name one, or none with --config.steer.concepts=, and another --sweep"
            )
        if self.sae and not (self.features or self.combinations):
            raise UserError("nothing is known of the features of steer.sae: name some in steer.features")
        for text in self.combinations:
            members(text)

    @property
    def nonzero_strengths(self) -> tuple[float, ...]:
        """The strengths at which reports are steered, each once."""
        return tuple(dict.fromkeys(strength for strength in self.strengths if strength))

    @property
    def sampling(self) -> str:
        """How tokens are chosen, in words."""
        return f"temperature {self.temperature}, top_p {self.top_p}" if self.temperature else "greedy"

    @property
    def edits_generated(self) -> bool:
        """Whether tokens that produce a token are edited, the prompt's last one included."""
        return GENERATED in self.positions

    @property
    def edits_prompt(self) -> bool:
        """Whether any token of a prompt but the last one is edited."""
        return set(self.positions) != {GENERATED}

    def edited(self, kinds: np.ndarray) -> np.ndarray:
        """Which tokens of prompts are edited, bool, from their kinds (of `Kind`), of the same shape."""
        found = np.isin(kinds, [int(kind) for name in self.positions for kind in PARTS.get(name, ())])
        return found | token_filter_mask(kinds, FRONTAL) if FRONTAL in self.positions else found

    def measured(self, kinds: np.ndarray) -> np.ndarray:
        """Which tokens of a study stand for the edited ones in the activation store: findings for generated ones."""
        return self.edited(kinds) | ((kinds == Kind.FINDINGS) & self.edits_generated)
