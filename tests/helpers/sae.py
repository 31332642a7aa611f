"""A small activation store with known structure, and a small random model, for the tests of `sae`."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pyarrow as pa
import pytest

from configs import phantom
from maira_jax.checkpoint import convert
from maira_jax.inputs.prompt import reporting_prompt
from maira_jax.inputs.tokens import Kind
from maira_jax.model import maira2
from maira_jax.model.config import Maira2Config, TextConfig, VisionConfig, to_hf_dict
from maira_jax.phantom.pretraining import tokenizer_files
from maira_jax.run import files
from maira_jax.run.stages.stage import Stage
from maira_jax.studies.readers import load_studies
from sae import autoencoder
from sae.activations import store
from sae.activations.store import StoreLayout, StoreWriter
from sae.activations.token_rows import TokenRows
from sae.autoencoder import Sae
from sae.training.config import SaeConfig, TrainConfig, TrainSection
from sae.training.presets import PRESETS


def activations(n: int, d: int, n_true: int = 96, seed: int = 0) -> np.ndarray:
    """Sparse sums of random directions around an offset. float32 [n, d]"""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(n_true, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    strengths = (rng.random((n, n_true)) < 6 / n_true) * rng.exponential(size=(n, n_true))
    return (3 * strengths @ directions + rng.normal(size=d) + 0.02 * rng.normal(size=(n, d))).astype(np.float32)


def numbered(n: int, d: int = 3) -> np.ndarray:
    """Row i holds i in its first column."""
    values = np.zeros((n, d), np.float32)
    values[:, 0] = np.arange(n)
    return values


def tables(n: int, seed: int = 0) -> tuple[TokenRows, pa.Table]:
    """Tokens and study table for `n` tokens in studies of 20 to 60; every fifth study is held out."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum(rng.integers(20, 60, size=n // 20))
    ends = np.append(ends[ends < n], n)
    starts = np.append(0, ends[:-1])
    m = len(ends)
    tokens = TokenRows(
        study=np.repeat(np.arange(m, dtype=np.int32), ends - starts),
        position=(np.arange(n) - np.repeat(starts, ends - starts)).astype(np.int32),
        token_id=rng.integers(3, 100, n).astype(np.int32),
        kind=np.full(n, Kind.FINDINGS, np.int8),
    )
    studies = pa.table(
        {
            "study_id": [f"s{i}" for i in range(m)],
            "patient_id": [f"p{i}" for i in range(m)],
            "split": ["train" if i % 5 else "held_out" for i in range(m)],
            "labels": [json.dumps({"pneumothorax": bool(i % 2)}) for i in range(m)],
            "start": starts,
            "stop": ends,
        }
    )
    return tokens, studies


def assert_same_tokens(a: TokenRows, b: TokenRows) -> None:
    for name, values in vars(a).items():
        np.testing.assert_array_equal(values, getattr(b, name))


def make_store(
    workdir: Path, values: np.ndarray, dtype: str = "float32", shard_rows: int = 1024, chunk_rows: int = 32
) -> None:
    """A finished `activations` stage that holds `values [n, d]`."""
    layout = StoreLayout(*values.shape, dtype, shard_rows, chunk_rows)
    with Stage(workdir, "activations", {}) as stage:
        source = {"site": "language.3.resid_post", "checkpoint": "phantom", "token_filter": "paper"}
        writer = StoreWriter(stage.dir, layout, *tables(len(values)), source)
        for shard in writer.missing():
            start, stop = layout.rows(shard)
            writer.write(shard, values[start:stop])
        stage.finish({"tokens": len(values)})


def set_shards(patch: pytest.MonkeyPatch, shard_rows: int, chunk_rows: int) -> None:
    """New stores have shards and chunks of these numbers of rows, so that little data fills several."""
    patch.setattr(store, "SHARD_ROWS", shard_rows)
    patch.setattr(store, "CHUNK_ROWS", chunk_rows)


def train_config(**train: object) -> ml_collections.ConfigDict:
    """The phantom's config with a short training."""
    config = phantom.get_config()
    config.sae.k, config.sae.expansion = 4, 4
    short = {
        "preset": "scaled",
        "steps": 60,
        "batch_size": 128,
        "lr": 5e-3,
        "warmup_steps": 5,
        "decay_start": 40,
        "dead_tokens": 1000,
        "checkpoint_every": 10,
        "evaluate_every": 0,
        "loss_recovered_studies": 0,
    }
    config.train.update(short | train)
    return config


