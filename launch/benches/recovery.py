"""Autoencoders of ours, dictionary_learning and SAELens, trained on the same tokens, and measured on held-out ones.

The tokens are synthetic, with true features that are known, or those of `--source`. All autoencoders have the same
width and groups, and are measured at the same L0, k, for which each threshold is calibrated (see
`sae.evaluation.calibrate`); of synthetic tokens k is the mean number of active true features. Ours has the preset
`scaled`, whose rate is multiplied by each of `--lr_factor`; each other library is trained with every rate of
`--peer_lr`. Of several rates the run with the lowest error counts. The other libraries' rates decay over the last
fifth, as in dictionary_learning's demo.

fvu        fraction of variance unexplained
never      features that no held-out token activates
recovered  share of true features with a cosine above 0.9 to a feature that is ever active
cosine     mean over the true features of the largest cosine
probe_k    mean area under the ROC curve of probes of `--labels` on the k features of the largest correlation

With `--labels` the controls of `interp.controls` are probed too, as many random directions and shuffled columns of our
encoder as there are features among them. `--out` keeps the autoencoders, for what needs the model: `sae.formats.load`
reads FOLDER/NAME-steps-k-seed.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from interp.controls.control import bases_of_sample
from launch.benches import peers
from launch.benches.synthetic import SyntheticFeatures
from launch.benches.token_streams import ArrayStream, SyntheticStream, TokenStream
from sae import autoencoder
from sae.autoencoder import Sae
from sae.evaluation import calibrate, metrics
from sae.evaluation.striped import StripedSae, in_memory, largest_batch
from sae.formats import safetensors
from sae.training.config import SaeConfig, TrainConfig, TrainSection, group_sizes
from sae.training.presets import PRESETS
from sae.training.trainer import Trainer

_FRACTIONS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)
_CHUNK_STEPS = 100
# Batches that set the normalisation factor, as in `sae.training.stage`.
_SCALE_BATCHES = 100
_CONTROL_TOKENS = 1 << 14  # that principal components are of
Params = dict[str, np.ndarray]


def main(options: Sequence[str]) -> None:
    """Prints one line of JSON per run, and then a table of means and standard deviations over the seeds."""
    arguments = _arguments(options)
    results: dict[tuple[int, int, str], list[dict[str, float]]] = {}
    for steps, k, seed in itertools.product(arguments.steps, arguments.active, arguments.seeds):
        stream = _stream(arguments, k, seed)
        found: dict[str, Sae] = {}
        for name, train in _trainers(arguments, stream, steps).items():
            tries = [(*_measure(params, k, stream), lr) for lr, params in train(k, seed)]
            found[name], best, _ = min(tries, key=lambda one: one[1]["fvu"])
            results.setdefault((steps, k, name), []).append(best)
            line = {"steps": steps, "k": k, "seed": seed, "name": name}
            print(json.dumps(line | {"tries": [{"lr": lr} | measured for _, measured, lr in tries]}), flush=True)
            if arguments.out is not None:
                safetensors.save(arguments.out / f"{name}-{steps}-{k}-{seed}", found[name])
        if arguments.labels is not None:
            for name, measured in _controls(found["ours"], stream, seed).items():
                results.setdefault((steps, k, name), []).append(measured)
    measures = list(results[steps, k, "ours"][0])
    print(f"{'steps':>6} {'k':>3} {'':20}" + "".join(f"{name:>20}" for name in measures))
    for (steps, k, name), runs in results.items():
        spreads = (_spread([run[key] for run in runs]) if key in runs[0] else "" for key in measures)
        print(f"{steps:6} {k:3} {name:20}" + "".join(f"{spread:>20}" for spread in spreads))


def _arguments(options: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch.bench recovery", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, help="a .npy file of activations [tokens, width]; none: synthetic ones")
    parser.add_argument("--labels", type=Path, help="a .npy file of bool [tokens, labels] for --source")
    parser.add_argument("--d_model", type=int, default=64, help="width of synthetic activations")
    parser.add_argument("--n_true", type=int, default=256, help="true features of synthetic activations")
    parser.add_argument("--n_features", type=int, default=512, help="features of the autoencoders")
    parser.add_argument("--batch_size", type=int, default=512, help="tokens")
    parser.add_argument("--steps", type=int, nargs="+", default=[1500])
    parser.add_argument(
        "--active", type=int, nargs="+", default=[4, 8, 16], help="mean number of active true features per token; k"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lr_factor", type=float, nargs="+", default=[1.0], help="factors of our preset's rate to try")
    parser.add_argument(
        "--peer_lr", type=float, nargs="+", default=[3e-3, 1e-2], help="learning rates that the other libraries try"
    )
    parser.add_argument("--out", type=Path, help="folder for the autoencoders of the lowest error")
    parser.add_argument("--alone", action="store_true", help="train ours alone")
    return parser.parse_args(options)


def _stream(arguments: argparse.Namespace, k: int, seed: int) -> TokenStream:
    if arguments.source is not None:
        return ArrayStream(arguments.source, arguments.labels, arguments.batch_size, seed)
    features = SyntheticFeatures.random(arguments.d_model, arguments.n_true, k, seed)
    return SyntheticStream(features, arguments.batch_size, seed)


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {deviation:.4f}"


def _measure(params: Params, k: int, stream: TokenStream) -> tuple[Sae, dict[str, float]]:
    """The autoencoder with its threshold, the measures of the module's docstring, and the L0 that was reached."""
    arrays = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    sae = Sae(arrays, 0.0, k, (len(params["b_enc"]),))
    striped = StripedSae.of(sae)
    tokens = [in_memory(striped.on, stream.held_out, largest_batch(striped.on, sae.n_features))]
    threshold = calibrate.threshold_for_l0(striped, tokens, k)
    measured, _ = metrics.evaluate(striped, threshold, tokens)
    sae = dataclasses.replace(sae, threshold=threshold)
    features = np.asarray(sae.encode(jnp.asarray(stream.held_out)))  # [n, F]
    own = {"fvu": measured["fvu"], "l0": measured["l0"], "never": measured["dead"]}
    return sae, own | stream.measures(params["W_dec"], features)


