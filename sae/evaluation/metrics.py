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

Tokens are computed in float32 on the devices, and summed there within a batch so that the sums are exact to 1e-6;
batches are added up in float64 on the host. Variances are taken about the mean of the first batch: they must not be
small differences of large sums.
"""

import collections
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from maira_jax.errors import UserError
from sae import autoencoder, mesh
from sae.evaluation.striped import HeldOutTokens, StripedSae, TokenBatch, token_sum
from sae.kernels import nested

# Features with a density above this are dense.
DENSE = 0.1
_MAX_FVU = 1e6  # the mean alone has 1
# Edges of the density histogram in log10, half a decade apart.
_EDGES = np.arange(-7.0, 0.5, 0.5)
# Batches that may be on their way to a device.
_IN_FLIGHT = 2

Sums = dict[str, jax.Array]


@jax.jit
def _mean(sae: StripedSae, batch: TokenBatch) -> jax.Array:
    """The mean of a batch's activations. [d]"""
    tokens = jnp.where(batch.holds_token()[:, None], batch.x.astype(jnp.float32), 0.0)  # [B, d]
    return lax.with_sharding_constraint(token_sum(tokens) / batch.used, mesh.sharding(sae.on))


@jax.jit
def _sums(sae: StripedSae, batch: TokenBatch, threshold: jax.Array, center: jax.Array) -> Sums:
    """The terms of the metrics, summed over a batch's tokens; `fired [F]` and `threshold` in feature order."""
    stripes = sae.on.shape[mesh.FEATURE]
    limit = mesh.stripe(threshold, stripes) if threshold.ndim else threshold
    params, x, there = sae.params, batch.x.astype(jnp.float32), batch.holds_token()  # x [B, d], there [B]
    f = autoencoder.encode(params, x, limit, sae.top_k)  # [B, F]
    f_of = nested.groups(f, 1, sae.group_sizes, stripes)  # [B, n, F_g / n] each
    w_dec = nested.groups(params["W_dec"], 0, sae.group_sizes, stripes)  # [n, F_g / n, d] each
    levels = nested.reconstructions(f_of, w_dec, params["b_dec"])  # [B, d] per group
    norms = jnp.linalg.norm(x, axis=1) * jnp.linalg.norm(levels[-1], axis=1)  # [B]
    deviations = x - center  # [B, d]

    def total(values: jax.Array) -> jax.Array:
        return token_sum(jnp.where(there.reshape(-1, *(1,) * (values.ndim - 1)), values, 0.0))

    sums = {
        "errors": jnp.stack([total(jnp.square(x - level).sum(1)) for level in levels]),  # [groups]
        "cosine": total((x * levels[-1]).sum(1) / jnp.maximum(norms, 1e-30)),  # []
        "residual": total(x - levels[-1]),  # [d]
        "fired": mesh.unstripe(((f > 0) & there[:, None]).sum(0), stripes),  # [F]
        "square": total(jnp.square(deviations).sum(1)),  # []
        "deviation": total(deviations),  # [d]
    }
    return lax.with_sharding_constraint(sums, mesh.sharding(sae.on))


def of_batch(sae: StripedSae, threshold: jax.Array, batch: TokenBatch) -> Sums:
    """What `summary` takes, for a single batch; can be traced."""
    return _sums(sae, batch, threshold, _mean(sae, batch))


def evaluate(
    sae: StripedSae, threshold: float | np.ndarray, tokens: Sequence[HeldOutTokens]
) -> tuple[dict[str, Any], np.ndarray]:
    """Measures an autoencoder on raw activations.

    Args:
      sae: the autoencoder.
      threshold: one number, or one per feature [F] in feature order.
      tokens: the activations.

    Returns:
      The metrics as plain numbers, and the density of each feature, float64 [n_features].

    Raises:
      UserError: there is no token.
    """
    n = sum(part.n for part in tokens)
    if not n:
        raise UserError("there is no held-out token to measure on: raise harvest.held_out_fraction")
    limit = jax.device_put(np.asarray(threshold, np.float32), mesh.sharding(sae.on))
    totals: dict[str, Any] = {}
    center, pending = None, collections.deque[Sums]()

    def add(sums: Sums) -> None:
        for name, value in sums.items():
            totals[name] = totals.get(name, 0) + np.asarray(value, np.float64)

    for batch in itertools.chain.from_iterable(tokens):
        center = _mean(sae, batch) if center is None else center
        pending.append(_sums(sae, batch, limit, center))
        if len(pending) > _IN_FLIGHT:
            add(pending.popleft())
    for sums in pending:
        add(sums)
    return summary(totals, n, sae.group_sizes)


def summary(sums: Mapping[str, Any], n: int, group_sizes: tuple[int, ...]) -> tuple[dict[str, Any], np.ndarray]:
    """The metrics of `n` tokens and the density of each feature, from the terms summed over all of them.

    Raises:
      UserError: the activations do not vary, or the errors are not finite, so that the figures would mean nothing.
    """
    totals = {name: np.asarray(value, np.float64) for name, value in sums.items()}
    total_variance = max(totals["square"] - np.square(totals["deviation"]).sum() / n, np.finfo(np.float64).tiny)
    if not totals["errors"][-1] < _MAX_FVU * total_variance:
        raise UserError(
            f"the held-out activations have a variance of {total_variance / n:.3g} per token and errors of "
            f"{totals['errors'][-1] / n:.3g}: check that their rows differ, and that the loss in log.jsonl fell"
        )
    residual_variance = totals["errors"][-1] - np.square(totals["residual"]).sum() / n
    density = totals["fired"] / n  # [F]
    histogram, _ = np.histogram(np.log10(density[density > 0]), _EDGES)
    ends = list(itertools.accumulate(group_sizes))
    l0 = [float(totals["fired"][:end].sum() / n) for end in ends]
    measured = {
        "tokens": n,
        "fvu": float(totals["errors"][-1] / total_variance),
        "explained_variance": float(1.0 - residual_variance / total_variance),
        "cosine": float(totals["cosine"] / n),
        "l0": l0[-1],
        "dead": int((density == 0).sum()),
        "dense": int((density > DENSE).sum()),
        "prefixes": [
            {"features": end, "fvu": float(error / total_variance), "l0": active}
            for end, error, active in zip(ends, totals["errors"], l0, strict=True)
        ],
        "density_histogram": {"log10_edges": _EDGES.tolist(), "features": histogram.tolist()},
    }
    return measured, density
