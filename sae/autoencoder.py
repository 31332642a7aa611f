"""Parameters of a sparse autoencoder: initialisation, encoding, decoding.

The parameters are a plain dict of float32 arrays:
`W_enc [d_model, n_features]`, `b_enc [n_features]`, `W_dec [n_features, d_model]`, `b_dec [d_model]`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Sae:
    """A trained autoencoder that takes raw activations (any normalisation is folded in).

    Attributes:
      params: the four arrays, float32.
      threshold: features above it are kept; a negative one keeps every positive feature. Imported autoencoders may
        have one threshold per feature, float32 [n_features].
      k: the mean number of kept features per token that it was trained for.
      group_sizes: features of each nested group, in feature order.
      meta: where it comes from: site, checkpoint, normalisation factor, training config.
      per_token: of the features above the threshold, only the k largest of each token are kept; see `top_k`.
    """

    params: Params
    threshold: float | np.ndarray
    k: int
    group_sizes: tuple[int, ...]
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    per_token: bool = False

    @property
    def d_model(self) -> int:
        """Width of the activations."""
        return int(self.params["W_enc"].shape[0])

    @property
    def n_features(self) -> int:
        """Number of features, over all groups."""
        return int(self.params["W_enc"].shape[1])

    @property
    def top_k(self) -> int | None:
        """The maximum number of kept features of a token; None: all that are above the threshold."""
        return self.k if self.per_token else None

    def encode(self, x: jax.Array) -> jax.Array:
        """Features of raw activations, `[..., d_model] -> [..., n_features]`."""
        return encode(self.params, x, self.threshold, self.top_k)

    def decode(self, f: jax.Array) -> jax.Array:
        """Raw activations of features, `[..., n_features] -> [..., d_model]`."""
        return decode(self.params, f)


def row_norms(w_dec: jax.Array) -> jax.Array:
    """The norm of each row of `w_dec [F, d]` plus the smallest step, which keeps quotients by it finite. [F, 1]"""
    return jnp.linalg.norm(w_dec, axis=1, keepdims=True) + jnp.finfo(w_dec.dtype).eps


def unit_rows(w_dec: jax.Array) -> jax.Array:
    """Scales each row to norm 1; an all-zero row stays."""
    return w_dec / row_norms(w_dec)


def init(key: jax.Array, d_model: int, n_features: int, b_dec: jax.Array) -> Params:
    """Random unit decoder rows, the encoder their transpose, `b_dec [d_model]` as given.

    Entries are uniform: Kaiming-uniform rows, whose bound the normalisation removes.
    """
    w_dec = unit_rows(jax.random.uniform(key, (n_features, d_model), jnp.float32, -1.0, 1.0))
    return {
        "W_enc": w_dec.T,
        "b_enc": jnp.zeros(n_features, jnp.float32),
        "W_dec": w_dec,
        "b_dec": b_dec.astype(jnp.float32),
    }


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    # Left alone, a GPU rounds float32 factors to 10 bits and a TPU to 7.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def pre_activations(params: Params, x: jax.Array) -> jax.Array:
    """`(x - b_dec) W_enc + b_enc`, `[..., d_model] -> [..., n_features]`."""
    return _product(x - params["b_dec"], params["W_enc"]) + params["b_enc"]


@jax.named_scope("encode")
def encode(
    params: Params, x: jax.Array, threshold: float | np.ndarray | jax.Array, top_k: int | None = None
) -> jax.Array:
    """Positive pre-activations above `threshold`, `[..., d_model] -> [..., n_features]`.

    `threshold` is one number or one per feature; with `top_k`, at most that many of each token are kept, the largest.
    """
    z = jax.nn.relu(pre_activations(params, x))  # [..., F]
    z = jnp.where(z > threshold, z, 0.0)  # [..., F]
    if top_k is None:
        return z
    values, indices = jax.lax.top_k(z, top_k)  # [..., top_k]
    return jnp.put_along_axis(jnp.zeros_like(z), indices, values, axis=-1, inplace=False)


@jax.named_scope("decode")
def decode(params: Params, f: jax.Array) -> jax.Array:
    """`f W_dec + b_dec`, `[..., n_features] -> [..., d_model]`."""
    return _product(f, params["W_dec"]) + params["b_dec"]


def geometric_median(points: jax.Array, iterations: int = 100, tolerance: float = 1e-5) -> jax.Array:
    """The point with the smallest summed distance to `points [n, d]`, by Weiszfeld's iteration from the mean. [d]

    Stops when a step is shorter than `tolerance`. A point that equals the guess counts with a very large but
    finite weight.
    """

    def unfinished(carry: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        _, moved, i = carry
        return (moved >= tolerance) & (i < iterations)

    def improve(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        guess, _, i = carry
        weights = 1.0 / jnp.maximum(jnp.linalg.norm(points - guess, axis=1), 1e-12)  # [n]
        better = _product(weights / weights.sum(), points)  # [d]
        return better, jnp.linalg.norm(better - guess), i + 1

    start = (points.mean(0), jnp.array(jnp.inf, points.dtype), jnp.array(0))
    return jax.lax.while_loop(unfinished, improve, start)[0]


def scale_up(params: Mapping[str, Any], factor: Any) -> dict[str, Any]:
    """The parameters that take and give activations `factor` times as large: only the biases change."""
    return dict(params) | {name: params[name] * factor for name in ("b_enc", "b_dec")}


def fold(
    params: Mapping[str, Any], threshold: float | np.ndarray, factor: float
) -> tuple[dict[str, np.ndarray], float | np.ndarray]:
    """Folds `x / factor` into an autoencoder of normalised activations, so that it takes raw ones.

    Only the biases and the threshold change, so the decoder rows keep norm 1 and features come out in raw units.
    A negative threshold ("keep everything") stays as it is.
    """
    scale = np.float32(factor)
    folded = scale_up({name: np.asarray(value, np.float32) for name, value in params.items()}, scale)
    limits = np.asarray(threshold, np.float32)
    limits = np.where(limits >= 0, limits * scale, limits)
    return folded, limits if limits.ndim else float(limits)
