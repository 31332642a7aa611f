"""How well an autoencoder describes activations that it was not trained on.

With tokens x_i, their mean m, reconstructions y_i and residuals r_i = x_i - y_i with mean s:

    fvu                  sum |r_i|^2 / sum |x_i - m|^2           fraction of variance unexplained
    explained_variance   1 - sum |r_i - s|^2 / sum |x_i - m|^2   the same without a constant error
    cosine               mean of x_i . y_i / (|x_i| |y_i|)
    l0                   mean number of active features per token
    density of a feature fraction of the tokens on which it is active; dead: 0; dense: above 0.1
    prefixes             fvu and l0 of the first group, the first two groups, and so on

Here a feature is dead if no held-out token activates it; in training (`sae.training.trainer`) it is dead if it has not
been selected for any of the last `train.dead_tokens` training tokens.

Each token is computed in float32; sums over tokens and variances in float64.
"""

import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from maira_jax.errors import UserError
from sae import autoencoder
from sae.autoencoder import Sae

# Features with a density above this are dense.
DENSE = 0.1
# Edges of the density histogram in log10, half a decade apart.
_EDGES = np.arange(-7.0, 0.5, 0.5)


def _nested_reconstructions(params: autoencoder.Params, f: jax.Array, group_sizes: tuple[int, ...]) -> list[jax.Array]:
    """The reconstructions [B, d] of features `f [B, F]` from the first group, the first two groups, and so on."""
    reconstruction, levels = params["b_dec"], []
    for start, end in itertools.pairwise([0, *itertools.accumulate(group_sizes)]):
        group = jnp.matmul(f[:, start:end], params["W_dec"][start:end], precision=lax.Precision.HIGHEST)
        reconstruction = reconstruction + group  # [B, d]
        levels.append(reconstruction)
    return levels


@functools.partial(jax.jit, static_argnames=("group_sizes", "top_k"))
def _of_batch(
    params: autoencoder.Params, x: jax.Array, threshold: jax.Array, group_sizes: tuple[int, ...], top_k: int | None
) -> dict[str, jax.Array]:
    """The terms of the metrics for activations `x [B, d]`: per token, except for counts and the summed residual."""
    f = autoencoder.encode(params, x, threshold, top_k)  # [B, F]
    levels = _nested_reconstructions(params, f, group_sizes)  # [B, d] per group
    active, y = f > 0, levels[-1]
    norms = jnp.linalg.norm(x, axis=1) * jnp.linalg.norm(y, axis=1)  # [B]
    return {
        "errors": jnp.stack([jnp.square(x - level).sum(1) for level in levels]),  # [groups, B]
        "l0": jnp.stack([active[:, :end].sum(1) for end in itertools.accumulate(group_sizes)]),  # [groups, B]
        "cosine": (x * y).sum(1) / jnp.maximum(norms, 1e-30),  # [B]
        "residual": (x - y).sum(0),  # [d]
        "fired": active.sum(0),  # [F]
    }


def evaluate(sae: Sae, batches: Iterable[np.ndarray]) -> tuple[dict[str, Any], np.ndarray]:
    """Measures `sae` on raw activations.

    Args:
      sae: the autoencoder.
      batches: the activations in batches, float32 [batch, d_model] each.

    Returns:
      The metrics as plain numbers, and the density of each feature, float64 [n_features].

    Raises:
      UserError: there is no token.
    """
    totals: dict[str, Any] = {"errors": 0.0, "l0": 0.0, "cosine": 0.0, "residual": 0.0, "fired": 0}
    # Variances are taken about a fixed centre near the mean: they must not be small differences of large sums.
    center = np.asarray(sae.params["b_dec"], np.float64)  # [d]
    n, deviation, square = 0, np.zeros(sae.d_model), 0.0
    for x in batches:
        terms = _of_batch(sae.params, x, jnp.asarray(sae.threshold, jnp.float32), sae.group_sizes, sae.top_k)
        host = {name: np.asarray(value, np.float64) for name, value in terms.items()}
        for name in ("errors", "l0", "cosine"):
            totals[name] += host[name].sum(-1)
        totals["residual"] += host["residual"]
        totals["fired"] += host["fired"].astype(np.int64)
        deviations = x.astype(np.float64) - center  # [B, d]
        deviation += deviations.sum(0)
        square += float(np.square(deviations).sum())
        n += len(x)
    if not n:
        raise UserError("there is no held-out token to measure on: raise harvest.held_out_fraction")
    total_variance = max(square - float(np.square(deviation).sum()) / n, np.finfo(np.float64).tiny)
    density = totals["fired"] / n  # [F]
    return _metrics(totals, n, total_variance, density, sae.group_sizes), density


def _metrics(
    totals: Mapping[str, Any], n: int, total_variance: float, density: np.ndarray, group_sizes: tuple[int, ...]
) -> dict[str, Any]:
    """The metrics of `n` tokens, from the terms of `_of_batch` summed over all of them."""
    residual_variance = float(totals["errors"][-1] - np.square(totals["residual"]).sum() / n)
    histogram, _ = np.histogram(np.log10(density[density > 0]), _EDGES)
    prefixes = zip(itertools.accumulate(group_sizes), totals["errors"], totals["l0"], strict=True)
    return {
        "tokens": n,
        "fvu": float(totals["errors"][-1] / total_variance),
        "explained_variance": 1.0 - residual_variance / total_variance,
        "cosine": float(totals["cosine"] / n),
        "l0": float(totals["l0"][-1] / n),
        "dead": int((density == 0).sum()),
        "dense": int((density > DENSE).sum()),
        "prefixes": [
            {"features": end, "fvu": float(error / total_variance), "l0": float(l0 / n)} for end, error, l0 in prefixes
        ],
        "density_histogram": {"log10_edges": _EDGES.tolist(), "features": histogram.tolist()},
    }
