"""How well an autoencoder describes activations that it was not trained on.

With tokens x_i, their mean m, reconstructions y_i and residuals r_i = x_i - y_i with mean s:

    fvu                  sum |r_i|^2 / sum |x_i - m|^2           fraction of variance unexplained
    explained_variance   1 - sum |r_i - s|^2 / sum |x_i - m|^2   the same without a constant error
    cosine               mean of x_i . y_i / (|x_i| |y_i|)
    l0                   mean number of kept features
    density of a feature share of the tokens that keep it; dead: 0; dense: above 0.1
    prefixes             fvu and l0 of the first group, the first two groups, and so on

Single tokens are computed in float32; sums over tokens and variances in float64.
"""

import functools
import itertools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maira_jax.errors import UserError
from sae import autoencoder
from sae.autoencoder import Sae
from sae.training import loss

DENSE = 0.1
# Edges of the density histogram, half decades of log10.
_EDGES = np.arange(-7.0, 0.5, 0.5)


@functools.partial(jax.jit, static_argnames=("group_sizes", "top_k"))
def _of_batch(
    params: autoencoder.Params, x: jax.Array, threshold: jax.Array, group_sizes: tuple[int, ...], top_k: int | None
) -> dict[str, jax.Array]:
    """Sums over features, a row each token; and over tokens, only of counts and residuals."""
    f = autoencoder.encode(params, x, threshold, top_k)
    levels = loss.nested_reconstructions(f, params["W_dec"], params["b_dec"], group_sizes, stripes=1)
    kept = f > 0
    ends = list(itertools.accumulate(group_sizes))
    y = levels[-1]
    norms = jnp.linalg.norm(x, axis=1) * jnp.linalg.norm(y, axis=1)
    return {
        "errors": jnp.stack([jnp.square(x - level).sum(1) for level in levels]),  # [groups, batch]
        "l0": jnp.stack([kept[:, :end].sum(1) for end in ends]),  # [groups, batch]
        "cosine": (x * y).sum(1) / jnp.maximum(norms, 1e-30),  # [batch]
        "residual": (x - y).sum(0),  # [d]
        "fired": kept.sum(0),  # [features]
    }


def evaluate(sae: Sae, batches: Iterable[np.ndarray]) -> tuple[dict[str, Any], np.ndarray]:
    """Measures `sae` on raw activations.

    Args:
      sae: the autoencoder.
      batches: float32 [batch, d_model] each.

    Returns:
      The metrics as plain numbers, and the density of each feature, float64 [n_features].

    Raises:
      UserError: there is no token.
    """
    totals: dict[str, Any] = {"errors": 0.0, "l0": 0.0, "cosine": 0.0, "residual": 0.0, "fired": 0}
    n, center = 0, np.asarray(sae.params["b_dec"], np.float64)
    # About a fixed centre near the mean, so that the variance is not a small difference of large sums.
    around, squares = np.zeros(sae.d_model), 0.0
    threshold, top_k = jnp.asarray(sae.threshold, jnp.float32), sae.k if sae.per_token else None
    for x in batches:
        sums = _of_batch(sae.params, x, threshold, sae.group_sizes, top_k)
        host = {name: np.asarray(value, np.float64) for name, value in sums.items()}
        for name in ("errors", "l0", "cosine"):
            totals[name] += host[name].sum(-1)
        totals["residual"] += host["residual"]
        totals["fired"] += host["fired"].astype(np.int64)
        deviations = x.astype(np.float64) - center
        around += deviations.sum(0)
        squares += float(np.square(deviations).sum())
        n += len(x)
    if not n:
        raise UserError("there is no held-out token to measure on: raise harvest.held_out_fraction")
    variance = max(squares - float(np.square(around).sum()) / n, np.finfo(np.float64).tiny)
    spread = float(totals["errors"][-1] - np.square(totals["residual"]).sum() / n)
    density = totals["fired"] / n
    histogram, _ = np.histogram(np.log10(density[density > 0]), _EDGES)
    metrics = {
        "tokens": n,
        "fvu": float(totals["errors"][-1] / variance),
        "explained_variance": 1.0 - spread / variance,
        "cosine": float(totals["cosine"] / n),
        "l0": float(totals["l0"][-1] / n),
        "dead": int((density == 0).sum()),
        "dense": int((density > DENSE).sum()),
        "prefixes": [
            {"features": end, "fvu": float(error / variance), "l0": float(l0 / n)}
            for end, error, l0 in zip(
                itertools.accumulate(sae.group_sizes), totals["errors"], totals["l0"], strict=True
            )
        ],
        "density_histogram": {"log10_edges": _EDGES.tolist(), "features": histogram.tolist()},
    }
    return metrics, density
