"""MAIRA-2: images become tokens of the language model; every site can be read, and edited, in one jitted pass."""

import functools
from collections.abc import Callable, Mapping
from typing import Self

import jax
import jax.numpy as jnp
from flax import nnx, struct

from maira_jax.model import language, layers, projector, vision
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Hook, ParameterPath, ParameterSpec, Params
from maira_jax.model.sites import TOWERS, Site


@struct.dataclass
class Edits:
    """A change of one tower's residual stream, separate for each row: x + strength * direction at one site.

    All fields are traced: one compiled program serves every site of the tower, every direction and strength.

    Attributes:
      site: int32 [batch], the `Site.code` of a site of this tower.
      direction: [batch, d], as wide as the tower's sites.
      strength: float32 [batch], in units of the direction's length; 0 leaves the row as it is.
      mask: bool, the edited positions: [batch, positions] of the input, [batch, images, 1 + patches] in the vision
        tower, [batch, images, patches] in the projector; None edits all. `generate` has an argument of its own for
        the tokens that it writes.
    """

    site: jax.Array
    direction: jax.Array
    strength: jax.Array
    mask: jax.Array | None = None

    def hook(self, mask: jax.Array) -> Hook:
        """The edit as a function of (x [batch, positions, d], site code), on the positions in `mask`."""
        delta = (self.strength[:, None] * self.direction)[:, None]  # [batch, 1, d]

        def edit(x: jax.Array, code: jax.Array) -> jax.Array:
            here = mask & (self.site == code)[:, None]  # [batch, positions]
            return x + jnp.where(here[..., None], delta, 0).astype(x.dtype)

        return edit

    def picked(self, pick: Callable[[jax.Array], jax.Array]) -> Self:
        """The edits of other rows, which `pick` takes of each array [batch, ...]."""
        return jax.tree.map(pick, self)

    def image_hook(self, images: int, positions: int) -> Hook:
        """The same for x [batch * images, positions, d]: all images of a row alike, where `self.mask` lets them."""
        every = self.replace(mask=None)  # type: ignore[attr-defined]
        each = every.picked(lambda leaf: jnp.repeat(leaf, images, axis=0))
        shape = (each.site.shape[0], positions)
        return each.hook(jnp.ones(shape, bool) if self.mask is None else self.mask.reshape(shape))


# An edit of one tower: as data, or as a function of a residual stream and the code of the site it is at.
TowerEdit = Edits | Hook
# Edits by tower; one alone is the language model's.
AllEdits = TowerEdit | Mapping[str, TowerEdit] | None


def edits_of(edits: AllEdits, tower: str) -> TowerEdit | None:
    """The edits of one tower ("vision", "projector" or "language").

    Raises:
      ValueError: `edits` names something that is not a tower.
    """
    by_tower = edits if isinstance(edits, Mapping) else {} if edits is None else {"language": edits}
    if unknown := set(by_tower) - set(TOWERS):
        raise ValueError(f"edits are for {sorted(unknown)}, but the towers are {TOWERS}")
    return by_tower.get(tower)


def language_hook(edits: AllEdits, mask: jax.Array) -> Hook | None:
    """The edit of the language model, no position of `mask` [batch, positions] that is False."""
    change = edits_of(edits, "language")
    if isinstance(change, Edits):
        return change.hook(mask if change.mask is None else change.mask & mask)
    return change


def _image_hook(edits: AllEdits, tower: str, images: int, positions: int) -> Hook | None:
    change = edits_of(edits, tower)
    return change.image_hook(images, positions) if isinstance(change, Edits) else change


@struct.dataclass
class Output:
    """logits: [batch, positions, vocab] or None. sites: by name, vision [batch, images, 1 + patches, d_vision],
    projector [batch, images, patches, d_model], language [batch, positions, d_model]."""

    logits: jax.Array | None
    sites: dict[str, jax.Array]


class Maira2(nnx.Module):
    """The parameters of the whole model."""

    def __init__(self, cfg: Maira2Config, key: jax.Array):
        vision_key, projector_key, language_key = jax.random.split(key, 3)
        self.vision = vision.VisionTower(cfg.vision, vision_key)
        self.projector = projector.Projector(cfg, projector_key)
        self.language = language.LanguageModel(cfg.text, language_key)


def unstacked(params: Params) -> Params:
    """The model with unstacked language layers, as prefill and decoding take it: see `layers.unstack`."""
    language = params["language"]
    if isinstance(language["layers"], tuple):
        return params
    return params | {"language": language | {"layers": layers.unstack(language["layers"])}}


def init(cfg: Maira2Config, key: jax.Array) -> Params:
    """Random float32 parameters."""
    return layers.init(Maira2, cfg, key)


@functools.cache
def parameter_specs(cfg: Maira2Config) -> Mapping[ParameterPath, ParameterSpec]:
    """Shape and logical axes of every parameter, by the keys that lead to it in `init`'s nested dict."""
    return layers.parameter_specs(Maira2, cfg)


