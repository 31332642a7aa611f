"""Tokens/s and peak memory of a steering sweep: ours, and transformers' `generate` with a forward hook.

Both write the same rows (studies x features x strengths), greedily, float32, the same number of tokens for every row,
from the same random weights and prompts, each in a process of its own. The time is that from the prompts to the
tokens, without compiling and loading. transformers writes `--peer_batch` rows at a time, and the hook adds each row's
own vector. With "generate" it prefills the prompt for every row; with "prefilled" it prefills each prompt once and
repeats the keys and values for its rows, which is the best that its interface allows. It is given the prompts'
embeddings and need not encode the images, which ours does.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.benches import child_process
from launch.benches.random_models import SIZES, config_of
from maira_jax.checkpoint import convert
from maira_jax.errors import UserError
from maira_jax.model import maira2
from maira_jax.model.config import Maira2Config, to_hf_dict
from maira_jax.model.sites import Site
from maira_jax.run import files
from steer.program import decode
from steer.program.edit import SteeringEdits

WORDS = {"phantom": 200, "100m": 128}  # text tokens of a prompt
PEERS = ("generate", "prefilled")


def main(options: Sequence[str]) -> None:
    """Prints one line of JSON for each size."""
    parser = argparse.ArgumentParser(prog="launch.bench steer", description=__doc__)
    parser.add_argument("--sizes", default=",".join(SIZES), help="sizes of the model: phantom, 100m")
    parser.add_argument("--studies", type=int, default=8)
    parser.add_argument("--rows", type=int, default=32, help="features times strengths, per study")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per row")
    parser.add_argument("--workers", type=int, default=2, help="batches that ours writes in parallel")
    parser.add_argument("--peer_batch", type=int, default=64, help="rows that transformers writes at a time")
    parser.add_argument(
        "--turns", type=int, default=3, help="number of times that each is timed; the shortest time counts"
    )
    parser.add_argument("--peers", default=",".join(PEERS), help="how transformers is used: generate, prefilled")
    parser.add_argument("--child", nargs=2, metavar=("WHO", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(options)
    if arguments.child:
        who, folder = arguments.child
        run = _ours if who == "ours" else _transformers
        print(json.dumps(_timed(arguments, Path(folder), who, run)))
        return
    for size in arguments.sizes.split(","):
        if size not in SIZES:
            raise UserError(f"--sizes {size!r} is not one of {', '.join(SIZES)}: choose one")
        with tempfile.TemporaryDirectory() as folder:
            _prepare(arguments, size, Path(folder))
            found = {
                who: child_process.measured("steer", options, who, folder)
                for who in ("ours", *arguments.peers.split(","))
            }
            wrote = {who: np.load(Path(folder) / f"{who}.npy") for who in found}
        ours = found["ours"]["tokens_per_second"]
        print(
            json.dumps(
                {
                    "size": size,
                    **{name: value for name, value in vars(arguments).items() if name not in ("sizes", "child")},
                    "device": str(jax.devices()[0].device_kind),
                    "cores": os.cpu_count(),
                    "load": os.getloadavg()[0],
                    **found,
                    "ratio": {who: round(ours / found[who]["tokens_per_second"], 2) for who in found},
                    # Random weights have near ties, and a row that has once diverged does not come back.
                    "same_tokens": {who: round(float((wrote[who] == wrote["ours"]).mean()), 4) for who in found},
                }
            ),
            flush=True,
        )


def _prepare(arguments: argparse.Namespace, size: str, folder: Path) -> None:
    """Writes the weights, prompts, images and vectors that all programs read."""
    cfg, words = config_of(size), WORDS[size]
    params = maira2.init(cfg, jax.random.key(0))
    # Larger than at initialisation, so that the next token is clear and depends on the steering.
    params["language"]["lm_head"] = params["language"]["lm_head"] * 20
    convert.to_hf(params, cfg, folder, np.dtype(np.float32))
    files.write_json(folder / "config.json", to_hf_dict(cfg))
    rng, n = np.random.default_rng(0), arguments.studies
    tokens = rng.integers(3, cfg.text.vocab_size - 10, (n, cfg.patches_per_image + words)).astype(np.int32)
    tokens[:, 8 : 8 + cfg.patches_per_image] = cfg.image_token_id
    mask = np.ones_like(tokens, bool)
    for row in range(n):
        mask[row, tokens.shape[1] - row % 8 :] = False  # prompts differ in length
    side = cfg.vision.image_size
    pixels = rng.normal(size=(n, 1, side, side, 3)).astype(np.float32)
    features, _ = maira2.encode_images(params, cfg, jnp.asarray(pixels))
    embeds = np.asarray(maira2.embed(params, cfg, jnp.asarray(tokens), features))
    vectors = rng.normal(size=(arguments.rows, cfg.text.hidden_size)).astype(np.float32)
    np.savez(folder / "inputs.npz", tokens=tokens, mask=mask, pixels=pixels, embeds=embeds, vectors=vectors)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB


Run = Callable[[], np.ndarray]  # gives the tokens of all rows, [studies, rows, tokens]


def _timed(
    arguments: argparse.Namespace, folder: Path, who: str, make: Callable[[argparse.Namespace, Path, str], Run]
) -> dict[str, Any]:
    run = make(arguments, folder, who)
    loaded, seconds = _peak(), []
    written = run()  # compiles
    for _ in range(arguments.turns):
        start = time.perf_counter()
        written = run()
        seconds.append(time.perf_counter() - start)
    np.save(folder / f"{who}.npy", written)
    return {
        "tokens_per_second": round(written.size / min(seconds), 1),
        "seconds": [round(value, 2) for value in seconds],
        "peak_gib": round(_peak(), 2),
        "peak_gib_loaded": round(loaded, 2),
    }


def _ours(arguments: argparse.Namespace, folder: Path, who: str) -> Run:
    cfg = Maira2Config.from_dir(folder)
    params = maira2.unstacked(convert.to_flax(folder, cfg, np.dtype(np.float32)))
    inputs, site = np.load(folder / "inputs.npz"), Site.parse("language.2.resid_post", cfg)
    tokens, mask, pixels, vectors = (inputs[name] for name in ("tokens", "mask", "pixels", "vectors"))
    shape = decode.SweepShape.of(site, False, slots=arguments.rows, max_new_tokens=arguments.tokens, eos_id=-1)
    n = arguments.rows
    edits = SteeringEdits(jnp.full(n, site.code, jnp.int32), jnp.asarray(vectors), jnp.ones(n))
    each = -(-arguments.studies // arguments.workers)
    parts = [slice(start, start + each) for start in range(0, arguments.studies, each)]

    def write(part: slice) -> np.ndarray:
        prompts = decode.prefill(params, cfg, shape, tokens[part], mask[part], pixels[part], np.zeros_like(mask[part]))
        rows = decode.SteeredRows.of(edits, True, np.full(len(tokens[part]), n))
        return decode.write_rows(params, cfg, shape, prompts, rows)[0]

    def run() -> np.ndarray:
        with ThreadPoolExecutor(arguments.workers) as pool:
            return np.concatenate(list(pool.map(write, parts)))

    return run


def _transformers(arguments: argparse.Namespace, folder: Path, who: str) -> Run:
    try:
        import torch
        from safetensors.torch import load_file
        from transformers import DynamicCache, GenerationConfig, LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install torch transformers") from error

    model: Any = LlamaForCausalLM(LlamaConfig(**files.read_json(folder / "config.json")["text_config"]))
    own, weights = model.state_dict(), {}
    for path in folder.glob("*.safetensors"):
        for name, value in load_file(path).items():
            weights[name.removeprefix("language_model.")] = value
    model.load_state_dict({name: weights[name] for name in own})
    model.eval()
    inputs = np.load(folder / "inputs.npz")
    # transformers continues prompts that are padded on the left.
    order = np.argsort(inputs["mask"], axis=1, kind="stable")  # [studies, positions]
    tokens, mask = (torch.from_numpy(np.take_along_axis(inputs[name], order, axis=1)) for name in ("tokens", "mask"))
    embeds = torch.from_numpy(np.take_along_axis(inputs["embeds"], order[..., None], axis=1))
    vectors = torch.from_numpy(inputs["vectors"])
    rows = [(study, row) for study in range(arguments.studies) for row in range(arguments.rows)]
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=arguments.tokens, pad_token_id=0, eos_token_id=None, use_cache=True
    )
    delta, first = vectors[:1], 0

    def hook(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        if len(output) == len(delta):  # not while the prompts are prefilled
            output[:, first if output.shape[1] > 1 else 0 :] += delta[:, None]
        return output

    model.model.layers[2].register_forward_hook(hook)

    def batch(part: list[tuple[int, int]]) -> torch.Tensor:
        nonlocal delta, first
        studies = [study for study, _ in part]
        given = {"attention_mask": mask[studies].long(), "generation_config": settings}
        steered, first = vectors[[row for _, row in part]], tokens.shape[1] - 1
        if who == "generate":
            delta = steered
            return model.generate(inputs_embeds=embeds[studies], **given)
        different = sorted(set(studies))
        cache, delta = DynamicCache(), vectors[:0]
        positions = (mask[different].long().cumsum(1) - 1).clamp(min=0)[:, :-1]
        model.model(
            inputs_embeds=embeds[different, :-1],
            attention_mask=mask[different, :-1].long(),
            position_ids=positions,
            past_key_values=cache,
        )
        cache.batch_select_indices(torch.tensor([different.index(study) for study in studies]))
        delta = steered
        return model.generate(tokens[studies].long(), past_key_values=cache, **given)[:, tokens.shape[1] :]

    @torch.no_grad()
    def run() -> np.ndarray:
        parts = [rows[start : start + arguments.peer_batch] for start in range(0, len(rows), arguments.peer_batch)]
        written = torch.cat([batch(part) for part in parts])
        return written.reshape(arguments.studies, arguments.rows, -1).numpy()

    return run
