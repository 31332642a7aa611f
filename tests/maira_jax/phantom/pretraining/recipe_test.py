"""The recipe of the phantom gives the architecture that ships with the package."""

import dataclasses
import json

import pytest

from maira_jax.checkpoint.convert import PHANTOM, checkpoint_dir
from maira_jax.model.config import to_hf_dict
from maira_jax.phantom.pretraining.recipe import RECIPES, Task, TaskBatch, model_config


def test_the_phantom_recipe_gives_the_shipped_architecture():
    recipe = RECIPES.get("phantom")
    cfg = model_config(recipe.vision, recipe.language, recipe.n_vocabulary)
    assert to_hf_dict(cfg) == json.loads((checkpoint_dir(PHANTOM) / "config.json").read_text())


def test_warmup_is_shorter_than_its_phase():
    for name in RECIPES.names():
        recipe = RECIPES.get(name)
        for schedule in (recipe.vision_phase, *(phase.schedule for phase in recipe.report_phases)):
            assert 0 <= schedule.warmup < schedule.steps


def test_a_grounded_report_is_not_asked_for_without_instructions():
    phase = RECIPES.get("phantom").report_phases[0]
    assert phase.bare_prompt
    with pytest.raises(ValueError, match="one_image are bare"):
        dataclasses.replace(phase, further=(TaskBatch(Task.GROUNDED_REPORT, 2, (400,), 200),))
    assert dataclasses.replace(phase, further=(TaskBatch(Task.LOCATION, 2, (400,), 200),)).batches[1].n_rows == 2
