"""Time of a step in which every row writes a token, against the time in which the memory moves a step's bytes.

A step reads the language model's weights and the rows' keys and values, once each. These bytes over the step's time are
compared with the bytes per second, read and written, of a large copy within the device. `generate` is ours, as reports
are written; transformers' `generate` writes the same number of rows. Prompts are of one length, with images and words.
The time of a step is (time of `--tokens` tokens - time of one token) / (`--tokens` - 1): prompts are not in it.

Weights are random, and each program draws its own on its device. transformers is given embeddings, and need not encode
the images, which are in our time of a prompt.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from configs import maira2 as shipped
from launch.benches import child_process, random_models
from launch.benches.random_models import DTYPES, SIZES, SMALL
from launch.benches.torch_maira2 import llama, modules, torch_device, torch_state
from maira_jax.generation.decode import generate
from maira_jax.inputs.batches import padded_length
from maira_jax.model import sharding
from maira_jax.model.config import Maira2Config
from maira_jax.model.int8 import Weights
from maira_jax.model.layers import Params

_WORDS = 150  # tokens of a prompt that are not of its images
_COPIES = 20
_COPIED = 1 << 28  # bytes of what is copied where a device does not say how much memory it has; else a 16th of it


def main(options: Sequence[str]) -> None:
    """Prints one line of JSON for each size."""
    parser = argparse.ArgumentParser(
        prog="launch.bench decode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    batches = f"8,{shipped.get_config().generate.batch_size}"
    parser.add_argument("--sizes", default=",".join(SMALL), help=f"sizes of the model: {', '.join(SIZES)}")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of weights, keys and values")
    parser.add_argument("--batches", default=batches, help="numbers of rows that are written together (%(default)s)")
    parser.add_argument("--images", type=int, default=2, help="images of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a row")
    parser.add_argument("--turns", type=int, default=3, help="number of times that each is timed; the median counts")
    parser.add_argument(
        "--programs",
        default="full,int8,transformers",
        help="ours with full or int8 weights, transformers (%(default)s)",
    )
    parser.add_argument("--child", nargs=2, metavar=("WHO", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(options)
    if arguments.child:
        who, folder = arguments.child
        print(json.dumps(_measured(arguments, who, Path(folder))))
        return
    jax.config.update("jax_platforms", "cpu")  # leaves a GPU to the programs
    for size in random_models.check(arguments.sizes):
        with tempfile.TemporaryDirectory() as folder:
            random_models.write_description(size, Path(folder))
            found = {
                who: child_process.measured("decode", options, who, folder) for who in arguments.programs.split(",")
            }
        shown = {name: value for name, value in vars(arguments).items() if name not in ("sizes", "child", "programs")}
        machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
        print(json.dumps({"size": size, **shown, **machine, **found}), flush=True)


def _measured(arguments: argparse.Namespace, who: str, folder: Path) -> dict[str, Any]:
    cfg, ours = Maira2Config.from_dir(folder), who in get_args(Weights)
    found: dict[str, Any] = {}
    if ours:
        params = random_models.draw_unstacked(cfg, arguments.dtype, who)  # type: ignore[arg-type]
        bandwidth = found["bandwidth"] = _bandwidth()
        child_process.phase(f"{who}: a copy moves {bandwidth / 1e9:.0f} GB/s")
    else:
        model = llama(folder, arguments.dtype)
    child_process.phase(f"{who}: loaded")
    for batch in map(int, arguments.batches.split(",")):
        write = _ours(arguments, params, cfg, batch) if ours else _transformers(arguments, model, cfg, batch)
        times = found[f"batch_{batch}"] = _times(arguments, write, batch)
        if ours:
            moved = _step_bytes(arguments, params, cfg, batch)
            reached = moved / times["step_seconds"]
            times |= {"step_bytes": moved, "of_bandwidth": round(reached / bandwidth, 3)}
        child_process.phase(f"{who}, {batch} rows: {json.dumps(times)}")
    return found | (child_process.device_state() if ours else torch_state())


def _times(arguments: argparse.Namespace, write: Callable[[int], None], batch: int) -> dict[str, Any]:
    """Seconds of the prompts with one token, of a step after them, and the steps' tokens per second."""

    def seconds(tokens: int) -> float:
        write(tokens)  # compiles
        child_process.phase(f"{batch} rows of {tokens} tokens: warm")
        found = []
        for _ in range(arguments.turns):
            start = time.perf_counter()
            write(tokens)
            found.append(time.perf_counter() - start)
        return statistics.median(found)

    first, whole = seconds(1), seconds(arguments.tokens)
    step = (whole - first) / (arguments.tokens - 1)
    return {"prompt_seconds": first, "step_seconds": step, "tokens_per_second": round(batch / step, 1)}


