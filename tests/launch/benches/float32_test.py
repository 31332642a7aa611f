"""No program of a float32 run multiplies float32 matrices at a device's default precision."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.benches.stage_programs import PROGRAMS, Setting
from maira_jax.model.sites import Site
from sae.evaluation import calibrate, loss_recovered
from sae.evaluation.striped import StripedSae, TokenBatch
from sae.training import held_out
from tests.helpers.tiny_model import CFG
from tests.helpers.tiny_setting import setting

D, F, ROWS = CFG.text.hidden_size, 384, 256


def sae_arrays(on: Setting) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
    return {name: on.array(shape, np.float32) for name, shape in shapes.items()}


def evaluation(on: Setting) -> list[jax.stages.Lowered]:
    sae = StripedSae(sae_arrays(on), on.training, (F // 2, F // 2))
    batch = TokenBatch(on.array((ROWS, D), jnp.bfloat16), ROWS)
    bounds = on.array((63,), np.int32)
    return [held_out._measured.lower(sae, batch, None, 9), calibrate._counts.lower(sae, batch, bounds)]


def splice(on: Setting) -> jax.stages.Lowered:
    tokens, mask, pixels = on.prompts(2)
    number, vector = on.array((), np.float32), on.array((D,), np.float32)
    replaced = loss_recovered._Splice(sae_arrays(on), number, number, vector, on.array((), bool))
    site = Site.parse("language.2.resid_post", CFG)
    return loss_recovered._run.lower(on.params(), CFG, site, tokens, mask, pixels, mask, mask, 8, replaced, None)


def lowered(name: str) -> list[jax.stages.Lowered]:
    on = setting()
    others = {"evaluate": evaluation, "splice": lambda on: [splice(on)]}
    return others[name](on) if name in others else [PROGRAMS[name].lower(on, 256 if name == "exemplars" else 8)]


@pytest.mark.parametrize("name", [*PROGRAMS, "evaluate", "splice"])
def test_float32_products_have_the_highest_precision(name):
    lines = [line for program in lowered(name) for line in program.as_text().splitlines()]
    products = [line for line in lines if "dot_general" in line or "stablehlo.convolution" in line]
    wide = [line for line in products if re.search(r": \(tensor<[\dx]*f32>, tensor<[\dx]*f32>\)", line)]
    assert wide
    for line in wide:
        assert line.count("HIGHEST") == 2, line


def test_a_bfloat16_model_keeps_the_default_precision():
    on = setting()
    on.config.model.dtype = "bfloat16"
    text = PROGRAMS["harvest"].lower(on, 8).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products and not any("HIGHEST" in line for line in products)