def _controls(sae: Sae, stream: TokenStream, seed: int) -> dict[str, dict[str, float]]:
    """The measures of what `stream` knows in directions that nobody trained, by their kind."""
    sample = np.concatenate(list(stream.batches(0, -(-_CONTROL_TOKENS // stream.batch_size))))
    bases = bases_of_sample(sae, sample, seed)
    return {name: stream.measures(axes.T, stream.held_out @ axes) for name, axes in bases.items()}


Train = Callable[[int, int], Iterator[tuple[float, Params]]]


def _trainers(arguments: argparse.Namespace, stream: TokenStream, steps: int) -> dict[str, Train]:
    """By name, a function of (k, seed) that trains once with each learning rate, and gives the rate and the result."""
    d, f, size, decay = stream.held_out.shape[1], arguments.n_features, arguments.batch_size, steps // 5
    sizes = group_sizes(_FRACTIONS, f)
    scale = float(np.sqrt(np.square(stream.batches(0, min(steps, _SCALE_BATCHES))).sum(-1).mean()))

    def drive(peer: peers.PeerTrainer, scale: float) -> Params:
        for batches in _chunks(stream, steps):
            for batch in peers.torch().from_numpy(batches / np.float32(scale)):
                peer.step(batch)
        return autoencoder.fold(peer.params(), 0.0, scale)[0]

    def dictionary_learning(k: int, seed: int) -> Iterator[tuple[float, Params]]:
        schedule = {"warmup_steps": min(1000, steps // 10), "decay_start": steps - decay}
        for lr in arguments.peer_lr:
            options = {"lr": lr, "seed": seed, "device": "cpu"} | schedule
            yield lr, drive(peers.DictionaryLearning(d, f, k, _FRACTIONS, steps, **options), scale)

    def sae_lens(k: int, seed: int) -> Iterator[tuple[float, Params]]:
        widths = list(itertools.accumulate(sizes))
        for lr in arguments.peer_lr:
            peers.torch().manual_seed(seed)
            schedule = {"lr": lr, "lr_end": lr / 10, "lr_decay_steps": decay}
            yield lr, drive(peers.SaeLens(d, f, k, widths, steps, size, "cpu", **schedule), 1.0)

    def ours(k: int, seed: int) -> Iterator[tuple[float, Params]]:
        weights = PRESETS.get("scaled").group_weights(len(sizes))
        sae = SaeConfig(
            d_model=d, n_features=f, k=k, group_sizes=sizes, group_weights=weights, kind="batch_top_k", l1=0.0
        )
        config = TrainConfig.resolve(TrainSection(preset="scaled", steps=steps, batch_size=size), sae, seed)
        for factor in arguments.lr_factor:
            trainer = Trainer(sae, dataclasses.replace(config, lr=factor * config.lr))
            state = trainer.init(stream.batches(0, 1)[0], scale)
            for batches in _chunks(stream, steps):
                state, _ = trainer.run(state, trainer.place(batches), scale)
            yield trainer.config.lr, autoencoder.fold(trainer.ordered(state).params, 0.0, scale)[0]

    if arguments.alone:
        return {"ours": ours}
    return {"ours": ours, "dictionary_learning": dictionary_learning, "SAELens": sae_lens}


def _chunks(stream: TokenStream, steps: int) -> Iterator[np.ndarray]:
    """The batches of `steps` steps, a hundred or fewer at a time. [steps, B, d] each"""
    for first in range(0, steps, _CHUNK_STEPS):
        yield stream.batches(first, min(_CHUNK_STEPS, steps - first))