def positions_of(mask: jax.Array) -> jax.Array:
    """Each token's position in its row. mask: bool [batch, positions]."""
    return jnp.broadcast_to(jnp.arange(mask.shape[1], dtype=jnp.int32), mask.shape)


def last_position(mask: jax.Array) -> jax.Array:
    """The position of each row's last token, int32 [batch]. mask: bool [batch, positions]."""
    return jnp.sum(mask, axis=1, dtype=jnp.int32) - 1


def last_positions(mask: jax.Array, n: int) -> jax.Array:
    """The positions of each row's last n tokens, int32 [batch, n]; 0 in place of those that a shorter row has not."""
    return jnp.maximum(last_position(mask)[:, None] + jnp.arange(1 - n, 1), 0)


def before(positions: jax.Array, mask: jax.Array) -> jax.Array:
    """Which positions are before a given one of each row, int32 [batch]: bool, of the shape of `mask`."""
    return jnp.arange(mask.shape[1]) < positions[:, None]


def at_positions(x: jax.Array, positions: jax.Array) -> jax.Array:
    """x [batch, positions, d] at some positions of each row, int32 [batch, n]: [batch, n, d]."""
    return jnp.take_along_axis(x, positions[..., None], axis=1)


def _of_tower(read: tuple[Site, ...], tower: str) -> tuple[Site, ...]:
    return tuple(site for site in read if site.tower == tower)


def encode_images(
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
      edits: see `forward`; those of other towers are passed over.

    Returns:
      Image features [batch, images * patches, d_model], or None if the pass ends before the projector; and the kept
      activations.
    """
    batch, images = pixels.shape[:2]
    in_tower, after = _of_tower(read, "vision"), _of_tower(read, "projector")
    codes = tuple(site.code for site in in_tower)
    short = stop and not after
    x, kept = vision.forward(
        params["vision"],
        cfg.vision,
        pixels.reshape(batch * images, *pixels.shape[2:]),
        stop=max(codes) if short else None,
        reads=codes,
        hook=_image_hook(edits, "vision", images, 1 + cfg.vision.patches),
    )  # [batch * images, 1 + patches, d_vision]
    sites = {site.name: kept[site.code] for site in in_tower}
    features = None
    if not short:
        hook = _image_hook(edits, "projector", images, cfg.vision.patches)
        outputs = projector.forward(params["projector"], cfg, x[:, 1:], hook)  # [batch * images, patches, d_model] each
        sites |= {site.name: outputs[site.code] for site in after}
        features = outputs[-1].reshape(batch, images * cfg.patches_per_image, -1)
    return features, {name: value.reshape(batch, images, *value.shape[1:]) for name, value in sites.items()}


def encode_shared_images(params: Params, cfg: Maira2Config, pixels: jax.Array, images: jax.Array) -> jax.Array:
    """Image features of rows that may share images, each of which is encoded once.

    Args:
      pixels: [different images, image_size, image_size, 3].
      images: for each row's images their numbers in `pixels`, int32 [batch, images].

    Returns:
      [batch, images * patches, d_model].
    """
    features, _ = encode_images(params, cfg, pixels[None])  # [1, different images * patches, D]
    assert features is not None
    features = features.reshape(len(pixels), cfg.patches_per_image, -1)
    return features[images].reshape(len(images), images.shape[1] * cfg.patches_per_image, -1)


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
    features: jax.Array | None = None,
) -> Output:
    """One pass over whole sequences. With logits=False it ends at the last site read.

    Args:
      tokens: [batch, positions] int32, padded on the right.
      mask: bool [batch, positions], False on padding.
      pixels: [batch, images, image_size, image_size, 3] or None; a row with fewer images leaves the last ones unused.
      read: sites to keep.
      edits: changes in any of the towers: `Edits`, on the positions of their masks, or a function (x, site code) -> x,
        called at every site of its tower with x [batch, positions, d_model], or [batch * images, 1 + patches, d_vision]
        in the vision tower and [batch * images, patches, d_model] in the projector.
      features: image features that have been computed, [batch, images * patches, d_model]; without `pixels` then.

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
    sites: dict[str, jax.Array] = {}
    if pixels is not None:
        features, sites = encode_images(params, cfg, pixels, read, stop=stop, edits=edits)
    if stop:
        return Output(None, sites)
    codes = tuple(site.code for site in in_language)
    x, kept, _ = language.forward(
        params["language"],
        cfg.text,
        embed(params, cfg, tokens, features),
        positions_of(mask),
        last_position(mask) + 1,
        stop=None if logits else max(codes),
        reads=codes,
        hook=language_hook(edits, mask),
    )  # [batch, positions, d_model]
    sites |= {site.name: kept[site.code] for site in in_language}
    return Output(language.logits(params["language"], cfg.text, x) if logits else None, sites)
