"""MAIRA-2's architecture with random weights, in the sizes that benchmarks run."""

import functools
import math
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from maira_jax.checkpoint import convert
from maira_jax.errors import UserError
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model import maira2, sharding
from maira_jax.model.config import Maira2Config, TextConfig, VisionConfig, to_hf_dict
from maira_jax.model.int8 import Int8Kernel, Weights
from maira_jax.model.layers import ParameterPath, Params
from maira_jax.model.sites import Site
from maira_jax.run import files

# (vision: width, layers, heads, patch, image), (text: width, MLP, layers, heads, vocabulary)
SIZES = {
    "phantom": ((128, 4, 4, 28, 112), (128, 352, 6, 4, 1167)),
    "100m": ((384, 6, 6, 14, 224), (768, 2048, 8, 12, 32207)),
    "maira2": ((768, 12, 12, 14, 518), (4096, 11008, 32, 32, 32207)),
}
SMALL = ("phantom", "100m")  # those that a computer without an accelerator runs
DTYPES = ("float32", "bfloat16")
_STDDEV = 0.02
_AT_ONCE = 1 << 26  # values that are drawn at a time
_TOKENIZER = (
    "added_tokens.json",
    "chat_template.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def config_of(size: str, image_token_id: int | None = None) -> Maira2Config:
    """The configuration of one of `SIZES`; the image token is the last one of the vocabulary unless given."""
    (v_width, v_layers, v_heads, patch, image), (width, mlp, layers, heads, vocab) = SIZES[size]
    vision = VisionConfig(v_width, v_layers, v_heads, 4 * v_width, patch, image, 1e-6)
    text = TextConfig(vocab, width, mlp, layers, heads, heads, width // heads, 1e-5, 10000.0, 1.5)
    token = vocab - 1 if image_token_id is None else image_token_id
    return Maira2Config(vision, text, image_token_id=token, projector_n_layers=4)


def check(sizes: str) -> list[str]:
    """The names of sizes in a comma-separated list.

    Raises:
      UserError: one is unknown.
    """
    names = sizes.split(",")
    if unknown := set(names) - set(SIZES):
        raise UserError(f"--sizes {min(unknown)!r} is not one of {', '.join(SIZES)}: choose one")
    return names


def write_checkpoint(size: str, directory: Path) -> None:
    """Writes a whole checkpoint in the Hugging Face layout, float32, with the phantom's tokenizer."""
    write_description(size, directory)
    cfg = Maira2Config.from_dir(directory)
    convert.to_hf(maira2.init(cfg, jax.random.key(0)), cfg, directory, np.dtype(np.float32))


def write_description(size: str, directory: Path) -> None:
    """Writes such a checkpoint's files but the weights."""
    directory.mkdir(parents=True, exist_ok=True)
    phantom = convert.checkpoint_dir(convert.PHANTOM)
    for name in _TOKENIZER:
        shutil.copy(phantom / name, directory)
    cfg = config_of(size, Tokenizer.from_dir(phantom).image_id)
    files.write_json(directory / "config.json", to_hf_dict(cfg))
    side = cfg.vision.image_size
    preprocessor = files.read_json(phantom / "preprocessor_config.json")
    preprocessor |= {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    files.write_json(directory / "preprocessor_config.json", preprocessor)


def draw(cfg: Maira2Config, dtype: str, stop: Site | None = None, weights: Weights = "full") -> Params:
    """Random parameters as `checkpoint.store.load` gives them, drawn where they lie, a layer at a time.

    Args:
      cfg: the model's configuration.
      dtype: the type of the parameters.
      stop: the last site that is read; None for the whole model.
      weights: "int8" draws those of the language model's products as integers.
    """
    return traverse_util.unflatten_dict({path: _drawn(path, leaf) for path, leaf in _places(cfg, dtype, stop, weights)})


def draw_unstacked(cfg: Maira2Config, dtype: str, weights: Weights = "full") -> Params:
    """The same of a whole model, as `maira2.unstacked` gives them, never twice in memory."""
    layers: list[dict[ParameterPath, Any]] = [{} for _ in range(cfg.text.num_hidden_layers)]
    others = {}
    for path, leaf in _places(cfg, dtype, None, weights):
        if path[:2] != ("language", "layers"):
            others[path] = _drawn(path, leaf)
            continue
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), leaf)
        for number, layer in enumerate(layers):
            layer[path[2:]] = _drawn(path, one, number)
    params = traverse_util.unflatten_dict(others)
    return params | {"language": params["language"] | {"layers": tuple(map(traverse_util.unflatten_dict, layers))}}


def _places(cfg: Maira2Config, dtype: str, stop: Site | None, weights: Weights) -> Iterable[tuple[ParameterPath, Any]]:
    on = sharding.abstract_mesh(1, 1)
    return sharding.with_weights(sharding.of_params(cfg, on, jnp.dtype(dtype), stop), weights).items()


def _drawn(path: ParameterPath, leaf: Any, layer: int = 0) -> Any:
    if isinstance(leaf, Int8Kernel):
        return Int8Kernel(_drawn(path, leaf.values, layer), jnp.full(leaf.scale.shape, 3 * _STDDEV / 127, jnp.float32))
    if path[-1].startswith("scale"):
        return jnp.ones(leaf.shape, leaf.dtype)
    if path[-1] == "bias":
        return jnp.zeros(leaf.shape, leaf.dtype)
    return _random(jax.random.key(zlib.crc32(f"{path}{layer}".encode())), leaf.shape, leaf.dtype)


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _random(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Integers of 8 bits, or normal values. Drawn at once, a stack would take several times its memory."""

    def row(key: jax.Array) -> jax.Array:
        if dtype == jnp.int8:
            return jax.random.randint(key, shape[1:], -127, 128, jnp.int8)
        return jax.random.normal(key, shape[1:], dtype) * jnp.asarray(_STDDEV, dtype)

    batch = max(1, _AT_ONCE // math.prod(shape[1:]))
    return jax.lax.map(row, jax.random.split(key, shape[0]), batch_size=batch)
