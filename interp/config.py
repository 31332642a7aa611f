"""The `interpret` section of a configuration."""

import dataclasses

import ml_collections

from interp.exemplars import contexts, selection
from maira_jax.errors import UserError
from maira_jax.run import fields

JUDGES = ("offline", "llm")


@dataclasses.dataclass(frozen=True)
class InterpretConfig:
    """The `interpret` section; what the fields mean stands in configs/phantom.py."""

    judge: str
    context_length: int
    block_tokens: int
    n_top: int
    n_sample: int
    n_pool: int
    n_explain: int
    n_score: int
    n_least: int
    n_prompt: int
    n_control: int
    bootstrap: int
    n_least_studies: int
    concept_sections: tuple[str, ...]
    features: tuple[int, ...]
    feature_batch: int
    seed: int

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "InterpretConfig":
        """Reads and checks the section.

        Raises:
          UserError: a field is missing, unknown or out of range.
        """
        section = config.interpret.to_dict()
        names = {field.name for field in dataclasses.fields(cls)} - {"seed"}
        if section.keys() != names:
            wrong = sorted(section.keys() ^ names)[0]
            problem = "is missing" if wrong in names else "is unknown"
            raise UserError(f"interpret.{wrong} {problem}: see configs/phantom.py for the fields of this section")
        section["concept_sections"] = tuple(section["concept_sections"])
        section["features"] = fields.tuple_of(int, "interpret.features", section["features"])
        cfg = cls(**section, seed=config.seed)
        if cfg.judge not in JUDGES:
            raise UserError(f"interpret.judge {cfg.judge!r} does not exist: choose {' or '.join(JUDGES)}")
        for name in names - {"judge", "concept_sections", "features"}:
            if getattr(cfg, name) < 1:
                raise UserError(f"interpret.{name} is {getattr(cfg, name)}, but must be at least 1: change it")
        if not cfg.context_length <= cfg.block_tokens <= 2**15:
            raise UserError(
                f"interpret.block_tokens is {cfg.block_tokens}, but must not be below interpret.context_length "
                f"or above {2**15}: change it"
            )
        for name in ("n_explain", "n_score"):
            count = getattr(cfg, name)
            if count % selection.N_DECILES or count > min(cfg.n_sample, cfg.n_pool):
                raise UserError(
                    f"interpret.{name} is {count}, but must be a multiple of {selection.N_DECILES} and not above "
                    "interpret.n_sample or interpret.n_pool: change it"
                )
        if cfg.n_least > min(cfg.n_explain, cfg.n_score):
            raise UserError("interpret.n_least must not be above interpret.n_explain or interpret.n_score: change it")
        known = set(contexts.SECTION_NAMES.values())
        for name in cfg.concept_sections:
            if name not in known:
                raise UserError(f"interpret.concept_sections names {name!r}: choose from {', '.join(sorted(known))}")
        return cfg
