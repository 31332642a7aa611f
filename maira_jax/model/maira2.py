"""MAIRA-2: images become tokens of the language model; every site can be read, and edited, in one jitted pass."""

import jax
import jax.numpy as jnp
from flax import struct

from maira_jax.model import language, projector, vision
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params, Tap
from maira_jax.model.sites import Site


@struct.dataclass
class Edits:
    """A change of the language model's residual stream, a row its own: x + strength * direction at one site.

    All fields are traced: one compiled program serves every site, direction and strength.

    site: int32 [batch], the `Site.code` of a language site.
    direction: [batch, d_model].
    strength: float32 [batch], in units of the direction's length.
    mask: bool [batch, positions], the edited positions of the input. `generate` edits every position that
      produces a token, and of the prompt's others only those in `mask`; None there means none of them.
    """

    site: jax.Array
    direction: jax.Array
    strength: jax.Array
    mask: jax.Array | None = None

    def tap(self, mask: jax.Array) -> Tap:
        """The edit as a function of (x [batch, positions, d_model], site code), on the positions in `mask`."""
        delta = (self.strength[:, None] * self.direction)[:, None]  # [batch, 1, d_model]

        def edit(x: jax.Array, code: jax.Array) -> jax.Array:
            here = mask & (self.site == code)[:, None]
            return x + jnp.where(here[..., None], delta, 0).astype(x.dtype)

        return edit


@struct.dataclass
class Output:
    """logits: [batch, positions, vocab] or None. sites: by name, vision [batch, images, 1 + patches, d_vision],
    projector [batch, images, patches, d_model], language [batch, positions, d_model]."""

    logits: jax.Array | None
    sites: dict[str, jax.Array]


def init(cfg: Maira2Config, key: jax.Array) -> Params:
    """Random float32 parameters."""
    vision_key, projector_key, language_key = jax.random.split(key, 3)
    return {
        "vision": vision.init(cfg.vision, vision_key),
        "projector": projector.init(cfg, projector_key),
        "language": language.init(cfg.text, language_key),
    }


def positions_of(mask: jax.Array) -> jax.Array:
    """Each token's position in its row, padding on the left not counted. mask: bool [batch, positions]."""
    return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)


def _of_tower(read: tuple[Site, ...], tower: str) -> tuple[Site, ...]:
    return tuple(site for site in read if site.tower == tower)


def see(
    params: Params, cfg: Maira2Config, pixels: jax.Array, read: tuple[Site, ...] = (), stop: bool = False
) -> tuple[jax.Array | None, dict[str, jax.Array]]:
    """Vision tower and projector.

    Args:
      pixels: [batch, images, image_size, image_size, 3].
      read: sites to keep (those of other towers are passed over).
      stop: end the pass at the last site read; there are no image features then.

    Returns:
      Image features [batch, images * patches, d_model] or None, and the kept activations.
    """
    batch, images = pixels.shape[:2]
    in_tower, after = _of_tower(read, "vision"), _of_tower(read, "projector")
    last = 2 * cfg.vision.num_hidden_layers + 1
    in_blocks = tuple(site for site in in_tower if site.code < last)
    whole = not stop or bool(after) or len(in_blocks) < len(in_tower)
    n_layers = None if whole else max(site.layers for site in in_blocks)
    flat = pixels.reshape(batch * images, *pixels.shape[2:])
    codes = tuple(site.code for site in in_blocks)
    x, kept = vision.forward(params["vision"], cfg.vision, flat, codes, n_layers)
    sites = {site.name: kept[slot] for slot, site in enumerate(in_blocks)}
    features = None
    if whole:
        x = vision.output(params["vision"], cfg.vision, x)
        sites |= {site.name: x for site in in_tower if site.code == last}
        if after or not stop:
            outputs = projector.forward(params["projector"], cfg, x[:, 1:])
            sites |= {site.name: outputs[site.code] for site in after}
            features = outputs[-1].reshape(batch, images * cfg.patches_per_image, -1)
    return features, {name: value.reshape(batch, images, *value.shape[1:]) for name, value in sites.items()}


def embed(params: Params, cfg: Maira2Config, tokens: jax.Array, features: jax.Array | None) -> jax.Array:
    """Token embeddings, with the image tokens' replaced by image features in order.

    Args:
      tokens: [batch, positions] int32; a row's n-th image token takes the row's n-th feature.
      features: [batch, images * patches, d_model] or None.

    Returns:
      [batch, positions, d_model].
    """
    x = params["language"]["embed"][tokens]
    if features is None:
        return x
    is_image = tokens == cfg.image_token_id
    index = jnp.maximum(jnp.cumsum(is_image, axis=1) - 1, 0)
    placed = jnp.take_along_axis(features, index[..., None], axis=1, mode="clip")
    return jnp.where(is_image[..., None], placed.astype(x.dtype), x)


def forward(
    params: Params,
    cfg: Maira2Config,
    tokens: jax.Array,
    mask: jax.Array,
    pixels: jax.Array | None,
    *,
    read: tuple[Site, ...] = (),
    edits: Edits | None = None,
    logits: bool = True,
) -> Output:
    """One pass over whole sequences. With logits=False it ends at the last site read.

    Args:
      tokens: [batch, positions] int32, padded on either side.
      mask: bool [batch, positions], False on padding.
      pixels: [batch, images, image_size, image_size, 3] or None; a row with fewer images leaves the last ones unused.
      read: sites to keep.
      edits: changes on the positions of `edits.mask`.

    Returns:
      Logits (in the parameters' dtype) and the activations read.
    """
    in_language = _of_tower(read, "language")
    stop = not logits and not in_language
    features, sites = (None, {}) if pixels is None else see(params, cfg, pixels, read, stop)
    if stop:
        return Output(None, sites)
    x = embed(params, cfg, tokens, features)
    causal = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
    x, kept, _ = language.forward(
        params["language"],
        cfg.text,
        x,
        positions_of(mask),
        causal[None, None] & mask[:, None, None],
        n_layers=None if logits else max(site.layers for site in in_language),
        reads=tuple(site.code for site in in_language),
        edit=None if edits is None else edits.tap(mask if edits.mask is None else edits.mask & mask),
    )
    sites |= {site.name: kept[slot] for slot, site in enumerate(in_language)}
    return Output(language.logits(params["language"], cfg.text, x) if logits else None, sites)
