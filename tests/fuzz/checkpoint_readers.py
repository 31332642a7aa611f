"""Readers of models that come from elsewhere: checkpoints in the Hugging Face layout, torch's files."""

import shutil
from pathlib import Path

import numpy as np
import torch

from maira_jax.checkpoint import convert, digests, shards, torch_file
from maira_jax.checkpoint.layout import dinov2_entries, entries
from maira_jax.checkpoint.tensor_source import TensorSource
from maira_jax.inputs.image import ImageConfig
from maira_jax.inputs.prompt import ChatTemplate, reporting_prompt
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model import maira2
from maira_jax.model.config import Maira2Config, VisionConfig, to_hf_dict
from maira_jax.run import files
from maira_jax.studies.study import Study
from tests.fuzz.fuzzed_reader import FuzzedReader
from tests.helpers.tiny_model import CFG, MAIRA2

_PHANTOM = convert.checkpoint_dir(convert.PHANTOM)
_DINOV2 = VisionConfig(8, 1, 2, 32, 14, 28, 1e-6)
_STUDY = Study("s", "p", np.zeros((8, 8), np.uint8), indication="Cough.", technique="PA.")


def _write_config(folder: Path) -> None:
    files.write_json(folder / "config.json", to_hf_dict(CFG) | {"torch_dtype": "float32", "vision_config": {
        **to_hf_dict(CFG)["vision_config"], **{k: v for k, v in MAIRA2["vision_config"].items() if k == "model_type"}
    }})  # fmt: skip


def _read_config(folder: Path) -> object:
    """With what is computed of a configuration before any tensor is read."""
    cfg = Maira2Config.from_dir(folder)
    return cfg.patches_per_image, len(entries(cfg)), len(maira2.parameter_specs(cfg))


def _write_tensors(folder: Path) -> None:
    """A DINOv2 in two shards, with an index and digests of another tool."""
    shapes = {entry.name: entry.shape for entry in dinov2_entries(_DINOV2)}
    dtype, rng = np.dtype(np.float32), np.random.default_rng(0)
    parts = shards.plan(shapes, dtype, 3000)
    for name, part in parts.items():
        shards.write(folder / name, part, dtype, lambda tensor: rng.standard_normal(shapes[tensor]).astype(dtype))
    (folder / shards.INDEX).write_bytes(shards.index(parts, dtype))
    sums = {name: files.sha256(folder / name) for name in parts}
    (folder / digests.DIGESTS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    cache = folder / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    for name, digest in sums.items():
        (cache / f"{name}.metadata").write_text(f"{'0' * 40}\n{digest}\n1700000000.0\n")


def _write_single(folder: Path) -> None:
    shapes = {entry.name: entry.shape for entry in dinov2_entries(_DINOV2)}
    dtype, rng = np.dtype(np.float32), np.random.default_rng(0)
    shards.write(folder / shards.SINGLE, shapes, dtype, lambda name: rng.standard_normal(shapes[name]).astype(dtype))


def _read_tensors(folder: Path) -> object:
    source = TensorSource(folder, dinov2_entries(_DINOV2), "DINOv2")
    return [tensor.shape for shard in source.parts for _, tensor in source.read(shard)]


def _of_phantom(*names: str):
    def write(folder: Path) -> None:
        for name in names:
            shutil.copyfile(_PHANTOM / name, folder / name)

    return write


def _write_small_tokenizer(folder: Path) -> None:
    from maira_jax.phantom.pretraining import tokenizer_files

    tokenizer_files.from_corpus([reporting_prompt(_STUDY).content] * 3, 330, folder)
    files.write_json(folder / "config.json", {"vision_config": {"image_size": 56, "patch_size": 14}})


def _read_tokenizer(folder: Path) -> object:
    tokenizer = Tokenizer.from_dir(folder)
    encoded = tokenizer.encode(reporting_prompt(_STUDY), "No effusion.")
    return tokenizer.decode(encoded.ids), tokenizer.pieces(encoded.ids[:50])


def _write_template(folder: Path) -> None:
    source = files.read_object(_PHANTOM / "chat_template.json")["chat_template"]
    (folder / "chat_template.jinja").write_text(source)


def _state() -> dict[str, object]:
    half = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    layer = torch.nn.Linear(3, 4)
    return {"weight": half, "view": half.T, "bf16": half.to(torch.bfloat16), "k": torch.tensor(3),
            "state": layer.state_dict(), "parameter": layer.weight, "plain": (1, "text", None, 0.5)}  # fmt: skip


def _torch(zipped: bool) -> FuzzedReader:
    name = "ae.pt" if zipped else "ae.bin"
    return FuzzedReader(
        lambda folder: torch.save(_state(), folder / name, _use_new_zipfile_serialization=zipped),
        lambda folder: torch_file.read(folder / name),
        (name,),
    )


CHECKPOINT_READERS = {
    "checkpoint config.json": FuzzedReader(_write_config, _read_config, ("config.json",)),
    "checkpoint index": FuzzedReader(_write_tensors, _read_tensors, (shards.INDEX,)),
    "checkpoint safetensors": FuzzedReader(_write_single, _read_tensors, (shards.SINGLE,)),
    "SHA256SUMS": FuzzedReader(_write_tensors, _read_tensors, (digests.DIGESTS, ".cache/**/*.metadata")),
    "tokenizer.json": FuzzedReader(_write_small_tokenizer, _read_tokenizer, ("tokenizer.json",)),
    "tokenizer configuration": FuzzedReader(
        _write_small_tokenizer, _read_tokenizer, ("tokenizer_config.json", "special_tokens_map.json", "config.json")
    ),
    "chat template": FuzzedReader(_write_template, ChatTemplate.from_dir, ("chat_template.jinja",)),
    "chat template in JSON": FuzzedReader(
        _of_phantom("chat_template.json"), ChatTemplate.from_dir, ("chat_template.json",)
    ),
    "preprocessor_config.json": FuzzedReader(
        _of_phantom("preprocessor_config.json"),
        lambda folder: ImageConfig.from_dir(folder).levels(),
        ("preprocessor_config.json",),
    ),
    "torch archive": _torch(zipped=True),
    "torch pickle before 1.6": _torch(zipped=False),
}
