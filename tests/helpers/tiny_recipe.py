"""Recipes that train a model of a few thousand parameters in seconds."""

import dataclasses

from configs import phantom
from maira_jax.phantom.pretraining.recipe import (
    RECIPES,
    LanguageSize,
    PhaseSchedule,
    Recipe,
    ReportPhase,
    VisionSize,
)

_SCHEDULE = PhaseSchedule(steps=3, batch_size=4, learning_rate=2e-3, warmup=1)
_TOWER = ("vision", "projector")
_ONE_IMAGE = ReportPhase(
    "one_image", _SCHEDULE, (512,), 250, bare_prompt=True, image_counts=(1,), varied_wording=False, frozen=_TOWER
)
FULL_PROMPT = ReportPhase("full_prompt", _SCHEDULE, (512,), 250, frozen=_TOWER)
TINY = Recipe(
    vision=VisionSize(width=16, layers=1, heads=2, patch_size=28, image_size=56),
    language=LanguageSize(width=32, mlp_width=24, layers=2, heads=2),
    vision_phase=PhaseSchedule(steps=4, batch_size=8, learning_rate=2e-3, warmup=1),
    report_phases=(_ONE_IMAGE, FULL_PROMPT),
    n_vocabulary=500,
    n_corpus=300,
)
RECIPES.register("tiny")(TINY)
RECIPES.register("tiny_one_phase")(dataclasses.replace(TINY, report_phases=(_ONE_IMAGE,)))


def tiny_config(recipe="tiny"):
    """A configuration whose `pretrain` section trains by a tiny recipe."""
    config = phantom.get_config()
    config.pretrain.update({"recipe": recipe, "n_held_out": 8, "checkpoint_every": 2})
    return config