def _bandwidth() -> float:
    """Bytes per second, read and written, of a large copy within the device."""
    memory = sharding.device_memory()
    x = jnp.ones((memory // 16 if memory else _COPIED) // 4, jnp.float32)
    copy = jax.jit(jnp.copy)
    copy(x).block_until_ready()
    start = time.perf_counter()
    for _ in range(_COPIES):
        copied = copy(x)
    copied.block_until_ready()
    return 2 * x.nbytes * _COPIES / (time.perf_counter() - start)


def _prompt_tokens(arguments: argparse.Namespace, cfg: Maira2Config) -> int:
    return arguments.images * cfg.patches_per_image + _WORDS


def _step_bytes(arguments: argparse.Namespace, params: Params, cfg: Maira2Config, batch: int) -> int:
    """Bytes of the weights that a step takes, and of the keys and values of all rows before the middle step's token."""
    language, text = params["language"], cfg.text
    weights = sum(leaf.nbytes for name, part in language.items() if name != "embed" for leaf in jax.tree.leaves(part))
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * language["embed"].dtype.itemsize
    return weights + batch * token * (_prompt_tokens(arguments, cfg) + arguments.tokens // 2)


def _ours(arguments: argparse.Namespace, params: Params, cfg: Maira2Config, batch: int) -> Callable[[int], None]:
    size, rng, side = _prompt_tokens(arguments, cfg), np.random.default_rng(0), cfg.vision.image_size
    tokens = rng.integers(3, cfg.image_token_id, (batch, padded_length(size))).astype(np.int32)
    tokens[:, 8 : 8 + size - _WORDS] = cfg.image_token_id
    mask = np.broadcast_to(np.arange(tokens.shape[1]) < size, tokens.shape)
    pixels = rng.normal(size=(batch, arguments.images, side, side, 3)).astype(np.float32)
    mesh = sharding.mesh_of(params)
    inputs = sharding.place_rows(mesh, (tokens, mask, pixels))

    def write(tokens: int) -> None:
        with jax.set_mesh(mesh):
            generate(params, cfg, *inputs, max_new_tokens=tokens, eos_id=-1)[0].block_until_ready()

    return write


def _transformers(arguments: argparse.Namespace, model: Any, cfg: Maira2Config, batch: int) -> Callable[[int], None]:
    torch, transformers = modules()
    shape = (batch, _prompt_tokens(arguments, cfg), cfg.text.hidden_size)
    embeds = 0.02 * torch.randn(shape, device=torch_device(), dtype=getattr(torch, arguments.dtype))
    mask = torch.ones(shape[:2], device=torch_device(), dtype=torch.long)

    @torch.no_grad()
    def write(tokens: int) -> None:
        settings = transformers.GenerationConfig(
            do_sample=False, max_new_tokens=tokens, pad_token_id=0, eos_token_id=None, use_cache=True
        )
        written = model.generate(inputs_embeds=embeds, attention_mask=mask, generation_config=settings)
        if written.cpu().shape != (batch, tokens):
            raise RuntimeError(f"transformers wrote {tuple(written.shape)} tokens, not {(batch, tokens)}")

    return write
