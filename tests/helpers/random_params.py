"""Random parameters of a model of any size, and how two of its outputs are compared; without PyTorch."""

import jax
import numpy as np

from maira_jax.model import maira2
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params


def random_params(cfg: Maira2Config) -> Params:
    """float32, every one different from its initial value, scaled so that all parts, images too, sway the logits."""
    rng = np.random.default_rng(0)

    def value(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        mean = 1 if "scale" in path[-1].key else 0
        fan_in = leaf.shape[1 if path[1].key == "layers" else 0]
        std = fan_in**-0.5 if path[-1].key in ("kernel", "lm_head") else 0.2
        return rng.normal(mean, std, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(value, jax.eval_shape(lambda: maira2.init(cfg, jax.random.key(0))))


def relative(ours, theirs) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(np.asarray(ours, np.float32) - theirs).max() / np.abs(theirs).max())
