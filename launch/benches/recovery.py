"""True features recovered from synthetic activations: ours, dictionary_learning's and SAELens'.

All see the same tokens, have the same width and groups, and are measured on the same held-out tokens at the same L0:
the mean number of true features a token has. Each one's threshold is set for that exactly (see
`sae.evaluation.calibrate`). Ours is the default preset as it is; each peer is trained once with each of `--peer_lr`
and the one with the lower error counts. dictionary_learning decays over the last fifth, as in its demo, and so does
SAELens.

fvu        fraction of variance unexplained
recovered  share of true features to which a feature that is ever active has a cosine above 0.9
cosine     mean over the true features of the largest cosine
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from launch.benches import peers
from launch.benches.synthetic import World
from sae import autoencoder
from sae.autoencoder import Sae
from sae.evaluation import calibrate, metrics
from sae.training import presets
from sae.training.config import SaeConfig, TrainConfig, group_sizes
from sae.training.trainer import Trainer

_FRACTIONS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)
_HELD_OUT = 20_000
_MEASURES = ("fvu", "recovered", "cosine")
Params = dict[str, np.ndarray]


def main(options: Sequence[str]) -> None:
    """Prints a line of JSON a run, and then a table: mean and standard deviation over the seeds."""
    parser = argparse.ArgumentParser(
        prog="launch.bench recovery", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--d_model", type=int, default=64, help="width of the activations")
    parser.add_argument("--n_true", type=int, default=256, help="true features")
    parser.add_argument("--n_features", type=int, default=512, help="features of the autoencoders")
    parser.add_argument("--batch_size", type=int, default=512, help="tokens")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--active", type=int, nargs="+", default=[4, 8, 16], help="mean true features a token; k")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--peer_lr", type=float, nargs="+", default=[3e-3, 1e-2], help="rates that peers try")
    parser.add_argument("--alone", action="store_true", help="ours only")
    arguments = parser.parse_args(options)
    results: dict[tuple[int, str], list[dict[str, float]]] = {}
    for active, seed in itertools.product(arguments.active, arguments.seeds):
        world = World.draw(arguments.d_model, arguments.n_true, active, seed)
        batches = np.stack([world.sample(arguments.batch_size, (seed, 1, i)) for i in range(arguments.steps)])
        held_out = world.sample(_HELD_OUT, (seed, 2))
        for name, train in _trainers(arguments).items():
            tries = [_measure(params, active, world, held_out) for params in train(batches, active, seed)]
            best = min(tries, key=lambda measured: measured["fvu"])
            results.setdefault((active, name), []).append(best)
            print(json.dumps({"active": active, "seed": seed, "name": name, "tries": tries}), flush=True)
    print(f"{'k':>3} {'':20}" + "".join(f"{name:>20}" for name in _MEASURES))
    for (active, name), runs in results.items():
        print(f"{active:3} {name:20}" + "".join(f"{_spread([run[key] for run in runs]):>20}" for key in _MEASURES))


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {deviation:.4f}"


def _measure(params: Params, k: int, world: World, held_out: np.ndarray) -> dict[str, float]:
    """See the module's docstring."""
    arrays = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    parts = np.array_split(held_out, 10)
    threshold = calibrate.threshold_for_l0(arrays, lambda: iter(parts), k)
    sae = Sae(arrays, threshold, k, (len(params["b_enc"]),))
    measured, density = metrics.evaluate(sae, iter(parts))
    recovered, cosine = world.recovered(params["W_dec"], density > 0)
    return {"fvu": measured["fvu"], "recovered": recovered, "cosine": cosine, "l0": measured["l0"]}


def _trainers(arguments: argparse.Namespace) -> dict[str, Callable[[np.ndarray, int, int], list[Params]]]:
    """By name, a function that trains on batches [steps, B, d], given k and a seed, once a rate."""
    d, f, steps, size = arguments.d_model, arguments.n_features, arguments.steps, arguments.batch_size
    decay = steps // 5

    def drive(peer: peers.Peer, batches: np.ndarray, scale: float) -> Params:
        for batch in peers.torch().from_numpy(batches / np.float32(scale)):
            peer.step(batch)
        return autoencoder.fold(peer.params(), 0.0, scale)[0]

    def dictionary_learning(batches: np.ndarray, k: int, seed: int) -> list[Params]:
        schedule = {"warmup_steps": min(1000, steps // 10), "decay_start": steps - decay}
        return [
            drive(
                peers.DictionaryLearning(d, f, k, _FRACTIONS, steps, lr=lr, seed=seed, device="cpu", **schedule),
                batches,
                _scale(batches),
            )
            for lr in arguments.peer_lr
        ]

    def sae_lens(batches: np.ndarray, k: int, seed: int) -> list[Params]:
        widths = list(itertools.accumulate(group_sizes(_FRACTIONS, f)))
        trained = []
        for lr in arguments.peer_lr:
            peers.torch().manual_seed(seed)
            schedule = {"lr": lr, "lr_end": lr / 10, "lr_decay_steps": decay}
            trained.append(drive(peers.SaeLens(d, f, k, widths, steps, size, "cpu", **schedule), batches, 1.0))
        return trained

    def ours(batches: np.ndarray, k: int, seed: int) -> list[Params]:
        preset = presets.named("default")
        sizes = group_sizes(_FRACTIONS, f)
        sae = SaeConfig(d, f, k, sizes, preset.group_weights(len(sizes)))
        config = TrainConfig(
            steps=steps,
            batch_size=size,
            normalize=True,
            calibration_tokens=_HELD_OUT,
            chunk_steps=steps,
            checkpoint_every=steps,
            mesh=(1, 1),
            seed=seed,
            **preset.train(steps, size, f),
        )
        trainer = Trainer(sae, config)
        scale = _scale(batches)
        state, _ = trainer.run(trainer.init(batches[0], scale), trainer.place(batches), scale)
        return [autoencoder.fold(trainer.ordered(state).params, 0.0, scale)[0]]

    if arguments.alone:
        return {"ours": ours}
    return {"ours": ours, "dictionary_learning": dictionary_learning, "SAELens": sae_lens}


def _scale(batches: np.ndarray) -> float:
    """The root mean squared norm of the activations of the first hundred batches."""
    return float(np.sqrt(np.square(batches[:100]).sum(-1).mean()))
