"""The `interpret` section: how features are explained, and how explanations are tested."""

from interp.exemplars import selection
from interp.explainers import EXPLAINERS
from interp.explainers.llm_explainer import N_EXAMPLES
from interp.scorers import JUDGES, SCORERS
from maira_jax.errors import UserError
from maira_jax.inputs.tokens import SECTIONS
from maira_jax.run.config import Section, setting

# Tokens encoded at a time: enough to keep a device busy, and small compared with a layer's weights.
BLOCK_TOKENS = 4096
# The uniform sample of a feature's activating contexts from which deciles are drawn, and the contexts of each split
# from which non-activating ones are: twice and twenty times what is shown, so that all kinds are well filled.
N_SAMPLE, N_POOL = 200, 2048


class InterpretSection(Section, name="interpret"):
    """How features are explained, and how explanations are tested."""

    judge: str = setting(
        "offline",
        "Who explains, and answers the scorers' questions; offline needs no language model.",
        choices=JUDGES.names,
    )
    explainer: str | None = setting(
        None, "Who explains the features instead of the judge; None: the judge.", choices=EXPLAINERS.names
    )
    scorers: tuple[str, ...] = setting(
        ("detection", "fuzzing"),
        "Tests of explanations; detection must be among them. intruder tests the contexts themselves.",
        choices=SCORERS.names,
    )
    context_length: int = setting(
        32, "Tokens of a context, at most; contexts end with their sentence or section.", ge=1, le=BLOCK_TOKENS
    )
    n_top: int = setting(10, "Strongest contexts kept for each feature and split.", ge=1)
    n_explain: int = setting(
        100,
        "Activating train contexts drawn for the explainer, and as many non-activating ones; a language model is shown "
        f"at most {N_EXAMPLES} activating ones.",
        ge=1,
    )
    n_score: int = setting(
        100, "Activating held-out contexts that an explanation is scored on, and as many non-activating ones.", ge=1
    )
    set: str = setting(
        "",
        "Imported set of interpretations whose explanations are scored, on the exemplars of interp/; empty: explain.",
        decides=False,  # it has a folder of its own
        remembered=False,
    )
    features: tuple[int, ...] = setting((), "Only these features are explained and scored; empty: all.", ge=0)
    min_contexts: int = setting(
        20, "Features with fewer activating or non-activating contexts in a split are not scored.", ge=1
    )
    n_prompt: int = setting(5, "Examples in one question to the judge.", ge=1)
    n_control: int = setting(
        128,
        "Controls of each kind that are explained and scored; of `features` no more than they are.",
        ge=1,
    )
    bootstrap: int = setting(1000, "Resamples of the studies for each interval.", ge=1)
    concept_sections: tuple[str, ...] = setting(
        ("findings",),
        "A study's score for a concept is taken over the tokens of these sections.",
        choices=lambda: SECTIONS,
    )
    min_studies: int = setting(
        10, "Concepts with fewer studies, with or without the concept, in a split are left out.", ge=1
    )

    @property
    def controls_of_kind(self) -> int:
        """The largest number of controls of each kind."""
        return min(self.n_control, len(self.features) or self.n_control)

    def check(self) -> None:
        for name in ("n_explain", "n_score"):
            count = getattr(self, name)
            if count % selection.N_DECILES or count > N_SAMPLE:
                raise UserError(
                    f"interpret.{name} is {count}, but must be a multiple of {selection.N_DECILES} and at most "
                    f"{N_SAMPLE}: change it"
                )
        if self.min_contexts > min(self.n_explain, self.n_score):
            raise UserError(
                "interpret.min_contexts must not be above interpret.n_explain or interpret.n_score: change it"
            )
        if "detection" not in self.scorers:
            raise UserError("interpret.scorers leaves out detection, which controls are compared by: add it")
