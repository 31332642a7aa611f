"""Writes safetensors files a tensor at a time: the `safetensors` library needs a whole file, 5 GB, in memory.

The format is a length (8 bytes, little endian), a JSON header of that length, and the
tensors' bytes in the header's order. Names, order and sizes of the files are transformers'.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from maira_jax.run import files

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
TYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
MAX_BYTES = 5 * 10**9  # of tensors in one file; what transformers writes, and what MAIRA-2's files are
_ALIGNMENT = 8

Shape = tuple[int, ...]


def plan(shapes: Mapping[str, Shape], dtype: np.dtype, max_bytes: int) -> dict[str, dict[str, Shape]]:
    """Cuts tensors, in their order, into files of at most `max_bytes`, as transformers does.

    Returns:
      File name -> name of a tensor -> its shape.
    """
    parts: list[dict[str, Shape]] = [{}]
    taken = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        if parts[-1] and taken + size > max_bytes:
            parts.append({})
            taken = 0
        parts[-1][name] = shape
        taken += size
    if len(parts) == 1:
        return {SINGLE: parts[0]}
    return {f"model-{i:05d}-of-{len(parts):05d}.safetensors": part for i, part in enumerate(parts, 1)}


def header(shapes: Mapping[str, Shape], dtype: np.dtype) -> bytes:
    """The start of a file with these tensors, byte for byte as `safetensors` writes it: sorted by name, padded."""
    code = next(code for code, known in TYPES.items() if known == dtype)
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in sorted(shapes):
        stop = start + math.prod(shapes[name]) * dtype.itemsize
        fields[name] = {"dtype": code, "shape": list(shapes[name]), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write(path: Path, shapes: Mapping[str, Shape], dtype: np.dtype, read: Callable[[str], np.ndarray]) -> str:
    """Writes one file, whole or not at all, and returns its SHA-256.

    Args:
      path: the file.
      shapes: the shapes of its tensors, by name.
      dtype: the type of its tensors.
      read: name -> contiguous tensor of that shape and `dtype`; called once for each, in the order of the file.
    """
    digest = hashlib.sha256()
    with files.atomic_path(path) as temporary, temporary.open("wb") as file:
        head = header(shapes, dtype)
        file.write(head)
        digest.update(head)
        for name in sorted(shapes):
            tensor = read(name)
            if tensor.shape != shapes[name] or tensor.dtype != dtype:
                raise ValueError(f"{name} is {tensor.dtype} {tensor.shape}, but the header says {dtype} {shapes[name]}")
            data = tensor.reshape(-1).view(np.uint8).data
            file.write(data)
            digest.update(data)
    return digest.hexdigest()


def index(parts: Mapping[str, Mapping[str, Shape]], dtype: np.dtype) -> bytes:
    """The text of `model.safetensors.index.json`, as transformers writes it."""
    total = sum(math.prod(shape) for part in parts.values() for shape in part.values()) * dtype.itemsize
    where = {name: file for file, part in parts.items() for name in part}
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2, sort_keys=True)
    return f"{text}\n".encode()