def resolved_sae(**fields: Any) -> SaeConfig:
    """An autoencoder with these fields, BatchTopK unless they say otherwise."""
    return SaeConfig(**{"kind": "batch_top_k", "l1": 0.0} | fields)


def resolved_train(steps: int, batch_size: int, **fields: Any) -> TrainConfig:
    """A training with these fields, on one device; the others are the section's defaults and dictionary_learning's."""
    section = TrainSection(preset="dictionary_learning")
    preset = PRESETS.get(section.preset).train(steps, batch_size, 2**11, 2**14)
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    defaults = {name: value for name, value in section.model_dump().items() if name in names}
    given = {"seed": 0, "mesh": (1, 1), "steps": steps, "batch_size": batch_size} | fields
    return TrainConfig(**defaults | preset | given)


def long_config() -> ml_collections.ConfigDict:
    """Two autoencoders from one stream, trained long enough to be killed during the training."""
    config = train_config(steps=400, decay_start=300, evaluate_every=200, checkpoint_every=50)
    config.sae.companions = {"x2": {"expansion": 2, "k": 3}}
    return config


def large_config() -> ml_collections.ConfigDict:
    """An autoencoder with arrays that are larger than the files of its log."""
    config = train_config()
    config.sae.expansion = 16
    return config


def whole_checkpoints(sae: Path) -> set[int]:
    """The steps of the checkpoints that all processes have written to the end."""
    marks = {int(folder.name): list(folder.glob("whole.*")) for folder in (sae / "checkpoints").glob("[0-9]*")}
    return {step for step, found in marks.items() if found and found[0].stem.endswith(f"-of-{len(found)}")}


def make_model(directory: Path, studies: ml_collections.ConfigDict, heads: int = 4) -> None:
    """A checkpoint with random weights and a tokenizer for the phantom's `studies`, in the Hugging Face layout."""
    directory.mkdir(parents=True)
    texts = [reporting_prompt(study).content + f" {study.findings}" for study in load_studies(studies)]
    tokenizer_files.from_corpus(texts, 420, directory)
    image_id = files.read_json(directory / "added_tokens.json")["<image>"]
    vision = VisionConfig(32, 1, 2, 64, 28, 56, 1e-6)
    text = TextConfig(image_id + 3, 48, 96, 3, heads, heads, 12, 1e-5, 10000.0, 1.5)
    cfg = Maira2Config(vision, text, image_token_id=image_id, projector_n_layers=4)
    files.write_json(directory / "config.json", to_hf_dict(dataclasses.replace(cfg)))
    square = {"height": 56, "width": 56}
    preprocessor = {
        "size": {"shortest_edge": 56},
        "crop_size": square,
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
    }
    files.write_json(directory / "preprocessor_config.json", preprocessor)
    convert.to_hf(maira2.init(cfg, jax.random.key(0)), cfg, directory, np.dtype(np.float32))


def random_sae(x: np.ndarray, group_sizes: tuple[int, ...], k: int, threshold: float, **fields: Any) -> Sae:
    """An autoencoder with random directions, around the mean of the activations `x`."""
    params = autoencoder.init(jax.random.key(1), x.shape[1], sum(group_sizes), jnp.asarray(x.mean(0)))
    params["b_enc"] = jnp.asarray(np.random.default_rng(0).normal(size=sum(group_sizes)), jnp.float32)
    return Sae(params, threshold, k, group_sizes, **fields)


def sweep_config() -> ml_collections.ConfigDict:
    """A short sweep of ReLU autoencoders: two widths, two learning rates, two sparsities."""
    config = train_config(steps=20, decay_start=15, batch_size=64, auxk_alpha=0.0)
    config.sae.update({"kind": "relu", "group_fractions": (1.0,)})
    rates = {"expansions": (2, 4), "learning_rates": (2e-3, 5e-3), "l1s": (0.02, 0.2)}
    config.sweep.update(rates | {"max_l0": 24.0})
    return config
