"""What MedCLIP's image encoders share: their checkpoint, a file of the dual encoder, and embeddings of length 1.

Source: https://github.com/RyanWangZf/MedCLIP, `medclip/modeling_medclip.py`.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maira_jax.checkpoint import torch_file
from maira_jax.checkpoint.layout import torch_entries
from maira_jax.checkpoint.tensor_check import FoundTensor, refuse_others
from maira_jax.encoders.encoder import RANDOM, ImageEncoder, LoadedEncoder, assembled, drawn, replicated
from maira_jax.errors import UserError
from maira_jax.inputs import medclip_image
from maira_jax.model import layers
from maira_jax.model.layers import Make, ParameterPath, ParameterSpec, Params
from maira_jax.run import files

WIDTH = 512  # of the embedding
_FILE, _TOWER = "pytorch_model.bin", "vision_model."
# Buffers that decide nothing: a count of training steps, and an index that follows from the window's size.
_BUFFERS = (".num_batches_tracked", ".relative_position_index")
_CODES = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16"}


def load(
    encoder: ImageEncoder, make: Make[nnx.Module], cfg: Any, weights: str, mesh: tuple[int, ...], seed: int
) -> LoadedEncoder:
    """An encoder with the parameters of MedCLIP's file, or random ones.

    Args:
      make, cfg: its module, whose attributes have the names of the image tower's tensors, and that module's sizes.
      weights, mesh, seed: as in `ImageEncoder.load`.

    Raises:
      UserError: the file is missing, damaged or another model's.
    """
    if weights == RANDOM:
        params, origin = drawn(make, cfg, jax.random.key(seed)), f"{RANDOM} {seed}"
    else:
        path = _file(weights)
        params, origin = _read(path, layers.parameter_specs(make, cfg)), files.content_digest(path)
    return LoadedEncoder(encoder, replicated(params, mesh), medclip_image.levels(), origin)


def _file(weights: str) -> Path:
    path = Path(weights).expanduser()
    path = path / _FILE if path.is_dir() else path
    if not weights or not path.is_file():
        raise UserError(
            f"harvest.weights is {weights!r}, where no file is: give MedCLIP's {_FILE} or its folder, or {RANDOM!r}"
        )
    return path


def _read(path: Path, specs: dict[ParameterPath, ParameterSpec]) -> Params:
    state = torch_file.read(path)
    if not isinstance(state, dict) or not all(isinstance(tensor, np.ndarray) for tensor in state.values()):
        raise UserError(f"{path} is no dict of tensors: give MedCLIP's {_FILE}")
    tensors = {
        str(name).removeprefix(_TOWER): tensor
        for name, tensor in state.items()
        if str(name).startswith(_TOWER) and not str(name).endswith(_BUFFERS)
    }
    table = torch_entries(specs)
    if not any(entry.name in tensors for entry in table):
        other = next(map(str, state), None)
        holds = f"but {len(state)} others, such as {other}" if other else "since it holds none"
        raise UserError(
            f"{path} holds no tensor of this image encoder, {holds}: give MedCLIP's {_FILE} in harvest.weights, or "
            "choose the harvest.encoder that it was trained with"
        )
    found = {
        name: FoundTensor(path.name, name, _CODES.get(tensor.dtype, tensor.dtype.name), tensor.shape)
        for name, tensor in tensors.items()
    }
    code = next((tensor.code for tensor in found.values()), "F32")
    refuse_others(path, "MedCLIP's image encoder", table, found, (), code)
    return assembled(specs, ((entry, tensors[entry.name]) for entry in table), path)


def unit_length(embedding: jax.Array) -> jax.Array:
    """Embeddings [batch, width] divided by their length, as `encode_image` gives them: [batch, 1, width]."""
    return (embedding / jnp.linalg.norm(embedding, axis=-1, keepdims=True))[:, None]  # [B, 1, D]
