"""The recipe of the phantom gives the architecture that ships with the package."""

import json

from maira_jax.checkpoint.convert import PHANTOM, checkpoint_dir
from maira_jax.model.config import to_hf_dict
from maira_jax.phantom.pretraining.recipe import RECIPES, model_config


def test_the_phantom_recipe_gives_the_shipped_architecture():
    recipe = RECIPES.get("phantom")
    cfg = model_config(recipe.vision, recipe.language, recipe.n_vocabulary)
    assert to_hf_dict(cfg) == json.loads((checkpoint_dir(PHANTOM) / "config.json").read_text())


def test_warmup_is_shorter_than_its_phase():
    for name in RECIPES.names():
        recipe = RECIPES.get(name)
        for schedule in (recipe.vision_phase, *(phase.schedule for phase in recipe.report_phases)):
            assert 0 <= schedule.warmup < schedule.steps
