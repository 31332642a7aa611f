"""Interventions as an edit of the model: a batch of rows, each with its own."""

from collections.abc import Callable, Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from maira_jax.model import maira2
from maira_jax.model.layers import Hook
from maira_jax.model.sites import Site
from sae.autoencoder import Params, encode
from steer.methods.intervention import Intervention


@struct.dataclass
class TopKEncoder:
    """The encoder of an autoencoder that keeps the k largest features of each token, the same for all rows.

    params: the autoencoder's arrays. threshold: float32 [] or [n_features]. k: static.
    """

    params: Params
    threshold: jax.Array
    k: int = struct.field(pytree_node=False)


@struct.dataclass
class ClampEdits:
    """Features that are set, up to C in each row: sum over c of weight[c] * (target[c] - f_c(x)) * decoder[c] is added.

    f_c(x) is x . encoder[c] + bias[c] where that is above threshold[c], else 0: a feature of an autoencoder, or the
    projection of x on a direction. Where an autoencoder keeps only some features of each token, f_c(x) is what it keeps
    of feature[c]. Every f_c reads the x before the edit.

    encoder_directions, decoder_directions: float32 [batch, C, d].
    bias, threshold, target, weight: float32 [batch, C]; a weight of 0 leaves x alone.
    feature: int32 [batch, C], of `encoder`; -1 for what is none of its features.
    encoder: None where features are not chosen by token.
    """

    encoder_directions: jax.Array
    decoder_directions: jax.Array
    bias: jax.Array
    threshold: jax.Array
    target: jax.Array
    weight: jax.Array
    feature: jax.Array
    encoder: TopKEncoder | None = None

    def delta(self, x: jax.Array) -> jax.Array:
        """What is added to x [batch, positions, d]; float32."""
        wide = x.astype(jnp.float32)
        highest = jax.lax.Precision.HIGHEST
        projected = jnp.einsum("bpd,bcd->bpc", wide, self.encoder_directions, precision=highest)  # [B, P, C]
        read = projected + self.bias[:, None]  # [B, P, C]
        feature = jnp.where(read > self.threshold[:, None], read, 0.0)  # [B, P, C]
        if self.encoder is not None:
            kept = encode(self.encoder.params, wide, self.encoder.threshold, self.encoder.k)  # [B, P, F]
            own = jnp.take_along_axis(kept, self.feature[:, None], axis=-1)  # [B, P, C]
            feature = jnp.where(self.feature[:, None] >= 0, own, feature)  # [B, P, C]
        change = self.weight[:, None] * (self.target[:, None] - feature)  # [B, P, C]
        return jnp.einsum("bpc,bcd->bpd", change, self.decoder_directions, precision=highest)  # [B, P, d]


@struct.dataclass
class SteeringEdits(maira2.Edits):
    """kept * x + strength * direction + what `clamps` adds, at the site of each row.

    All fields are traced: adding a direction, clamping a feature to a value and removing a feature or a direction are
    one program, and so are C of them at once.

    kept: float32 [batch], 0 where the direction replaces x; None where none does.
    """

    clamps: ClampEdits | None = None
    kept: jax.Array | None = None

    @classmethod
    def of(
        cls,
        interventions: Sequence[Intervention],
        strengths: Sequence[float],
        sites: Sequence[Site],
        min_clamps: int = 0,
    ) -> Self:
        """The edit of some rows: row i does interventions[i] at strengths[i].

        The shapes depend on the number of rows, and on the largest number of features that an intervention sets.

        Args:
          interventions: [batch].
          strengths: [batch], in units of each intervention; 0 edits nothing.
          sites: where the residual stream is edited, in one tower. [batch]
          min_clamps: features that there is room for in each row at least, so that what sets fewer, or none, has the
            same shapes.
        """
        lengths = [0.0 if i.clamps else s * i.unit_size for i, s in zip(interventions, strengths, strict=True)]
        replaced = np.array([i.replaces and bool(s) for i, s in zip(interventions, strengths, strict=True)])  # [batch]
        return cls(
            site=jnp.array([site.code for site in sites], jnp.int32),
            direction=jnp.asarray(np.stack([intervention.vector for intervention in interventions])),
            strength=jnp.asarray(lengths, jnp.float32),
            clamps=_clamp_edits(interventions, strengths, min_clamps),
            kept=jnp.asarray(~replaced, jnp.float32) if replaced.any() else None,
        )

    def picked(self, pick: Callable[[jax.Array], jax.Array]) -> Self:
        """See `maira2.Edits`; an encoder is of all rows."""
        if self.clamps is None or self.clamps.encoder is None:
            return super().picked(pick)
        each = self.replace(clamps=self.clamps.replace(encoder=None)).picked(pick)  # type: ignore[attr-defined]
        return each.replace(clamps=each.clamps.replace(encoder=self.clamps.encoder))

    def hook(self, mask: jax.Array) -> Hook:
        """The edit as a function of (x [batch, positions, d], site code), on the positions in `mask`."""
        add, clamps, kept = super().hook(mask), self.clamps, self.kept
        if clamps is None and kept is None:
            return add

        def edit(x: jax.Array, code: jax.Array) -> jax.Array:
            here = (mask & (self.site == code)[:, None])[..., None]  # [B, P, 1]
            base = x if kept is None else jnp.where(here & (kept == 0)[:, None, None], 0, x)  # [B, P, d]
            edited = add(base, code)
            return edited if clamps is None else edited + jnp.where(here, clamps.delta(x), 0).astype(x.dtype)

        return edit


