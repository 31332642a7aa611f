"""Conversion between the Hugging Face layout (safetensors shards) and Flax parameters, a tensor at a time."""

import contextlib
import json
import shutil
from collections import defaultdict
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import ml_collections
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from maira_jax.checkpoint import store
from maira_jax.checkpoint.layout import Entry, entries
from maira_jax.errors import UserError
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params
from maira_jax.run import files
from maira_jax.run.progress import progress
from maira_jax.run.stage import Stage

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
PHANTOM = "phantom"
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
# What a checkpoint holds beside its weights, and what the other stages read.
_COMPANIONS = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
)


def checkpoint_dir(name: str) -> Path:
    """The folder of a checkpoint: a path, or "phantom" for the one that ships with the package.

    Raises:
      UserError: there is no such folder.
    """
    path = Path(str(resources.files("maira_jax") / "data" / PHANTOM)) if name == PHANTOM else Path(name).expanduser()
    if not path.is_dir():
        raise UserError(f"model.checkpoint {name!r} is not a folder: give a checkpoint's folder, or {PHANTOM!r}")
    return path


class Checkpoint:
    """A Hugging Face checkpoint's tensors, by name, whatever shard they are in."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack):
        self.directory = directory
        self.files: dict[str, str] = {}
        self._open: dict[str, Any] = {}
        index, single = directory / _INDEX, directory / _SINGLE
        if index.is_file():
            weight_map = files.read_json(index).get("weight_map", {})
        elif single.is_file():
            weight_map = None
        else:
            raise UserError(f"{directory} has neither {_INDEX} nor {_SINGLE}: give a checkpoint's folder")
        for shard in sorted(set(weight_map.values())) if weight_map is not None else [_SINGLE]:
            path = directory / shard
            try:
                self._open[shard] = stack.enter_context(safe_open(path, framework="numpy"))
            except FileNotFoundError as error:
                raise UserError(f"{path}, named in {_INDEX}, is missing: download the checkpoint again") from error
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path} is truncated or damaged ({error}): download the file again") from error
            self.files |= dict.fromkeys(self._open[shard].keys(), shard)

    def check(self, table: list[Entry]) -> None:
        """Refuses a checkpoint whose tensors are not exactly those of the table.

        Raises:
          UserError: names the first tensor that is missing, extra or misshapen.
        """
        wanted = {entry.name: entry for entry in table}
        if missing := sorted(wanted.keys() - self.files.keys()):
            raise UserError(
                f"{self.directory} lacks {len(missing)} tensors, the first is {missing[0]}: "
                "use the checkpoint that config.json describes"
            )
        if extra := sorted(self.files.keys() - wanted.keys()):
            raise UserError(
                f"{self.directory / self.files[extra[0]]} has a tensor that MAIRA-2 lacks, {extra[0]}: "
                "use the checkpoint that config.json describes"
            )
        for name, entry in wanted.items():
            shape = tuple(self._open[self.files[name]].get_slice(name).get_shape())
            if shape != entry.shape:
                raise UserError(
                    f"{self.directory / self.files[name]}: {name} has shape {shape}, but config.json asks for "
                    f"{entry.shape}: use the checkpoint that config.json describes"
                )

    def read(self, name: str) -> np.ndarray:
        """One tensor, from its shard.

        Raises:
          UserError: its values are damaged or not finite.
        """
        path = self.directory / self.files[name]
        try:
            tensor = self._open[self.files[name]].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: {name} cannot be read ({error}): download the file again") from error
        if tensor.dtype not in (np.float32, np.float16, ml_dtypes.bfloat16):
            raise UserError(f"{path}: {name} is {tensor.dtype}, not a floating-point type: use MAIRA-2's weights")
        return tensor


def to_flax(directory: Path, cfg: Maira2Config, dtype: np.dtype) -> Params:
    """Reads a checkpoint as a nested dict of arrays of `dtype`.

    Raises:
      UserError: a tensor is missing, extra, misshapen or damaged.
    """
    table = entries(cfg)
    by_path: dict[tuple[str, ...], list[Entry]] = defaultdict(list)
    for entry in table:
        by_path[entry.path].append(entry)
    params: Params = {}
    with contextlib.ExitStack() as stack:
        checkpoint = Checkpoint(directory, stack)
        checkpoint.check(table)
        bar = stack.enter_context(progress(total=len(table), unit="tensor", desc="convert"))
        for path, rows in by_path.items():
            leaves = []
            for entry in rows:
                leaves.append(entry.to_flax(checkpoint.read(entry.name)).astype(dtype))
                bar.update()
            node = params
            for key in path[:-1]:
                node = node.setdefault(key, {})
            node[path[-1]] = jax.device_put(leaves[0] if rows[0].layer is None else np.stack(leaves))
    return params


def to_hf(params: Params, cfg: Maira2Config, directory: Path, dtype: np.dtype) -> None:
    """Writes parameters as `model.safetensors` with `config.json`, in MAIRA-2's names and order."""
    tensors: dict[str, np.ndarray] = {}
    for entry in entries(cfg):
        leaf: Any = params
        for key in entry.path:
            leaf = leaf[key]
        value = np.asarray(leaf if entry.layer is None else leaf[entry.layer])
        tensors[entry.name] = np.ascontiguousarray(entry.to_hf(value).astype(dtype))
    with files.atomic_path(directory / _SINGLE) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """The stage `model`: `model.checkpoint` in the Hugging Face layout becomes an orbax checkpoint.

    Raises:
      UserError: `model.dtype` is unknown, or the checkpoint is not a whole MAIRA-2 checkpoint.
    """
    if config.model.dtype not in DTYPES:
        raise UserError(f"model.dtype is {config.model.dtype!r}: choose one of {', '.join(DTYPES)}")
    source = checkpoint_dir(config.model.checkpoint)
    with Stage(workdir, "model", config.model.to_dict()) as stage:
        if stage.finished:
            return stage.manifest["counts"]
        cfg = Maira2Config.from_dir(source)
        params = to_flax(source, cfg, DTYPES[config.model.dtype])
        for name in _COMPANIONS:
            if (source / name).is_file():
                shutil.copyfile(source / name, stage.dir / name)
        store.save(stage.dir, params)
        leaves = jax.tree.leaves(params)
        counts = {
            "tensors": len(entries(cfg)),
            "parameters": sum(leaf.size for leaf in leaves),
            "bytes": sum(leaf.nbytes for leaf in leaves),
            "source": _fingerprint(source),
        }
        stage.finish(counts)
        return counts


def _fingerprint(directory: Path) -> dict[str, str]:
    """SHA-256 of each file of a checkpoint that decides what the model computes."""
    shards = [_SINGLE]
    if (directory / _INDEX).is_file():
        shards = sorted(set(json.loads((directory / _INDEX).read_text())["weight_map"].values()))
    names = [*shards, *(name for name in _COMPANIONS if (directory / name).is_file())]
    return {name: files.sha256(directory / name) for name in names}
