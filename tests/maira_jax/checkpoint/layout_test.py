"""The table of names against the published checkpoint and the model's own parameters."""

import math

import jax
import numpy as np
from flax import traverse_util

from maira_jax.checkpoint.layout import entries
from maira_jax.model import maira2
from maira_jax.model.config import Maira2Config
from tests.helpers.tiny_model import MAIRA2


def test_the_table_describes_the_real_checkpoint():
    table = entries(Maira2Config.from_dict(MAIRA2, "config.json"))
    assert len(table) == len({entry.name for entry in table}) == 522
    sizes = {prefix: 0 for prefix in ("vision_tower", "multi_modal_projector", "language_model")}
    for entry in table:
        sizes[entry.name.split(".")[0]] += int(np.prod(entry.shape))
    assert sizes == {
        "vision_tower": 86_580_480,
        "multi_modal_projector": 53_493_760,
        "language_model": 6_740_111_360,
    }


def test_the_table_covers_the_parameters_of_the_model():
    cfg = Maira2Config.from_dict(MAIRA2, "config.json")
    shapes = traverse_util.flatten_dict(jax.eval_shape(lambda: maira2.init(cfg, jax.random.key(0))))
    specs = maira2.parameter_specs(cfg)
    assert {path: leaf.shape for path, leaf in shapes.items()} == {path: spec.shape for path, spec in specs.items()}
    assert all(len(spec.shape) == len(spec.axes) for spec in specs.values())
    from_table: dict[tuple[str, ...], int] = {}
    for entry in entries(cfg):
        from_table[entry.path] = from_table.get(entry.path, 0) + math.prod(entry.shape)
    assert {path: math.prod(spec.shape) for path, spec in specs.items()} == from_table
