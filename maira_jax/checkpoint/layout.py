"""The tables that map every tensor of a PyTorch checkpoint to its parameter, in both directions.

MAIRA-2's and DINOv2's are written out; that of a model whose modules have the names of the PyTorch modules follows from
its parameters.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from maira_jax.model import layers, maira2, vision
from maira_jax.model.config import Maira2Config, VisionConfig
from maira_jax.model.layers import ParameterPath, ParameterSpec

# name in the checkpoint | path of the parameter | how the one is turned into the other
#   same: no change; linear: transposed; conv: output channels last, with patches as rows where they do not overlap
#   row, token: without one or two leading axes of size 1
#   linear :-2 and the like: transposed, that part of the parameter's axis of layers that are computed together
# "{L}" is a layer: its tensors are stacked on the parameter's leading axis.
_VISION = """
embeddings.cls_token                            | vision.cls_token                  | token
embeddings.mask_token                           | vision.mask_token                 | row
embeddings.position_embeddings                  | vision.position_embeddings        | row
embeddings.patch_embeddings.projection.weight   | vision.patch.kernel               | conv
embeddings.patch_embeddings.projection.bias     | vision.patch.bias                 | same
encoder.layer.{L}.norm1.weight                  | vision.layers.norm1.scale         | same
encoder.layer.{L}.norm1.bias                    | vision.layers.norm1.bias          | same
encoder.layer.{L}.attention.attention.query.weight | vision.layers.query.kernel     | linear
encoder.layer.{L}.attention.attention.query.bias   | vision.layers.query.bias       | same
encoder.layer.{L}.attention.attention.key.weight   | vision.layers.key.kernel       | linear
encoder.layer.{L}.attention.attention.key.bias     | vision.layers.key.bias         | same
encoder.layer.{L}.attention.attention.value.weight | vision.layers.value.kernel     | linear
encoder.layer.{L}.attention.attention.value.bias   | vision.layers.value.bias       | same
encoder.layer.{L}.attention.output.dense.weight    | vision.layers.out.kernel       | linear
encoder.layer.{L}.attention.output.dense.bias      | vision.layers.out.bias         | same
encoder.layer.{L}.layer_scale1.lambda1          | vision.layers.scale1              | same
encoder.layer.{L}.norm2.weight                  | vision.layers.norm2.scale         | same
encoder.layer.{L}.norm2.bias                    | vision.layers.norm2.bias          | same
encoder.layer.{L}.mlp.fc1.weight                | vision.layers.fc1.kernel          | linear
encoder.layer.{L}.mlp.fc1.bias                  | vision.layers.fc1.bias            | same
encoder.layer.{L}.mlp.fc2.weight                | vision.layers.fc2.kernel          | linear
encoder.layer.{L}.mlp.fc2.bias                  | vision.layers.fc2.bias            | same
encoder.layer.{L}.layer_scale2.lambda1          | vision.layers.scale2              | same
layernorm.weight                                | vision.layernorm.scale            | same
layernorm.bias                                  | vision.layernorm.bias             | same
"""
_LANGUAGE = """
model.embed_tokens.weight                       | language.embed                    | same
model.layers.{L}.self_attn.q_proj.weight        | language.layers.qkv.kernel        | linear :-2
model.layers.{L}.self_attn.k_proj.weight        | language.layers.qkv.kernel        | linear -2:-1
model.layers.{L}.self_attn.v_proj.weight        | language.layers.qkv.kernel        | linear -1:
model.layers.{L}.self_attn.o_proj.weight        | language.layers.out.kernel        | linear
model.layers.{L}.mlp.gate_proj.weight           | language.layers.gate_up.kernel    | linear :1
model.layers.{L}.mlp.up_proj.weight             | language.layers.gate_up.kernel    | linear 1:
model.layers.{L}.mlp.down_proj.weight           | language.layers.down.kernel       | linear
model.layers.{L}.input_layernorm.weight         | language.layers.input_norm.scale  | same
model.layers.{L}.post_attention_layernorm.weight | language.layers.post_attention_norm.scale | same
model.norm.weight                               | language.norm.scale               | same
lm_head.weight                                  | language.lm_head                  | linear
"""

# The table has the names of the published files. transformers renamed LLaVA's parts in 4.52, and DINOv2's attention in
# 5; a file that was saved since may have either change.
_RENAMED: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^model\.language_model\.", "language_model.model."),
        (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^((vision_tower\.)?encoder\..*\.attention)\.q_proj\.", r"\1.attention.query."),
        (r"^((vision_tower\.)?encoder\..*\.attention)\.k_proj\.", r"\1.attention.key."),
        (r"^((vision_tower\.)?encoder\..*\.attention)\.v_proj\.", r"\1.attention.value."),
        (r"^((vision_tower\.)?encoder\..*\.attention)\.o_proj\.", r"\1.output.dense."),
    )
)
# PyTorch's names of the parameters of a layer, where they are others.
_TORCH = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_LEADING = {"row": 1, "token": 2}  # leading axes of size 1 that the checkpoint has and the parameter has not
_BLOCK = (16, 1024)  # rows and columns that are transposed together; measured


def published_name(name: str) -> str:
    """The name that a tensor has in the published files, whichever transformers version wrote `name`."""
    for pattern, published in _RENAMED:
        name = pattern.sub(published, name)
    return name


def _transposed(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """x: [rows, columns] -> [columns, rows] of `dtype`, contiguous; in blocks, since a copy of x.T misses the cache."""
    out = np.empty(x.shape[::-1], dtype)
    for column in range(0, x.shape[1], _BLOCK[1]):
        columns = slice(column, column + _BLOCK[1])
        for row in range(0, len(x), _BLOCK[0]):
            rows = slice(row, row + _BLOCK[0])
            out[columns, rows] = x[rows, columns].astype(dtype, copy=False).T
    return out


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of the checkpoint.

    Attributes:
      name: its name in the checkpoint.
      path: the keys that lead to its parameter.
      layer: its index on the parameter's leading axis, or None.
      part: what it takes of the parameter's next to last axis, or None for all of it.
      shape: its shape in the checkpoint.
      parameter_shape: its shape in the parameter (or its layer).
      kind: how the tensor is turned into the parameter; one of those in the table above.
    """

    name: str
    path: ParameterPath
    layer: int | None
    part: slice | None
    shape: tuple[int, ...]
    parameter_shape: tuple[int, ...]
    kind: str

    @property
    def index(self) -> tuple[Any, ...]:
        """The index that gives the tensor's place in the parameter."""
        layer = () if self.layer is None else (self.layer,)
        return layer if self.part is None else (*layer, ..., self.part, slice(None))

    def to_flax(self, tensor: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """The tensor as the parameter holds it at `index`, contiguous, rounded to `dtype`."""
        if self.kind == "linear":
            return _transposed(tensor, dtype).reshape(self.parameter_shape)
        if self.kind == "conv":  # [d, channels, height, width] -> [height, width, channels, d], the first three in one
            tensor = tensor.transpose(2, 3, 1, 0)
        return np.ascontiguousarray(tensor.reshape(self.parameter_shape), dtype)

    def to_hf(self, parameter: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """The inverse of `to_flax`, contiguous, rounded to `dtype`."""
        if self.kind == "linear":
            return _transposed(parameter.reshape(self.shape[::-1]), dtype)
        if self.kind == "conv":
            d, channels, height, width = self.shape
            parameter = parameter.reshape(height, width, channels, d).transpose(3, 2, 0, 1)
        return np.ascontiguousarray(parameter.reshape(self.shape), dtype)


def _shape(kind: str, parameter: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the checkpoint of a tensor that has the given shape in its parameter."""
    if kind == "linear":
        return (math.prod(parameter[1:]), parameter[0])
    if kind == "conv":
        *inner, d = parameter
        side = math.isqrt(inner[0] // 3)  # of a patch of three channels
        height, width, channels = inner if len(inner) == 3 else (side, side, 3)
        return (d, channels, height, width)
    return (*(1,) * _LEADING.get(kind, 0), *parameter)


def _rows(cfg: Maira2Config) -> Iterator[tuple[str, str, str, int | None]]:
    """Name in the checkpoint, the parameter's dotted path, kind and layer of every tensor."""
    depths = cfg.vision.num_hidden_layers, cfg.text.num_hidden_layers
    yield from _expand(_VISION, "vision_tower.", depths[0])
    for layer in range(cfg.projector_n_layers):
        name, path = f"multi_modal_projector.layers.{2 * layer}", f"projector.linear_{layer}"
        yield f"{name}.weight", f"{path}.kernel", "linear", None
        yield f"{name}.bias", f"{path}.bias", "same", None
    yield from _expand(_LANGUAGE, "language_model.", depths[1])


def _expand(table: str, prefix: str, n_layers: int) -> Iterator[tuple[str, str, str, int | None]]:
    rows = [tuple(cell.strip() for cell in row.split("|")) for row in table.strip().splitlines()]
    for in_layers, group in itertools.groupby(rows, lambda row: "{L}" in row[0]):
        together = list(group)
        for layer in range(n_layers) if in_layers else (None,):
            for name, path, kind in together:
                yield f"{prefix}{name}".replace("{L}", str(layer)), path, kind, layer


def _slice(text: str, size: int) -> slice:
    """A slice as Python writes it, such as -2:-1, of an axis of the given size; its bounds count from the start."""
    start, stop = (int(bound) if bound else None for bound in text.split(":"))
    return slice(*slice(start, stop).indices(size)[:2])


def entries(cfg: Maira2Config) -> list[Entry]:
    """Every tensor that a checkpoint of this architecture holds (522 for MAIRA-2), in the order of its modules."""
    return _entries(maira2.parameter_specs(cfg), _rows(cfg))


def dinov2_entries(cfg: VisionConfig) -> list[Entry]:
    """Every tensor of a checkpoint of DINOv2 alone, as transformers names them, and its parameter of `VisionTower`."""
    specs = layers.parameter_specs(vision.VisionTower, cfg)
    rows = _expand(_VISION, "", cfg.num_hidden_layers)
    return _entries(specs, ((name, path.removeprefix("vision."), kind, layer) for name, path, kind, layer in rows))


def torch_entries(specs: Mapping[ParameterPath, ParameterSpec]) -> list[Entry]:
    """The tensors of a model whose modules have the names that they have in PyTorch.

    Args:
      specs: its parameters, of which a kernel with four axes is a convolution's, [height, width, channels, d].
    """

    def row(path: ParameterPath, spec: ParameterSpec) -> tuple[str, str, str, None]:
        kind = {"kernel": "conv" if len(spec.shape) == 4 else "linear"}.get(path[-1], "same")
        return ".".join((*path[:-1], _TORCH.get(path[-1], path[-1]))), ".".join(path), kind, None

    return _entries(specs, (row(path, spec) for path, spec in specs.items()))


def _entries(
    specs: Mapping[ParameterPath, ParameterSpec], rows: Iterable[tuple[str, str, str, int | None]]
) -> list[Entry]:
    table = []
    for name, dotted, kind, layer in rows:
        path, (kind, *part) = tuple(dotted.split(".")), kind.split()
        shape = specs[path].shape if layer is None else specs[path].shape[1:]
        taken = _slice(part[0], shape[-2]) if part else None
        if taken is not None:
            shape = (*shape[:-2], taken.stop - taken.start, shape[-1])
        table.append(Entry(name, path, layer, taken, _shape(kind, shape), shape, kind))
    return table
