"""True features recovered from synthetic activations: ours, dictionary_learning's and SAELens'.

All are trained on the same tokens with the same width and groups, and measured on the same held-out tokens at the same
L0: the mean number of active true features per token, for which each threshold is calibrated (see
`sae.evaluation.calibrate`). Ours has the preset `scaled`; each other library is trained with every rate of `--peer_lr`,
and the run with the lowest error counts. Their rates decay over the last fifth, as in dictionary_learning's demo.

fvu        fraction of variance unexplained
recovered  share of true features with a cosine above 0.9 to a feature that is ever active
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
from launch.benches.synthetic import SyntheticFeatures
from sae import autoencoder
from sae.autoencoder import Sae
from sae.evaluation import calibrate, metrics
from sae.evaluation.striped import StripedSae, in_memory, largest_batch
from sae.training.config import SaeConfig, TrainConfig, TrainSection, group_sizes
from sae.training.presets import PRESETS
from sae.training.trainer import Trainer

_FRACTIONS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)
_HELD_OUT = 20_000
_MEASURES = ("fvu", "recovered", "cosine")
Params = dict[str, np.ndarray]


def main(options: Sequence[str]) -> None:
    """Prints one line of JSON per run, and then a table of means and standard deviations over the seeds."""
    parser = argparse.ArgumentParser(
        prog="launch.bench recovery", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--d_model", type=int, default=64, help="width of the activations")
    parser.add_argument("--n_true", type=int, default=256, help="true features")
    parser.add_argument("--n_features", type=int, default=512, help="features of the autoencoders")
    parser.add_argument("--batch_size", type=int, default=512, help="tokens")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument(
        "--active", type=int, nargs="+", default=[4, 8, 16], help="mean number of active true features per token; k"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--peer_lr", type=float, nargs="+", default=[3e-3, 1e-2], help="learning rates that the other libraries try"
    )
    parser.add_argument("--alone", action="store_true", help="train ours alone")
    arguments = parser.parse_args(options)
    results: dict[tuple[int, str], list[dict[str, float]]] = {}
    for active, seed in itertools.product(arguments.active, arguments.seeds):
        synthetic = SyntheticFeatures.random(arguments.d_model, arguments.n_true, active, seed)
        batches = np.stack([synthetic.sample(arguments.batch_size, (seed, 1, i)) for i in range(arguments.steps)])
        held_out = synthetic.sample(_HELD_OUT, (seed, 2))
        for name, train in _trainers(arguments).items():
            tries = [_measure(params, active, synthetic, held_out) for params in train(batches, active, seed)]
            best = min(tries, key=lambda measured: measured["fvu"])
            results.setdefault((active, name), []).append(best)
            print(json.dumps({"active": active, "seed": seed, "name": name, "tries": tries}), flush=True)
    print(f"{'k':>3} {'':20}" + "".join(f"{name:>20}" for name in _MEASURES))
    for (active, name), runs in results.items():
        print(f"{active:3} {name:20}" + "".join(f"{_spread([run[key] for run in runs]):>20}" for key in _MEASURES))


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {deviation:.4f}"


def _measure(params: Params, k: int, synthetic: SyntheticFeatures, held_out: np.ndarray) -> dict[str, float]:
    """The measures of the module's docstring, and the L0 that was reached."""
    arrays = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    sae = StripedSae.of(Sae(arrays, 0.0, k, (len(params["b_enc"]),)))
    tokens = [in_memory(sae.on, held_out, largest_batch(sae.on, sae.n_features))]
    threshold = calibrate.threshold_for_l0(sae, tokens, k)
    measured, density = metrics.evaluate(sae, threshold, tokens)
    recovered, cosine = synthetic.recovered(params["W_dec"], density > 0)
    return {"fvu": measured["fvu"], "recovered": recovered, "cosine": cosine, "l0": measured["l0"]}


def _trainers(arguments: argparse.Namespace) -> dict[str, Callable[[np.ndarray, int, int], list[Params]]]:
    """By name, a function of (batches [steps, B, d], k, seed) that trains once with each learning rate."""
    d, f, steps, size = arguments.d_model, arguments.n_features, arguments.steps, arguments.batch_size
    decay = steps // 5

    def drive(peer: peers.PeerTrainer, batches: np.ndarray, scale: float) -> Params:
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
        sizes = group_sizes(_FRACTIONS, f)
        weights = PRESETS.get("scaled").group_weights(len(sizes))
        sae = SaeConfig(
            d_model=d, n_features=f, k=k, group_sizes=sizes, group_weights=weights, kind="batch_top_k", l1=0.0
        )
        section = TrainSection(preset="scaled", steps=steps, batch_size=size)
        trainer = Trainer(sae, TrainConfig.resolve(section, sae, seed))
        scale = _scale(batches)
        state, _ = trainer.run(trainer.init(batches[0], scale), trainer.place(batches), scale)
        return [autoencoder.fold(trainer.ordered(state).params, 0.0, scale)[0]]

    if arguments.alone:
        return {"ours": ours}
    return {"ours": ours, "dictionary_learning": dictionary_learning, "SAELens": sae_lens}


def _scale(batches: np.ndarray) -> float:
    """The root mean squared norm of the activations of the first hundred batches."""
    return float(np.sqrt(np.square(batches[:100]).sum(-1).mean()))
