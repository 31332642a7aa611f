"""Tokens/s of harvesting activations in the middle of the language model: ours, and transformers with a hook.

Studies of the phantom, whose reports differ in length, with one or two images, and random weights; each program is in a
process of its own, on a GPU where there is one. Ours is the stage from images to kept activations in host memory.
transformers' Dinov2 and Llama get pixels that are ready, batches sorted by length, and the fastest of `--peer_batches`.
Peers: "hook" runs the model, without its head, as its interface does; "stopped" is the same with an exception that the
hook raises, which ends the pass at the layer. The time is without loading, tokenising and compiling; programs take
turns, and the median counts. Tokens are those of the studies, without padding.

In float32 the programs have the same weights, and what they give is compared. In bfloat16 each draws its own on its
device: sizes, prompts and numbers of tokens are the same, activations are not.
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

from configs import base, maira2
from launch.benches import child_process, random_models
from launch.benches.random_models import DTYPES, SIZES, SMALL
from launch.benches.torch_maira2 import TorchMaira2, torch_state
from maira_jax.checkpoint import convert
from maira_jax.errors import UserError
from maira_jax.inputs.batches import GenerationRequest
from maira_jax.inputs.image import ImageConfig, preprocess
from maira_jax.inputs.readable import load_readable
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model.config import Maira2Config
from maira_jax.run import files
from sae.activations.config import HarvestSection
from sae.activations.harvest import Harvester, language_site
from sae.activations.harvest_plan import HarvestPlan, make_plan

STUDIES = {"phantom": 256, "100m": 32, "maira2": 64}
MAX_SIDE = 224  # larger pictures of the phantom take long to draw, and are enlarged instead
PEERS = ("hook", "stopped")
TOLERANCE = 1e-4  # of the largest activation


def main(options: Sequence[str]) -> None:
    """Prints one line of JSON for each size."""
    parser = argparse.ArgumentParser(
        prog="launch.bench harvest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default=",".join(SMALL), help=f"sizes of the model: {', '.join(SIZES)}")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights and activations")
    parser.add_argument("--turns", type=int, default=3, help="number of times that each program is started")
    parser.add_argument("--runs", type=int, default=1, help="number of times that a started program is timed")
    parser.add_argument("--peers", default=",".join(PEERS), help="how transformers is used: hook, stopped")
    parser.add_argument("--peer_batches", default="4,16", help="batch sizes of which transformers gets the fastest")
    parser.add_argument("--child", nargs=3, metavar=("WHO", "SIZE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(options)
    if arguments.child:
        who, size, folder = arguments.child
        config = _config(size, arguments.dtype, Path(folder))
        run = _ours if who == "ours" else functools.partial(_transformers, who=who)
        print(json.dumps(run(arguments, config, Path(folder))))
        return
    jax.config.update("jax_platforms", "cpu")  # leaves a GPU to the programs
    for size in random_models.check(arguments.sizes):
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(_compare(arguments, options, size, Path(folder))), flush=True)


def _compare(arguments: argparse.Namespace, options: Sequence[str], size: str, folder: Path) -> dict[str, Any]:
    _prepare(size, arguments.dtype, folder)
    programs = ("ours", *filter(None, arguments.peers.split(",")))
    turns = [
        {who: child_process.measured("harvest", options, who, size, folder) for who in programs}
        for _ in range(arguments.turns)
    ]
    rates = {who: statistics.median(turn[who]["tokens_per_second"] for turn in turns) for who in programs}
    found = {
        "size": size,
        "dtype": arguments.dtype,
        "site": _config(size, arguments.dtype, folder).harvest.site,
        "device": turns[0]["ours"]["device"],
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "tokens_per_second": rates,
        "ratio": {who: round(rates["ours"] / rates[who], 2) for who in programs},
    }
    if arguments.dtype == "float32":
        ours = np.load(folder / "ours.npy")
        found["difference"] = {who: _difference(ours, np.load(folder / f"{who}.npy")) for who in programs}
    return found | {"turns": turns}


def _prepare(size: str, dtype: str, folder: Path) -> None:
    """Writes what the programs read: in float32 weights too."""
    if dtype == "float32":
        random_models.write_checkpoint(size, folder / "checkpoint")
        convert.run(_config(size, dtype, folder), folder)
        return
    for name in ("checkpoint", "model"):
        random_models.write_description(size, folder / name)
    files.write_json(folder / "model" / "manifest.json", {"section": {"checkpoint": "random"}})


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    found = float(np.abs(ours - theirs).max() / np.abs(ours).max())
    if found > TOLERANCE:
        raise UserError(f"the activations differ by {found} of the largest: the programs do not compute the same")
    return found


def _config(size: str, dtype: str, folder: Path) -> ConfigDict:
    config, cfg = base.get_config(), random_models.config_of(size)
    config.model.update({"checkpoint": str(folder / "checkpoint"), "dtype": dtype})
    side = min(cfg.vision.image_size, MAX_SIDE)
    config.studies = base.studies("phantom", n=STUDIES[size], seed=1, size=side)
    # As far into the model as layer 15 of MAIRA-2's 32.
    config.harvest.site = f"language.{cfg.text.num_hidden_layers // 2 - 1}.resid_post"
    config.harvest.update({"batch_size": maira2.get_config().harvest.batch_size, "dtype": dtype})
    return config


def _timed(run: Callable[[], list[np.ndarray]], runs: int, tokens: int, path: Path) -> float:
    """Tokens per second, the median of some runs; the activations of all kept tokens go into a file."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        activations = run()
        seconds.append(time.perf_counter() - start)
        child_process.phase(f"{path.stem}: {seconds[-1]:.2f} s")
    np.save(path, np.concatenate(activations).astype(np.float32))  # in the order of the studies
    return round(tokens / statistics.median(seconds), 1)


