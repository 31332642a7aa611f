"""MAIRA-2: images become tokens of the language model; every site can be read, and edited, in one jitted pass."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import struct

from maira_jax.model import language, projector, vision
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params, Tap
from maira_jax.model.sites import TOWERS, Site


@struct.dataclass
class Edits:
    """A change of one tower's residual stream, a row its own: x + strength * direction at one site.

    All fields are traced: one compiled program serves every site of the tower, every direction and strength.

    site: int32 [batch], the `Site.code` of a site of this tower.
    direction: [batch, d], as wide as the tower's sites.
    strength: float32 [batch], in units of the direction's length; 0 leaves the row as it is.
    mask: bool, the edited positions: [batch, positions] of the input, [batch, images, 1 + patches] in the vision
      tower, [batch, images, patches] in the projector; None edits all. `generate` edits every position that produces
      a token, and of the prompt's others only those in `mask`; None there means none of them.
    """

    site: jax.Array
    direction: jax.Array
    strength: jax.Array
    mask: jax.Array | None = None

    def tap(self, mask: jax.Array) -> Tap:
        """The edit as a function of (x [batch, positions, d], site code), on the positions in `mask`."""
        delta = (self.strength[:, None] * self.direction)[:, None]  # [batch, 1, d]

        def edit(x: jax.Array, code: jax.Array) -> jax.Array:
            here = mask & (self.site == code)[:, None]
            return x + jnp.where(here[..., None], delta, 0).astype(x.dtype)

        return edit

    def tap_images(self, images: int, positions: int) -> Tap:
        """The same for x [batch * images, positions, d], a row's images edited alike where `self.mask` lets them."""
        each = jax.tree.map(lambda leaf: jnp.repeat(leaf, images, axis=0), self.replace(mask=None))  # type: ignore[attr-defined]
        shape = (each.site.shape[0], positions)
        return each.tap(jnp.ones(shape, bool) if self.mask is None else self.mask.reshape(shape))


# Edits by tower; alone they are the language model's.
AllEdits = Edits | Mapping[str, Edits] | None


def edits_of(edits: AllEdits, tower: str) -> Edits | None:
    """The edits of one tower ("vision", "projector" or "language").

    Raises:
      ValueError: `edits` names something that is not a tower.
    """
    by_tower = {"language": edits} if isinstance(edits, Edits) else edits or {}
    if unknown := set(by_tower) - set(TOWERS):
        raise ValueError(f"edits are for {sorted(unknown)}, but the towers are {TOWERS}")
    return by_tower.get(tower)


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
    params: Params,
    cfg: Maira2Config,
    pixels: jax.Array,
    read: tuple[Site, ...] = (),
    *,
    stop: bool = False,
    edits: AllEdits = None,
) -> tuple[jax.Array | None, dict[str, jax.Array]]:
    """Vision tower and projector.

    Args:
      pixels: [batch, images, image_size, image_size, 3].
      read: sites to keep (those of other towers are passed over).
      stop: end the pass at the last site read.
      edits: changes in these two towers (those of other towers are passed over).

    Returns:
      Image features [batch, images * patches, d_model], or None if the pass ends before the projector; and the kept
      activations.
    """
    batch, images = pixels.shape[:2]
    in_tower, after = _of_tower(read, "vision"), _of_tower(read, "projector")
    codes = tuple(site.code for site in in_tower)
    short = stop and not after
    change, change_after = edits_of(edits, "vision"), edits_of(edits, "projector")
    x, kept = vision.forward(
        params["vision"],
        cfg.vision,
        pixels.reshape(batch * images, *pixels.shape[2:]),
        stop=max(codes) if short else None,
        reads=codes,
        edit=None if change is None else change.tap_images(images, 1 + cfg.vision.patches),
    )
    sites = {site.name: kept[site.code] for site in in_tower}
    features = None
    if not short:
        edit = None if change_after is None else change_after.tap_images(images, cfg.vision.patches)
        outputs = projector.forward(params["projector"], cfg, x[:, 1:], edit)
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
    edits: AllEdits = None,
    logits: bool = True,
) -> Output:
    """One pass over whole sequences. With logits=False it ends at the last site read.

    Args:
      tokens: [batch, positions] int32, padded on either side.
      mask: bool [batch, positions], False on padding.
      pixels: [batch, images, image_size, image_size, 3] or None; a row with fewer images leaves the last ones unused.
      read: sites to keep.
      edits: changes in any of the towers, on the positions of their masks.

    Returns:
      Logits (in the parameters' dtype) and the activations read.

    Raises:
      ValueError: a site that depends on images is read, but there are none.
    """
    if not logits and not read:
        raise ValueError("a pass without logits must read a site")
    in_language = _of_tower(read, "language")
    if pixels is None and len(in_language) < len(read):
        raise ValueError("sites of the vision tower and the projector are read, but there are no pixels")
    stop = not logits and not in_language
    features, sites = (None, {}) if pixels is None else see(params, cfg, pixels, read, stop=stop, edits=edits)
    if stop:
        return Output(None, sites)
    causal = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
    codes = tuple(site.code for site in in_language)
    change = edits_of(edits, "language")
    x, kept, _ = language.forward(
        params["language"],
        cfg.text,
        embed(params, cfg, tokens, features),
        positions_of(mask),
        causal[None, None] & mask[:, None, None],
        stop=None if logits else max(codes),
        reads=codes,
        edit=None if change is None else change.tap(mask if change.mask is None else change.mask & mask),
    )
    sites |= {site.name: kept[site.code] for site in in_language}
    return Output(language.logits(params["language"], cfg.text, x) if logits else None, sites)
