"""The projector: linear layers with exact GELU between them, from the vision tower's width to the language model's."""

import jax
import jax.numpy as jnp

from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params, Tap


def init(cfg: Maira2Config, key: jax.Array) -> Params:
    """`linear_<i>`: kernel [d_in, d_model] and bias [d_model]; the first takes d_vision."""
    params: Params = {}
    d_in, d_out = cfg.vision.hidden_size, cfg.text.hidden_size
    for layer, layer_key in enumerate(jax.random.split(key, cfg.projector_n_layers)):
        params[f"linear_{layer}"] = {
            "kernel": jax.random.normal(layer_key, (d_in, d_out)) * (2.0 / d_in) ** 0.5,
            "bias": jnp.zeros((d_out,)),
        }
        d_in = d_out
    return params


def forward(params: Params, cfg: Maira2Config, x: jax.Array, edit: Tap | None = None) -> list[jax.Array]:
    """Every linear layer's output; the last one is the projector's.

    Args:
      x: [n, patches, d_vision].
      edit: changes a linear layer's output, whose index is the site code.

    Returns:
      `projector_n_layers` arrays [n, patches, d_model], each before its GELU.
    """
    outputs: list[jax.Array] = []
    for layer in range(cfg.projector_n_layers):
        x = jax.nn.gelu(x, approximate=False) if layer else x
        linear = params[f"linear_{layer}"]
        x = x @ linear["kernel"] + linear["bias"]
        x = x if edit is None else edit(x, jnp.int32(layer))
        outputs.append(x)
    return outputs
