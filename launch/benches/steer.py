"""Tokens/s and peak memory of a steering sweep: ours, and transformers' `generate` with a forward hook.

Both write the same rows (studies x features x strengths), greedily, the same number of tokens for every row, from the
same prompts and random weights, each in a process of its own, on a GPU where there is one. In bfloat16 each draws its
weights on its device: only the sizes are the same, and not the tokens that are written. The time is that from the
prompts to the tokens, without compiling and loading. transformers writes `--peer_batch` rows at a time, and the hook
adds each row's own vector. With "generate" it prefills the prompt for every row; with "prefilled" it prefills each
prompt once and repeats the keys and values for its rows, which is the best that its interface allows. It is given the
prompts' embeddings and need not encode the images, which ours does.
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

from launch.benches import child_process, random_models
from launch.benches.random_models import DTYPES, SIZES, SMALL, config_of
from launch.benches.torch_maira2 import llama, modules, torch_device, torch_state
from maira_jax.checkpoint import convert
from maira_jax.model import maira2, sharding
from maira_jax.model.config import Maira2Config, to_hf_dict
from maira_jax.model.sites import Site
from maira_jax.run import files
from steer.program import decode
from steer.program.edit import SteeringEdits

WORDS = {"phantom": 200, "100m": 128, "maira2": 295}  # text tokens of a prompt
PEERS = ("generate", "prefilled")


def main(options: Sequence[str]) -> None:
    """Prints one line of JSON for each size."""
    parser = argparse.ArgumentParser(prog="launch.bench steer", description=__doc__)
    parser.add_argument("--sizes", default=",".join(SMALL), help=f"sizes of the model: {', '.join(SIZES)}")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights and activations")
    parser.add_argument("--studies", type=int, default=8)
    parser.add_argument("--rows", type=int, default=32, help="features times strengths, per study")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per row")
    parser.add_argument("--workers", type=int, default=2, help="batches that ours writes in parallel")
    parser.add_argument("--peer_batch", type=int, default=64, help="rows that transformers writes at a time")
    parser.add_argument(
        "--turns", type=int, default=3, help="number of times that each is timed; the shortest time counts"
    )
    parser.add_argument(
        "--peers", default=",".join(PEERS), help="how transformers is used: generate, prefilled; empty: not"
    )
    parser.add_argument("--child", nargs=2, metavar=("WHO", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(options)
    if arguments.child:
        who, folder = arguments.child
        run = _ours if who == "ours" else _transformers
        print(json.dumps(_timed(arguments, Path(folder), who, run)))
        return
    jax.config.update("jax_platforms", "cpu")  # leaves a GPU to the programs
    for size in random_models.check(arguments.sizes):
        with tempfile.TemporaryDirectory() as folder:
            _prepare(arguments, size, Path(folder))
            print(json.dumps(_compare(arguments, options, size, Path(folder))), flush=True)


def _compare(arguments: argparse.Namespace, options: Sequence[str], size: str, folder: Path) -> dict[str, Any]:
    programs = ("ours", *filter(None, arguments.peers.split(",")))
    found = {who: child_process.measured("steer", options, who, folder) for who in programs}
    ours = found["ours"]["tokens_per_second"]
    result = {
        "size": size,
        **{name: value for name, value in vars(arguments).items() if name not in ("sizes", "child")},
        "device": found["ours"]["device"],
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        **found,
        "ratio": {who: round(ours / found[who]["tokens_per_second"], 2) for who in found},
    }
    if arguments.dtype == "float32":
        wrote = {who: np.load(folder / f"{who}.npy") for who in found}
        # Random weights have near ties, and a row that has once diverged does not come back.
        result["same_tokens"] = {who: round(float((wrote[who] == wrote["ours"]).mean()), 4) for who in found}
    return result


def _prepare(arguments: argparse.Namespace, size: str, folder: Path) -> None:
    """Writes the weights, prompts, images and vectors that all programs read."""
    cfg, words = config_of(size), WORDS[size]
    files.write_json(folder / "config.json", to_hf_dict(cfg))
    rng, n = np.random.default_rng(0), arguments.studies
    tokens = rng.integers(3, cfg.text.vocab_size - 10, (n, cfg.patches_per_image + words)).astype(np.int32)
    tokens[:, 8 : 8 + cfg.patches_per_image] = cfg.image_token_id
    mask = np.ones_like(tokens, bool)
    for row in range(n):
        mask[row, tokens.shape[1] - row % 8 :] = False  # prompts differ in length
    side = cfg.vision.image_size
    pixels = rng.normal(size=(n, 1, side, side, 3)).astype(np.float32)
    vectors = rng.normal(size=(arguments.rows, cfg.text.hidden_size)).astype(np.float32)
    if arguments.dtype == "float32":
        embeds = _write_weights(cfg, folder, tokens, pixels)
    else:
        embeds = rng.normal(scale=0.02, size=(*tokens.shape, cfg.text.hidden_size)).astype(np.float32)
    np.savez(folder / "inputs.npz", tokens=tokens, mask=mask, pixels=pixels, embeds=embeds, vectors=vectors)


def _write_weights(cfg: Maira2Config, folder: Path, tokens: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Writes weights, and gives the embeddings of the prompts, [studies, positions, d_model]."""
    params = maira2.init(cfg, jax.random.key(0))
    # Larger than at initialisation, so that the next token is clear and depends on the steering.
    params["language"]["lm_head"] = params["language"]["lm_head"] * 20
    convert.to_hf(params, cfg, folder, np.dtype(np.float32))
    features, _ = maira2.encode_images(params, cfg, jnp.asarray(pixels))
    return np.asarray(maira2.embed(params, cfg, jnp.asarray(tokens), features))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB


Run = Callable[[], np.ndarray]  # gives the tokens of all rows, [studies, rows, tokens]


def _timed(
    arguments: argparse.Namespace, folder: Path, who: str, make: Callable[[argparse.Namespace, Path, str], Run]
) -> dict[str, Any]:
    run = make(arguments, folder, who)
    child_process.phase(f"{who}: loaded")
    loaded, seconds = _peak(), []
    written = run()  # compiles
    child_process.phase(f"{who}: warm")
    for _ in range(arguments.turns):
        start = time.perf_counter()
        written = run()
        seconds.append(time.perf_counter() - start)
        child_process.phase(f"{who}: {seconds[-1]:.2f} s")
    np.save(folder / f"{who}.npy", written)
    return {
        "tokens_per_second": round(written.size / min(seconds), 1),
        "seconds": [round(value, 2) for value in seconds],
        "peak_gib": round(_peak(), 2),
        "peak_gib_loaded": round(loaded, 2),
    } | (child_process.device_state() if who == "ours" else torch_state())


def _layer(cfg: Maira2Config) -> int:
    """The layer that is steered, in the middle of the language model."""
    return cfg.text.num_hidden_layers // 2 - 1


def _ours(arguments: argparse.Namespace, folder: Path, who: str) -> Run:
    cfg = Maira2Config.from_dir(folder)
    if arguments.dtype == "float32":
        params = maira2.unstacked(convert.to_flax(folder, cfg, np.dtype(np.float32)))
    else:
        params = random_models.draw_unstacked(cfg, arguments.dtype)
    inputs, site = np.load(folder / "inputs.npz"), Site.parse(f"language.{_layer(cfg)}.resid_post", cfg)
    tokens, mask, pixels, vectors = (inputs[name] for name in ("tokens", "mask", "pixels", "vectors"))
    shape = decode.SweepShape.of(site, False, slots=arguments.rows, max_new_tokens=arguments.tokens, eos_id=-1)
    n, mesh = arguments.rows, sharding.mesh_of(params)
    edits = SteeringEdits(jnp.full(n, site.code, jnp.int32), jnp.asarray(vectors), jnp.ones(n))
    each = -(-arguments.studies // arguments.workers)
    parts = [slice(start, start + each) for start in range(0, arguments.studies, each)]

    def write(part: slice) -> np.ndarray:
        unedited = np.zeros_like(mask[part])
        rows = decode.SteeredRows.of(edits, True, np.full(len(unedited), n))
        with jax.set_mesh(mesh):
            prompts = decode.prefill(params, cfg, shape, tokens[part], mask[part], pixels[part], unedited)
            return decode.write_rows(params, cfg, shape, prompts, rows)[0]

    def run() -> np.ndarray:
        with ThreadPoolExecutor(arguments.workers) as pool:
            return np.concatenate(list(pool.map(write, parts)))

    return run


def _transformers(arguments: argparse.Namespace, folder: Path, who: str) -> Run:
    torch, transformers = modules()
    model, device, dtype = llama(folder, arguments.dtype), torch_device(), getattr(modules()[0], arguments.dtype)
    inputs = np.load(folder / "inputs.npz")
    # transformers continues prompts that are padded on the left.
    order = np.argsort(inputs["mask"], axis=1, kind="stable")  # [studies, positions]
    tokens, mask = (
        torch.from_numpy(np.take_along_axis(inputs[name], order, axis=1)).to(device) for name in ("tokens", "mask")
    )
    embeds = torch.from_numpy(np.take_along_axis(inputs["embeds"], order[..., None], axis=1)).to(device, dtype)
    vectors = torch.from_numpy(inputs["vectors"]).to(device, dtype)
    rows = [(study, row) for study in range(arguments.studies) for row in range(arguments.rows)]
    settings = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=arguments.tokens, pad_token_id=0, eos_token_id=None, use_cache=True
    )
    delta, first = vectors[:1], 0

    def hook(module: Any, args: Any, output: Any) -> Any:
        if len(output) == len(delta):  # not while the prompts are prefilled
            output[:, first if output.shape[1] > 1 else 0 :] += delta[:, None]
        return output

    model.model.layers[_layer(Maira2Config.from_dir(folder))].register_forward_hook(hook)

    def batch(part: list[tuple[int, int]]) -> Any:
        nonlocal delta, first
        studies = [study for study, _ in part]
        given = {"attention_mask": mask[studies].long(), "generation_config": settings}
        steered, first = vectors[[row for _, row in part]], tokens.shape[1] - 1
        if who == "generate":
            delta = steered
            return model.generate(inputs_embeds=embeds[studies], **given)
        different = sorted(set(studies))
        cache, delta = transformers.DynamicCache(), vectors[:0]
        positions = (mask[different].long().cumsum(1) - 1).clamp(min=0)[:, :-1]
        model.model(
            inputs_embeds=embeds[different, :-1],
            attention_mask=mask[different, :-1].long(),
            position_ids=positions,
            past_key_values=cache,
        )
        cache.batch_select_indices(torch.tensor([different.index(study) for study in studies], device=device))
        delta = steered
        return model.generate(tokens[studies].long(), past_key_values=cache, **given)[:, tokens.shape[1] :]

    @torch.no_grad()
    def run() -> np.ndarray:
        parts = [rows[start : start + arguments.peer_batch] for start in range(0, len(rows), arguments.peer_batch)]
        written = torch.cat([batch(part) for part in parts])
        return written.reshape(arguments.studies, arguments.rows, -1).cpu().numpy()

    return run
