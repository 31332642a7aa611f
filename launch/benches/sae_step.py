"""Tokens/s of a training step: ours, dictionary_learning's, SAELens' and sparsify's, in turns in one process.

They take turns of a few steps each, so that other load affects all of them alike; medians over the turns are compared.
All train from activations in memory, ours with products of `--dtype`, the others with parameters in float32 and
products of `--peer_products`. No feature is dead, so that no auxiliary loss is computed. sparsify has neither
Matryoshka nor BatchTopK: its plain TopK is timed. On a GPU the share of the device's measured rate of bfloat16 products
is given that our step's five products make up.
"""

import argparse
import functools
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from launch.benches import peers
from launch.benches.matrix_rate import matrix_rate
from sae.training import flops
from sae.training.config import SaeConfig, TrainConfig, TrainSection, group_sizes
from sae.training.presets import PRESETS
from sae.training.trainer import Trainer

_FRACTIONS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)
_STEPS = 10_000
_PEERS = ("dictionary_learning", "sae_lens", "sparsify")


def main(options: Sequence[str]) -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(prog="launch.bench sae_step", description=__doc__)
    parser.add_argument("--d_model", type=int, default=512, help="width of the activations")
    parser.add_argument("--n_features", type=int, default=4096)
    parser.add_argument("--k", type=int, default=64, help="mean number of active features per token")
    parser.add_argument("--batch_size", type=int, default=2048, help="tokens")
    parser.add_argument("--dtype", default="float32", help="type of our matrix products")
    parser.add_argument("--microbatches", type=int, default=1, help="parts of our batch")
    parser.add_argument("--turns", type=int, default=7, help="number of times that each is timed")
    parser.add_argument("--steps", type=int, default=3, help="steps in a turn")
    parser.add_argument("--peers", default=",".join(_PEERS), help="the others; empty: ours alone")
    parser.add_argument(
        "--peer_products",
        choices=("highest", "high"),
        default="highest",
        help="PyTorch's precision of float32 products, of which `high` is TF32 on GPUs",
    )
    arguments = parser.parse_args(options)
    rng = np.random.default_rng(0)
    shape = (arguments.steps, arguments.batch_size, arguments.d_model)
    x = rng.normal(size=shape).astype(np.float32)
    turns = {"ours": _ours(arguments, x)}
    if arguments.peers:
        turns |= _peers(arguments, x)
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for turn in turns.values():
        turn()  # compiles and fills caches
    for _ in range(arguments.turns):
        for name, turn in turns.items():
            turn()  # not timed: threads of the one before still spin, and the caches hold its data
            start = time.perf_counter()
            turn()
            seconds[name].append((time.perf_counter() - start) / arguments.steps)
    rates = {name: arguments.batch_size / statistics.median(times) for name, times in seconds.items()}
    result = {
        **vars(arguments),
        "device": str(jax.devices()[0].device_kind),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "milliseconds": {name: round(1000 * statistics.median(times), 2) for name, times in seconds.items()},
        "tokens_per_second": {name: round(rate) for name, rate in rates.items()},
        "ratio": {name: _ratio(seconds["ours"], times) for name, times in seconds.items() if name != "ours"},
    }
    if jax.default_backend() == "gpu":
        measured = matrix_rate()
        result["measured_tflops"] = round(measured / 1e12)
        result["share_of_measured"] = round(
            rates["ours"] * flops.per_token(arguments.d_model, arguments.n_features) / measured, 3
        )
    print(json.dumps(result))


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """How many times faster ours is: median, minimum and maximum over the turns."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    values = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return {name: round(value, 2) for name, value in values.items()}


def _ours(arguments: argparse.Namespace, x: np.ndarray) -> Callable[[], None]:
    sizes = group_sizes(_FRACTIONS, arguments.n_features)
    weights = PRESETS.get("dictionary_learning").group_weights(len(sizes))
    sae = SaeConfig(
        d_model=arguments.d_model,
        n_features=arguments.n_features,
        k=arguments.k,
        group_sizes=sizes,
        group_weights=weights,
        kind="batch_top_k",
        l1=0.0,
    )
    section = TrainSection(
        preset="dictionary_learning",
        steps=_STEPS,
        batch_size=arguments.batch_size,
        microbatches=arguments.microbatches,
        dtype=arguments.dtype,
    )
    trainer = Trainer(sae, TrainConfig.resolve(section, sae, seed=0))
    batches = trainer.place(x)
    state = trainer.init(x[0], 1.0)

    def turn() -> None:
        nonlocal state
        state, _ = trainer.run(state, batches, 1.0)
        jax.block_until_ready(state)

    return turn


def _peers(arguments: argparse.Namespace, x: np.ndarray) -> dict[str, Callable[[], None]]:
    """By name, a function that takes a step of the other library on each batch."""
    d, f, k = arguments.d_model, arguments.n_features, arguments.k
    widths = list(itertools.accumulate(group_sizes(_FRACTIONS, f)))
    torch = peers.torch()
    torch.set_float32_matmul_precision(arguments.peer_products)
    gpu = torch.cuda.is_available() and jax.default_backend() == "gpu"
    device = "cuda" if gpu else "cpu"
    makers: dict[str, Callable[[], peers.PeerTrainer]] = {
        "dictionary_learning": lambda: peers.DictionaryLearning(d, f, k, _FRACTIONS, _STEPS, seed=0, device=device),
        "sae_lens": lambda: peers.SaeLens(d, f, k, widths, _STEPS, arguments.batch_size, device, lr_end=3e-5),
        "sparsify": lambda: peers.Sparsify(d, f, k, device),
    }
    batches = torch.from_numpy(x).to(device)

    def turn(peer: peers.PeerTrainer) -> None:
        for batch in batches:
            peer.step(batch)
        if gpu:
            torch.cuda.synchronize()

    return {name: functools.partial(turn, makers[name]()) for name in arguments.peers.split(",")}
