"""Conversion between the Hugging Face layout (safetensors shards) and Flax parameters, a tensor at a time."""

import functools
import math
import shutil
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_collections
import ml_dtypes
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding

from maira_jax.checkpoint import shards, store
from maira_jax.checkpoint.digests import DIGESTS, sha256_of
from maira_jax.checkpoint.layout import Entry, entries
from maira_jax.checkpoint.tensor_source import TensorSource
from maira_jax.errors import UserError
from maira_jax.inputs.image import ImageConfig
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model import sharding
from maira_jax.model.config import Maira2Config
from maira_jax.model.int8 import Weights
from maira_jax.model.layers import ParameterPath, Params
from maira_jax.run import files, storage
from maira_jax.run.config import RunSection, Section, setting
from maira_jax.run.progress import progress
from maira_jax.run.stages.stage import MANIFEST, Stage

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_DTYPE_FIELDS = ("torch_dtype", "dtype")  # of a Hugging Face configuration
PHANTOM = "phantom"
# Files of a checkpoint that decide, together with its weights, what the model computes.
_CONFIGURATION = (
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
_READ_BY_STAGES = ("tokenizer.json", "preprocessor_config.json")  # besides config.json, without which none is converted
# Copied along, never run: transformers asks for them when it loads what `reverse` wrote.
_REMOTE_CODE = ("configuration_maira2.py", "modeling_maira2.py", "processing_maira2.py")


class ModelSection(Section, name="model"):
    """The checkpoint that is converted, and the form that its parameters are stored in."""

    checkpoint: str = setting(
        PHANTOM, "Folder of a checkpoint, or 'phantom' for the model that ships with the package."
    )
    dtype: Literal["float32", "bfloat16"] = setting("float32", "Type of the parameters.")
    weights: Weights = setting(
        "full",
        "What the stages that run the model multiply by: the language model's parameters as stored, or rounded to int8 "
        "while they are loaded, which is less to read for each token.",
    )

    def converting(self) -> dict[str, Any]:
        """The fields that decide what is stored; `weights` is of the stages that read it."""
        return {name: value for name, value in self.deciding().items() if name != "weights"}


def checkpoint_dir(name: str) -> Path:
    """The folder of a checkpoint: a path, or "phantom" for the one that ships with the package.

    Raises:
      UserError: there is no such folder.
    """
    path = Path(str(resources.files("maira_jax.phantom") / "data")) if name == PHANTOM else Path(name).expanduser()
    if not path.is_dir():
        raise UserError(f"model.checkpoint {name!r} is not a folder: give a checkpoint's folder, or {PHANTOM!r}")
    return path


def to_flax(directory: Path, cfg: Maira2Config, dtype: np.dtype, mesh: Mesh | None = None) -> Params:
    """Reads a checkpoint straight to its places on `mesh` (None: the first device alone), as arrays of `dtype`.

    The vocabulary is padded as by `store.load`.

    Besides the result, this machine holds a few tensors at a time.

    Raises:
      UserError: a tensor is missing, extra, misshapen, mistyped or damaged.
    """
    source = TensorSource(directory, entries(cfg))
    places = sharding.of_params(cfg, sharding.make_mesh((1, 1)) if mesh is None else mesh, dtype)
    params: dict[ParameterPath, jax.Array] = {}
    with progress(total=source.nbytes, unit="B", desc="convert") as bar:
        for shard in source.parts:
            for entry, tensor in source.read(shard):
                path, leaf, value = entry.path, places[entry.path], entry.to_flax(tensor, dtype)
                if not entry.index:
                    padding = [(0, n - m) for n, m in zip(leaf.shape, value.shape, strict=True)]
                    params[path] = jax.device_put(np.pad(value, padding), leaf.sharding)
                else:
                    if path not in params:
                        params[path] = jnp.zeros(leaf.shape, dtype, device=leaf.sharding)
                    part = jax.device_put(value[None], leaf.sharding)
                    params[path] = _put(params[path], part, _start(entry), leaf.sharding)
                bar.update(tensor.nbytes)
    return traverse_util.unflatten_dict(params)


def _start(entry: Entry) -> tuple[np.int32, ...]:
    """Where a tensor's values start in its parameter, which has layers."""
    assert entry.layer is not None
    start = [entry.layer, *(0 for _ in entry.parameter_shape)]
    if entry.part is not None:
        start[-2] = entry.part.start
    return tuple(map(np.int32, start))


@functools.partial(jax.jit, donate_argnums=0, static_argnames="place")
def _put(stack: jax.Array, part: jax.Array, start: tuple[jax.Array, ...], place: NamedSharding) -> jax.Array:
    """stack: [layers, ...]; part: [1, ...], which starts at `start`. The stack is overwritten, not copied."""
    return jax.lax.with_sharding_constraint(jax.lax.dynamic_update_slice(stack, part, start), place)


def to_hf(params: Params, cfg: Maira2Config, directory: Path, dtype: np.dtype) -> None:
    """Writes parameters in MAIRA-2's names, order and shards; `config.json` is not written."""

    def value(entry: Entry) -> np.ndarray:
        leaf: Any = params
        for key in entry.path:
            leaf = leaf[key]
        return np.asarray(leaf[entry.index])[tuple(map(slice, entry.parameter_shape))]  # without padding

    _write(directory, entries(cfg), dtype, value)


def _write(
    directory: Path, table: list[Entry], dtype: np.dtype, value: Callable[[Entry], np.ndarray], resume: bool = False
) -> dict[str, str]:
    """Writes shards and their index; returns the SHA-256 of each file. resume: shards that are there stay."""
    of_name = {entry.name: entry for entry in table}
    parts = shards.plan({entry.name: entry.shape for entry in table}, dtype, shards.MAX_BYTES)
    digests = {}
    total = sum(math.prod(entry.shape) for entry in table) * dtype.itemsize
    with progress(total=total, unit="B", desc="convert") as bar:

        def read(name: str) -> np.ndarray:
            tensor = of_name[name].to_hf(value(of_name[name]), dtype)
            bar.update(tensor.nbytes)
            return tensor

        for file, tensors in parts.items():
            if resume and (directory / file).is_file():
                digests[file] = files.sha256(directory / file)
                bar.update(sum(math.prod(shape) for shape in tensors.values()) * dtype.itemsize)
            else:
                digests[file] = shards.write(directory / file, tensors, dtype, read)
    if len(parts) > 1:
        with files.atomic_path(directory / shards.INDEX) as temporary:
            temporary.write_bytes(shards.index(parts, dtype))
        digests[shards.INDEX] = files.sha256(directory / shards.INDEX)
    return digests


def run(config: ml_collections.ConfigDict, workdir: Path, out: Path | None = None) -> dict[str, Any]:
    """The stage `model`: `model.checkpoint` in the Hugging Face layout becomes an orbax checkpoint.

    Killed, it resumes after the last file of the checkpoint that it had read to its end.

    Args:
      config: the configuration, of which the section `model` and the field `mesh` are read.
      workdir: the run's folder.
      out: the result's folder; None: `workdir/model`, where the other stages look.

    Raises:
      UserError: a field of `model` is unknown, or the checkpoint is not a whole MAIRA-2 checkpoint.
    """
    section, mesh = ModelSection.of(config), RunSection.of(config).mesh
    directory = checkpoint_dir(section.checkpoint)
    in_run = None if out else config
    out = (Path(workdir) / "model" if out is None else out).expanduser().absolute()
    with Stage(out.parent, out.name, section.converting(), computing={"mesh": mesh}, config=in_run) as stage:
        if stage.finished:
            return stage.manifest["counts"]
        counts = _convert(directory, stage.dir, DTYPES[section.dtype], mesh or (1, 1))
        stage.finish(counts)
        if lacking := _lacking(stage.dir):
            print(
                f"convert: warning: no stage can read studies or write reports with this model: {lacking}; put right "
                f"{directory}, delete {storage.named(str(stage.dir))}, and convert again",
                file=sys.stderr,
            )
        return counts


def _lacking(model_dir: Path) -> str:
    """What the stages that run a converted model miss in its files, in a clause; empty where it is nothing."""
    missing = [name for name in _READ_BY_STAGES if not (model_dir / name).is_file()]
    if missing:
        return f"the checkpoint lacks {' and '.join(missing)}"
    try:
        ImageConfig.from_dir(model_dir)
        tokens = Tokenizer.from_dir(model_dir).vocab_size
    except UserError as error:
        return str(error)
    rows = Maira2Config.from_dir(model_dir).text.vocab_size
    return f"tokenizer.json has {tokens:,} tokens and the model {rows:,}" if tokens > rows else ""


def _convert(directory: Path, out: Path, dtype: np.dtype, mesh: tuple[int, ...]) -> dict[str, Any]:
    cfg = Maira2Config.from_dir(directory)
    sharding.check(cfg, sharding.abstract_mesh(*mesh))
    table = entries(cfg)
    source = TensorSource(directory, table)
    names = [name for name in (shards.INDEX, *_CONFIGURATION, *_REMOTE_CODE) if (directory / name).is_file()]
    found = sha256_of(directory, names, source.known)
    writer = store.CheckpointWriter(out, cfg, dtype, mesh)
    try:
        with progress(total=source.nbytes, unit="B", desc="convert") as bar:
            for shard, tensors in source.parts.items():
                size = sum(math.prod(entry.shape) for entry in tensors) * source.dtype.itemsize
                stat = (directory / shard).stat()
                identity = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
                if writer.written.get(shard, {}).items() >= identity.items():
                    bar.update(size)
                    continue
                for entry, tensor in source.read(shard):
                    writer.put(entry, entry.to_flax(tensor, dtype))
                    bar.update(tensor.nbytes)
                writer.mark(shard, {**identity, "sha256": source.digests[shard]})
    except UserError:
        writer.discard()
        raise
    found |= {shard: note["sha256"] for shard, note in writer.written.items()}
    for name in names:
        if name != shards.INDEX:
            _copy(directory / name, out / name)
    writer.finish()
    parameters = sum(math.prod(entry.shape) for entry in table)
    return {
        "tensors": len(table),
        "parameters": parameters,
        "bytes": parameters * dtype.itemsize,
        "files_with_known_digest": sum(name in source.known for name in found),
        "source_dtype": source.dtype.name,
        "source": found,
    }


def _copy(source: Path, target: Path) -> None:
    with files.atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _of_type(config: Any, dtype: str) -> Any:
    """The configuration with the type of the parameters where it, or one of a part of the model, states another."""
    if not isinstance(config, dict):
        return config
    return {
        name: dtype if name in _DTYPE_FIELDS and value else _of_type(value, dtype) for name, value in config.items()
    }


def reverse(checkpoint: str, out: Path) -> dict[str, Any]:
    """Writes a converted model in the Hugging Face layout: published names, order and shards, in the type stored.

    `out` can be loaded by transformers and converted again. The tensors are those that were converted, bit for bit,
    where `model.dtype` was the checkpoint's own type; where it was not, `config.json` states the new type.

    Args:
      checkpoint: the folder that `run` wrote.

    Raises:
      UserError: `checkpoint` holds no converted model, or `out` holds something else.
    """
    model_dir = checkpoint_dir(checkpoint)
    out = out.expanduser().absolute()
    reader = store.CheckpointReader(model_dir)
    section = {"layout": "huggingface", "model": files.digest(files.read_json(model_dir / MANIFEST)["counts"])}
    with Stage(out.parent, out.name, section) as stage:
        if stage.finished:
            return stage.manifest["counts"]
        names = [name for name in (*_CONFIGURATION, *_REMOTE_CODE) if (model_dir / name).is_file()]
        for name in names:
            _copy(model_dir / name, out / name)
        config = files.read_object(out / "config.json")
        if (typed := _of_type(config, reader.dtype.name)) != config:
            files.write_json(out / "config.json", typed)
        digests = _write(out, reader.table, reader.dtype, reader.read, resume=True)
        digests |= {name: files.sha256(out / name) for name in names}
        with files.atomic_path(out / DIGESTS) as temporary:
            temporary.write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))
        counts = {"tensors": len(reader.table), "dtype": reader.dtype.name, "files": digests}
        stage.finish(counts)
        return counts
