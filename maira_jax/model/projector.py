"""The projector: linear layers with exact GELU between them, from the vision tower's width to the language model's."""

import jax
import jax.numpy as jnp
from flax import nnx

from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Hook, NormalLinear, Params, exact_float32


class Projector(nnx.Module):
    """The parameters of the projector, `linear_<i>`; the first layer takes the vision tower's width."""

    def __init__(self, cfg: Maira2Config, key: jax.Array):
        d_in, d_out, axis = cfg.vision.hidden_size, cfg.text.hidden_size, "vision_embed"
        for layer, layer_key in enumerate(jax.random.split(key, cfg.projector_n_layers)):
            stddev = (2.0 / d_in) ** 0.5
            setattr(self, f"linear_{layer}", NormalLinear(d_in, d_out, (axis, "embed"), stddev, layer_key))
            d_in, axis = d_out, "embed"


@exact_float32
@jax.named_scope("projector")
def forward(params: Params, cfg: Maira2Config, x: jax.Array, hook: Hook | None = None) -> list[jax.Array]:
    """Every linear layer's output; the last one is the projector's.

    Args:
      x: [n, patches, d_vision].
      hook: changes a linear layer's output, whose index is the site code.

    Returns:
      `projector_n_layers` arrays [n, patches, d_model], each before its GELU.
    """
    outputs: list[jax.Array] = []
    for layer in range(cfg.projector_n_layers):
        x = jax.nn.gelu(x, approximate=False) if layer else x  # [B, P, D_in]
        linear = params[f"linear_{layer}"]
        x = x @ linear["kernel"] + linear["bias"]  # [B, P, D]
        x = x if hook is None else hook(x, jnp.int32(layer))
        outputs.append(x)
    return outputs
