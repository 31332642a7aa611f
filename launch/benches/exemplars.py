"""Tokens/s and peak memory of finding every feature's exemplars: ours and EleutherAI/delphi's cache-and-build.

Both start from the same activations in memory and the same autoencoder, in processes of their own, in turns. Ours is
the pass over all tokens, then the exemplars with their tokens, random and hard non-activating ones, written to a file.
Delphi's is `LatentCache.run` and `save_splits`, then one pass over `LatentDataset`, which samples examples of each
latent and random non-activating ones; its model is a table of the activations. Both use delphi's numbers of examples
(40 to explain, 50 to score). `encode_only` is the time of our multiplication by the encoder alone. `--side=ours` runs
ours alone, on any number of tokens.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.benches import peers

_STUDY, _CONTEXT = 256, 32  # tokens of a study and of a context; delphi's sequence and window
_SIDES = ("ours", "delphi")
_MAX_IN_MEMORY = 2**18  # tokens


def main(options: Sequence[str]) -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(prog="launch.bench exemplars", description=__doc__)
    parser.add_argument("--d_model", type=int, default=512, help="width of the activations")
    parser.add_argument("--n_features", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32, help="mean number of active features per token")
    parser.add_argument(
        "--tokens", type=int, default=131072, help="a multiple of 4096, or above 2^18 a multiple of 2^18"
    )
    parser.add_argument("--turns", type=int, default=3, help="number of times that each is timed")
    parser.add_argument("--side", choices=_SIDES, help="time one of the two alone, once, in this process")
    arguments = parser.parse_args(options)
    if arguments.side:
        print(json.dumps((_ours if arguments.side == "ours" else _delphi)(arguments)))
        return
    if arguments.tokens > _MAX_IN_MEMORY:
        parser.error(f"delphi takes at most {_MAX_IN_MEMORY} tokens here: lower --tokens, or give --side=ours")
    peers.delphi("latents")  # fails before anything is measured where delphi is not installed
    own = [f"--{name}={value}" for name, value in vars(arguments).items() if name not in ("turns", "side")]
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in _SIDES}
    for _ in range(arguments.turns):
        for side in _SIDES:
            command = [sys.executable, "-m", "launch.bench", "exemplars", *own, f"--side={side}"]
            turns[side].append(
                json.loads(subprocess.run(command, check=True, capture_output=True).stdout.splitlines()[-1])
            )
    medians = {
        side: {name: statistics.median(turn[name] for turn in found) for name in found[0]}
        for side, found in turns.items()
    }
    ours, theirs = medians["ours"], medians["delphi"]
    result = {
        **{name: value for name, value in vars(arguments).items() if name != "side"},
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        **{side: {name: round(value, 3) for name, value in found.items()} for side, found in medians.items()},
        "tokens_per_second": {side: round(arguments.tokens / medians[side]["seconds"]) for side in _SIDES},
        "speed_ratio": round(theirs["seconds"] / ours["seconds"], 2),
        "cpu_ratio": round(theirs["cpu_seconds"] / ours["cpu_seconds"], 2),
        "memory_ratio": round(theirs["peak_mib"] / ours["peak_mib"], 2),
    }
    print(json.dumps(result))


def _synthetic(arguments: argparse.Namespace) -> tuple[np.ndarray, dict[str, np.ndarray], float]:
    """Activations [tokens, d_model], the autoencoder's arrays, and its threshold for `k` active features per token.

    There are at most 2^18 tokens, which are repeated for a larger `--tokens`.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(min(arguments.tokens, _MAX_IN_MEMORY), arguments.d_model)).astype(np.float32)
    w_dec = rng.normal(size=(arguments.n_features, arguments.d_model)).astype(np.float32)
    w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
    params = {
        "W_enc": np.ascontiguousarray(w_dec.T),
        "b_enc": np.zeros(arguments.n_features, np.float32),
        "W_dec": w_dec,
        "b_dec": np.zeros(arguments.d_model, np.float32),
    }
    threshold = np.quantile(x[:2048] @ params["W_enc"], 1 - arguments.k / arguments.n_features)
    return x, params, float(threshold)