@struct.dataclass
class FunctionEdits(maira2.Edits):
    """x + strength * (function(x) - x) at one site; `direction` is ignored.

    Attributes:
      function: from x [batch, positions, d] to an array of the same shape; static, so each one is compiled once.
    """

    function: Callable[[jax.Array], jax.Array] = struct.field(pytree_node=False, kw_only=True)

    @classmethod
    def of(
        cls, function: Callable[[jax.Array], jax.Array], strengths: Sequence[float], site: Site, d_model: int
    ) -> Self:
        """The edit of one row per strength; a strength of 1 replaces x by function(x), one of 0 leaves x alone."""
        n = len(strengths)
        codes = jnp.full(n, site.code, jnp.int32)
        return cls(codes, jnp.zeros((n, d_model)), jnp.asarray(strengths, jnp.float32), function=function)

    def hook(self, mask: jax.Array) -> Hook:
        """The edit as a function of (x [batch, positions, d], site code), on the positions in `mask`."""

        def edit(x: jax.Array, code: jax.Array) -> jax.Array:
            here = (mask & (self.site == code)[:, None])[..., None]  # [B, P, 1]
            change = self.strength[:, None, None] * (self.function(x) - x)  # [B, P, d]
            return x + jnp.where(here, change, 0).astype(x.dtype)

        return edit


def _clamp_edits(
    interventions: Sequence[Intervention], strengths: Sequence[float], min_clamps: int
) -> ClampEdits | None:
    """The features that each row sets, padded to the largest number of them; None where there is no room for any."""
    max_features = max((len(clamp.bias) for i in interventions for clamp in i.clamps), default=0)
    max_features = max(max_features, min_clamps)
    if not max_features:
        return None
    n, width = len(interventions), len(interventions[0].vector)
    wide = {
        name: np.zeros((n, max_features, width), np.float32) for name in ("encoder_directions", "decoder_directions")
    }
    each = {name: np.zeros((n, max_features), np.float32) for name in ("bias", "threshold", "target", "weight")}
    feature = np.full((n, max_features), -1, np.int32)
    for row, (intervention, strength) in enumerate(zip(interventions, strengths, strict=True)):
        clamp = intervention.clamp_at(strength)
        if clamp is None:
            continue
        features = slice(0, len(clamp.bias))
        for name, array in wide.items():
            array[row, features] = getattr(clamp, name)
        for name in ("bias", "threshold"):
            each[name][row, features] = getattr(clamp, name)
        feature[row, features] = clamp.features
        each["target"][row, features] = strength * clamp.value
        each["weight"][row, features] = 1.0
    arrays = {name: jnp.asarray(array) for name, array in (wide | each).items()}
    return ClampEdits(**arrays, feature=jnp.asarray(feature), encoder=_encoder(interventions))


def _encoder(interventions: Sequence[Intervention]) -> TopKEncoder | None:
    """The encoder that features are read by; None where all are read by themselves."""
    sae = next((clamp.sae for i in interventions for clamp in i.clamps if clamp.sae is not None), None)
    if sae is None:
        return None
    params = {name: jnp.asarray(sae.params[name]) for name in ("W_enc", "b_enc", "b_dec")}
    return TopKEncoder(params, jnp.asarray(sae.threshold, jnp.float32), sae.k)
