"""A corpus small enough to be searched by a slow oracle: random activations, texts and an autoencoder."""

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from interp.exemplars import index
from interp.exemplars.contexts import split_into_contexts
from interp.exemplars.corpus import Corpus
from interp.exemplars.index_pass import running_index
from maira_jax.inputs.tokens import Kind
from sae.autoencoder import Sae, encode, init

PIECES = [" lungs", " are", " clear", ".", " 2", "5", " no", "ing", "\n"]


class ArrayStore:
    def __init__(self, x):
        self.x = x
        self.rows_read = 0

    def read(self, start, stop):
        self.rows_read += stop - start
        return self.x[start:stop]

    def read_ranges(self, ranges):
        return [self.read(start, stop) for start, stop in ranges]


def make_world(n_studies: int = 60, d_model: int = 8, n_features: int = 24) -> dict[str, Any]:
    """Studies of random activations and texts, an SAE with a threshold for each feature, and all its features."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 90, n_studies)
    study = np.repeat(np.arange(n_studies, dtype=np.int32), lengths)
    n = len(study)
    position = np.arange(n) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    kind = np.where(position < 10, Kind.INDICATION, Kind.FINDINGS).astype(np.int8)
    token_id = rng.choice(len(PIECES), n).astype(np.int32)
    x = rng.normal(size=(n, d_model)).astype(np.float32)
    params = init(jax.random.key(1), d_model, n_features, jax.numpy.zeros(d_model))
    # Feature 0 never fires and feature 1 fires on everything.
    params["b_enc"] = params["b_enc"].at[0].set(-100.0).at[1].set(100.0)
    threshold = np.linspace(0.4, 1.2, n_features, dtype=np.float32)
    sae = Sae(params, threshold, 4, (n_features,))
    found = split_into_contexts(study, position, token_id, kind, PIECES, 12)
    held_out = rng.random(n_studies) < 0.3
    f = np.asarray(encode(params, x, threshold))
    peak = np.stack([f[s : s + k].max(0) for s, k in zip(found.start, found.length, strict=True)])
    return dict(
        sae=sae, x=x, study=study, position=position, kind=kind, token_id=token_id,
        contexts=found, held_out=held_out, f=f, peak=peak,
        corpus=Corpus(
            ArrayStore(x), pa.table({"study_id": [f"study {i}" for i in range(n_studies)]}), token_id, PIECES, found,
            held_out,
        ),
    )  # fmt: skip


def build(world, block_tokens, n_sample=40, n_pool=64, folder=None, first_row=0, devices=None, **options):
    """The index and the studies' peaks, read from `first_row` on; `options` are those of `index.build`."""
    cfg = running_index.IndexConfig(n_top=5, n_sample=n_sample, n_pool=n_pool, block_tokens=block_tokens, seed=3)
    store = ArrayStore(world["x"])
    kinds, devices = frozenset({Kind.FINDINGS}), devices or jax.devices()
    with tempfile.TemporaryDirectory() as own:
        inputs = (world["sae"], store, world["contexts"], world["held_out"], cfg, kinds, devices)
        found = index.build(*inputs, Path(folder or own), **options)
        peaks = index.study_peaks(Path(folder or own), len(world["held_out"]), world["sae"].n_features)[:, :]
    assert store.rows_read == len(world["x"]) - first_row  # one pass
    return found, peaks
