"""Tokens/s of a Matryoshka BatchTopK training step: ours and dictionary_learning's, in turns in one process.

The two take turns, a few steps each, so that both see the same disturbances; the medians over the turns are compared.
Both train in float32 from activations already in memory. No feature is dead, so no auxiliary loss is computed.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from launch.benches import peers
from sae.config import SaeConfig, TrainConfig
from sae.trainer import Trainer

_FRACTIONS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)


def main(options: Sequence[str]) -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(prog="launch.bench sae_step", description=__doc__)
    parser.add_argument("--d_model", type=int, default=512, help="width of the activations")
    parser.add_argument("--n_features", type=int, default=4096)
    parser.add_argument("--k", type=int, default=64, help="mean number of kept features a token")
    parser.add_argument("--batch_size", type=int, default=2048, help="tokens")
    parser.add_argument("--turns", type=int, default=7, help="how often each is timed")
    parser.add_argument("--steps", type=int, default=3, help="steps of one turn")
    arguments = parser.parse_args(options)
    rng = np.random.default_rng(0)
    shape = (arguments.steps, arguments.batch_size, arguments.d_model)
    x = rng.normal(size=shape).astype(np.float32)
    turns = {"ours": _ours(arguments, x), "dictionary_learning": _dictionary_learning(arguments, x)}
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for turn in turns.values():
        turn()  # compiles, and fills caches
    for _ in range(arguments.turns):
        for name, turn in turns.items():
            start = time.perf_counter()
            turn()
            seconds[name].append((time.perf_counter() - start) / arguments.steps)
    rates = {name: arguments.batch_size / statistics.median(times) for name, times in seconds.items()}
    ratios = [theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)]
    result = {
        **vars(arguments),
        "device": str(jax.devices()[0].device_kind),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "tokens_per_second": {name: round(rate) for name, rate in rates.items()},
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
    }
    print(json.dumps(result))


def _ours(arguments: argparse.Namespace, x: np.ndarray) -> Callable[[], None]:
    sizes = tuple(int(fraction * arguments.n_features) for fraction in _FRACTIONS)
    sae = SaeConfig(arguments.d_model, arguments.n_features, arguments.k, sizes, (0.2,) * 5)
    config = TrainConfig(
        steps=10_000,
        batch_size=arguments.batch_size,
        lr=2e-4,
        warmup_steps=1000,
        decay_start=None,
        auxk_alpha=1 / 32,
        dead_tokens=10_000_000,
        threshold_beta=0.999,
        threshold_start=1000,
        normalize=True,
        calibration_tokens=1,
        chunk_steps=arguments.steps,
        checkpoint_every=arguments.steps,
        mesh=(1, 1),
        seed=0,
    )
    trainer = Trainer(sae, config)
    batches = trainer.place(x)
    state = trainer.init(x[0], 1.0)

    def turn() -> None:
        nonlocal state
        state, _ = trainer.run(state, batches, 1.0)
        jax.block_until_ready(state)

    return turn


def _dictionary_learning(arguments: argparse.Namespace, x: np.ndarray) -> Callable[[], None]:
    module = peers.dictionary_learning("trainers.matryoshka_batch_top_k")
    import torch

    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    trainer = module.MatryoshkaBatchTopKTrainer(
        steps=10_000,
        activation_dim=arguments.d_model,
        dict_size=arguments.n_features,
        k=arguments.k,
        layer=0,
        lm_name="benchmark",
        group_fractions=list(_FRACTIONS),
        lr=2e-4,
        seed=0,
        device=device,
    )
    batches = torch.from_numpy(x).to(device)
    steps = 0

    def turn() -> None:
        nonlocal steps
        for batch in batches:
            trainer.update(steps, batch)
            steps += 1

    return turn