class _Clock:
    """Wall and processor seconds since its creation; other load on the machine affects the latter less."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def read(self, name: str) -> dict[str, float]:
        wall, cpu = time.perf_counter() - self._start[0], time.process_time() - self._start[1]
        return {f"{name}seconds": wall, f"{name}cpu_seconds": cpu}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class _Rows:
    """Activations in memory, repeated endlessly, with the reading methods of a store."""

    def __init__(self, x: np.ndarray):
        self.x = x

    def read(self, start: int, stop: int) -> np.ndarray:
        if start // len(self.x) == (stop - 1) // len(self.x):
            return self.x[start % len(self.x) :][: stop - start]
        return self.x[np.arange(start, stop) % len(self.x)]

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        return [self.read(start, stop) for start, stop in ranges]


def _ours(arguments: argparse.Namespace) -> dict[str, float]:
    import jax
    import pyarrow as pa

    from interp.exemplars import exemplar_table, index, neighbours
    from interp.exemplars.contexts import split_into_contexts
    from interp.exemplars.corpus import Corpus
    from interp.exemplars.index_pass import running_index
    from maira_jax.inputs.tokens import Kind
    from sae.autoencoder import Sae, encode

    x, params, threshold = _synthetic(arguments)
    n, n_studies = arguments.tokens, arguments.tokens // _STUDY
    sae = Sae(
        {name: jax.numpy.asarray(value) for name, value in params.items()},
        threshold,
        arguments.k,
        (arguments.n_features,),
    )
    before = _peak_mib()
    block = 4096
    run = jax.jit(lambda part: encode(sae.params, part, threshold).sum())
    run(x[:block]).block_until_ready()
    clock = _Clock()
    for begin in range(0, len(x), block):
        run(x[begin : begin + block]).block_until_ready()
    times = {name: seconds * n / len(x) for name, seconds in clock.read("encode_only_").items()}
    clock = _Clock()
    study = np.repeat(np.arange(n_studies, dtype=np.int32), _STUDY)
    position = np.tile(np.arange(_STUDY, dtype=np.int32), n_studies)
    token_id = np.zeros(n, np.int32)
    cut = split_into_contexts(study, position, token_id, np.full(n, Kind.FINDINGS, np.int8), [" a"], _CONTEXT)
    held_out = np.random.default_rng(1).random(n_studies) < 0.5
    studies = pa.table({"study_id": [f"s{i}" for i in range(n_studies)]})
    rows: Any = _Rows(x)
    corpus = Corpus(rows, studies, token_id, [" a"], cut, held_out)
    sizes = running_index.IndexConfig(n_top=10, n_sample=200, n_pool=2048, block_tokens=block, seed=0)
    n_activating = {"train": 40, "held_out": 50}
    with tempfile.TemporaryDirectory() as folder:
        kinds = frozenset({Kind.FINDINGS})
        found = index.build(sae, rows, cut, held_out, sizes, kinds, jax.devices()[:1], Path(folder))
        times |= clock.read("pass_")
        similar, _ = neighbours.coactive(found, 8)
        exemplar_table.collect(Path(folder) / "exemplars.parquet", sae, corpus, found, similar, n_activating, 0, 256)
    return times | clock.read("") | {"peak_mib": _peak_mib(), "start_mib": before}


class _Decoder:
    """The part of a tokenizer that delphi uses."""

    def batch_decode(self, tokens: Any) -> list[str]:
        return [" a"] * len(tokens)


def _delphi(arguments: argparse.Namespace) -> dict[str, float]:
    latents, config = peers.delphi("latents"), peers.delphi("config")
    import torch

    x, params, threshold = _synthetic(arguments)
    table = torch.from_numpy(x)
    weights = {name: torch.from_numpy(value) for name, value in params.items()}

    class Table(torch.nn.Module):
        """A model whose tokens are row numbers."""

        device = torch.device("cpu")

        def __init__(self) -> None:
            super().__init__()
            self.site = torch.nn.Identity()

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return self.site(table[rows])

    def encode(rows: torch.Tensor) -> torch.Tensor:
        z = torch.relu((rows - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"])
        return z * (z > threshold)

    before = _peak_mib()
    clock = _Clock()
    tokens = torch.arange(len(x)).reshape(-1, _STUDY)
    cfg = config.CacheConfig(batch_size=16, cache_ctx_len=_STUDY, n_tokens=len(x))
    cache = latents.LatentCache(Table(), {"site": encode}, batch_size=16)
    cache.run(len(x), tokens)
    with tempfile.TemporaryDirectory() as folder:
        cache.save_splits(cfg.n_splits, Path(folder))
        cache.save_config(Path(folder), cfg, "table")
        times = clock.read("pass_")
        del cache
        dataset = latents.LatentDataset(folder, config.SamplerConfig(), config.ConstructorConfig(), _Decoder())
        built = sum(1 for _ in dataset)
    return times | clock.read("") | {"built": built, "peak_mib": _peak_mib(), "start_mib": before}