def _tokens(plan: HarvestPlan) -> int:
    return sum(len(request.encoded) for request in plan.requests)


def _harvester(config: ConfigDict, folder: Path) -> Harvester:
    if config.model.dtype == "float32":
        return Harvester.open(config, folder)
    cfg = Maira2Config.from_dir(folder / "model")
    params = random_models.draw(cfg, config.model.dtype, stop=language_site(config.harvest.site, cfg))
    return Harvester(config, folder / "model", params, cfg)


def _ours(arguments: argparse.Namespace, config: ConfigDict, folder: Path) -> dict[str, Any]:
    harvester = _harvester(config, folder)
    batches = list(harvester.batches.all())
    child_process.phase(f"ours: {len(batches)} batches of lengths {harvester.plan.lengths}")

    def run() -> list[np.ndarray]:
        found: dict[int, np.ndarray] = {}
        for batch, activations in harvester.read(batches):
            found |= dict(zip(batch.studies, activations, strict=True))
        return [found[study] for study in sorted(found)]

    run()
    child_process.phase("ours: compiled")
    rate = _timed(run, arguments.runs, _tokens(harvester.plan), folder / "ours.npy")
    return {
        "tokens_per_second": rate,
        "batch": harvester.batch_size,
        "busy": round(harvester.queue.clock.share(), 3),
        "studies": len(harvester.plan.requests),
        "tokens": _tokens(harvester.plan),
        "images": sum(len(request.images) for request in harvester.plan.requests),
    } | child_process.device_state()


class _ReachedLayerError(Exception):
    """What the hook raises to end the pass."""


def _transformers(arguments: argparse.Namespace, config: ConfigDict, folder: Path, who: str) -> dict[str, Any]:
    section, studies = HarvestSection.of(config), load_readable(config.studies, folder, 0)
    plan, model = (
        make_plan(studies, Tokenizer.from_dir(folder / "model"), section),
        TorchMaira2(folder / "checkpoint", config.model.dtype),
    )
    torch, seen = model.torch, []
    cfg = ImageConfig.from_dir(folder / "checkpoint")
    pixels = [[preprocess(image, cfg).transpose(2, 0, 1) for image in request.images] for request in plan.requests]
    kept = [torch.from_numpy(positions).to(model.device) for positions in plan.kept]
    child_process.phase(f"{who}: loaded")

    def hook(module: Any, given: Any, output: Any) -> None:
        seen.append(output)
        if who == "stopped":
            raise _ReachedLayerError

    model.language.layers[int(section.site.split(".")[1])].register_forward_hook(hook)
    order = sorted(range(len(plan.requests)), key=lambda i: len(plan.requests[i].encoded))

    def run(batch_size: int) -> list[np.ndarray]:
        found: dict[int, np.ndarray] = {}
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            tokens, mask = _padded([plan.requests[i] for i in rows])
            images = np.stack([image for i in rows for image in pixels[i]])
            given = {"attention_mask": torch.from_numpy(mask).to(model.device)}
            with contextlib.suppress(_ReachedLayerError):
                model.language(inputs_embeds=model.embed(tokens, images), **given, use_cache=False)
            activations = seen.pop()
            picked = torch.cat([activations[row, kept[i]] for row, i in enumerate(rows)]).cpu().float().numpy()
            found |= dict(zip(rows, np.split(picked, np.cumsum([len(kept[i]) for i in rows])[:-1]), strict=True))
        return [found[i] for i in range(len(order))]

    batch_sizes = [int(n) for n in arguments.peer_batches.split(",")]
    with torch.no_grad():
        run(batch_sizes[0])  # the first pass is slower
        child_process.phase(f"{who}: warm")
        path, tokens = folder / f"{who}.npy", _tokens(plan)
        rates = {n: _timed(functools.partial(run, n), arguments.runs, tokens, path) for n in batch_sizes}
    best = max(rates, key=lambda size: rates[size])
    return {"tokens_per_second": rates[best], "batch": best, "rates": rates} | torch_state()


def _padded(requests: Sequence[GenerationRequest]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask, padded on the right to the longest request, int64 [batch, positions] each."""
    longest = max(len(request.encoded) for request in requests)
    tokens, mask = np.zeros((2, len(requests), longest), np.int64)
    for row, request in enumerate(requests):
        size = len(request.encoded)
        tokens[row, :size], mask[row, :size] = request.encoded.ids, 1
    return tokens, mask
