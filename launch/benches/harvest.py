"""Tokens/s of harvesting activations in the middle of the language model: ours, and transformers with a hook.

Studies of the phantom, whose reports differ in length, with one or two images; random weights, the same for all, in
float32, each program in a process of its own. Ours is the stage from images to kept activations in host memory.
transformers' Dinov2 and Llama get pixels that are ready, batches sorted by length, and the fastest of `--peer_batches`.
Peers: "hook" runs the model, without its head, as its interface does; "stopped" is the same with an exception that the
hook raises, which ends the pass at the layer. The time is without loading, tokenising and compiling; programs take
turns, and the median counts. Tokens are those of the studies, without padding.
"""

import argparse
import contextlib
import functools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import base
from launch.benches import child_process
from launch.benches.random_models import SIZES, config_of, write_checkpoint
from launch.benches.torch_maira2 import TorchMaira2
from maira_jax.checkpoint import convert
from maira_jax.errors import UserError
from maira_jax.inputs.batches import GenerationRequest
from maira_jax.inputs.image import ImageConfig, preprocess
from sae.activations.harvest import Harvester

STUDIES = {"phantom": 256, "100m": 16}
PEERS = ("hook", "stopped")
TOLERANCE = 1e-4  # of the largest activation


def main(options: Sequence[str]) -> None:
    """Prints one line of JSON for each size."""
    parser = argparse.ArgumentParser(
        prog="launch.bench harvest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default=",".join(SIZES), help="sizes of the model: phantom, 100m")
    parser.add_argument("--turns", type=int, default=3, help="number of times that each program is run")
    parser.add_argument("--peers", default=",".join(PEERS), help="how transformers is used: hook, stopped")
    parser.add_argument("--peer_batches", default="4,16", help="batch sizes of which transformers gets the fastest")
    parser.add_argument("--child", nargs=3, metavar=("WHO", "SIZE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(options)
    if arguments.child:
        who, size, folder = arguments.child
        config, batches = _config(size, Path(folder)), [int(n) for n in arguments.peer_batches.split(",")]
        found = _ours(config, Path(folder)) if who == "ours" else _transformers(config, Path(folder), who, batches)
        print(json.dumps(found))
        return
    for size in arguments.sizes.split(","):
        if size not in SIZES:
            raise UserError(f"--sizes {size!r} is not one of {', '.join(SIZES)}: choose one")
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(_compare(arguments, options, size, Path(folder))), flush=True)


def _compare(arguments: argparse.Namespace, options: Sequence[str], size: str, folder: Path) -> dict[str, Any]:
    write_checkpoint(size, folder / "checkpoint")
    convert.run(_config(size, folder), folder)
    programs = ("ours", *arguments.peers.split(","))
    turns = [
        {who: child_process.measured("harvest", options, who, size, folder) for who in programs}
        for _ in range(arguments.turns)
    ]
    rates = {who: statistics.median(turn[who]["tokens_per_second"] for turn in turns) for who in programs}
    ours = np.load(folder / "ours.npy")
    return {
        "size": size,
        "device": str(jax.devices()[0].device_kind),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "tokens_per_second": rates,
        "ratio": {who: round(rates["ours"] / rates[who], 2) for who in programs},
        "difference": {who: _difference(ours, np.load(folder / f"{who}.npy")) for who in programs},
        "turns": turns,
    }


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    found = float(np.abs(ours - theirs).max() / np.abs(ours).max())
    if found > TOLERANCE:
        raise UserError(f"the activations differ by {found} of the largest: the programs do not compute the same")
    return found


def _config(size: str, folder: Path) -> ConfigDict:
    config, cfg = base.get_config(), config_of(size)
    config.model.checkpoint = str(folder / "checkpoint")
    config.studies = base.studies("phantom", n=STUDIES[size], seed=1, size=cfg.vision.image_size)
    # As far into the model as layer 15 of MAIRA-2's 32.
    config.harvest.site = f"language.{cfg.text.num_hidden_layers // 2 - 1}.resid_post"
    return config


def _timed(run: Callable[[], list[np.ndarray]], tokens: int, path: Path) -> float:
    """Tokens per second; the activations of all kept tokens, in the order of the studies, go into a file."""
    start = time.perf_counter()
    activations = run()
    seconds = time.perf_counter() - start
    np.save(path, np.concatenate(activations))
    return round(tokens / seconds, 1)


def _tokens(harvester: Harvester) -> int:
    return sum(len(request.encoded) for request in harvester.plan.requests)


def _ours(config: ConfigDict, folder: Path) -> dict[str, Any]:
    harvester = Harvester.open(config, folder)
    batches = list(harvester.batches.all())

    def run() -> list[np.ndarray]:
        found: dict[int, np.ndarray] = {}
        for batch, activations in harvester.read(batches):
            found |= dict(zip(batch.studies, activations, strict=True))
        return [found[study] for study in sorted(found)]

    run()  # compiles
    rate = _timed(run, _tokens(harvester), folder / "ours.npy")
    return {"tokens_per_second": rate, "batch": harvester.batch_size, "busy": round(harvester.queue.clock.share(), 3)}


class _ReachedLayerError(Exception):
    """What the hook raises to end the pass."""


def _transformers(config: ConfigDict, folder: Path, who: str, batch_sizes: Sequence[int]) -> dict[str, Any]:
    harvester = Harvester.open(config, folder)  # for its studies and kept tokens alone
    plan, model = harvester.plan, TorchMaira2(folder / "checkpoint")
    torch, seen = model.torch, []
    cfg = ImageConfig.from_dir(folder / "checkpoint")
    pixels = [[preprocess(image, cfg).transpose(2, 0, 1) for image in request.images] for request in plan.requests]

    def hook(module: Any, given: Any, output: Any) -> None:
        seen.append(output)
        if who == "stopped":
            raise _ReachedLayerError

    model.language.layers[int(config.harvest.site.split(".")[1])].register_forward_hook(hook)
    order = sorted(range(len(plan.requests)), key=lambda i: len(plan.requests[i].encoded))

    def run(batch_size: int) -> list[np.ndarray]:
        found: dict[int, np.ndarray] = {}
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            tokens, mask = _padded([plan.requests[i] for i in rows])
            images = np.stack([image for i in rows for image in pixels[i]])
            given = {"inputs_embeds": model.embed(tokens, images), "attention_mask": torch.from_numpy(mask)}
            with contextlib.suppress(_ReachedLayerError):
                model.language(**given, use_cache=False)
            activations = seen.pop().numpy()
            found |= {i: activations[row, plan.kept[i]] for row, i in enumerate(rows)}
        return [found[i] for i in range(len(order))]

    with torch.no_grad():
        run(batch_sizes[0])  # the first pass is slower
        path, tokens = folder / f"{who}.npy", _tokens(harvester)
        rates = {size: _timed(functools.partial(run, size), tokens, path) for size in batch_sizes}
    best = max(rates, key=lambda size: rates[size])
    return {"tokens_per_second": rates[best], "batch": best, "rates": rates}


def _padded(requests: Sequence[GenerationRequest]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask, padded on the right to the longest request, int64 [batch, positions] each."""
    longest = max(len(request.encoded) for request in requests)
    tokens, mask = np.zeros((2, len(requests), longest), np.int64)
    for row, request in enumerate(requests):
        size = len(request.encoded)
        tokens[row, :size], mask[row, :size] = request.encoded.ids, 1
    return tokens, mask
