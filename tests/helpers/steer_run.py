"""A run directory of a small random model with everything that steering reads, and a sweep's lines."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from maira_jax.inputs.tokens import Kind
from maira_jax.run.stages.stage import Stage
from maira_jax.studies.readers import load_studies
from sae import autoencoder
from sae.activations.store import StoreLayout, StoreWriter
from sae.activations.token_rows import TokenRows
from sae.autoencoder import Sae
from sae.saved import save_sae
from steer import stage
from steer.methods import METHODS
from tests.helpers.phantom_model import D_MODEL, write_model

LEARNED = ("reft_r1", "smallest_set")  # which take hundreds of passes
TRIED = tuple(name for name in METHODS.names() if name not in LEARNED)
N_STUDIES, N_FEATURES, SITE = 12, 64, "language.1.resid_post"


def make_config() -> ConfigDict:
    """Few studies, tokens and features."""
    steer = {
        "name": "test",
        "features": (),
        "match": "",
        "concepts": (),
        "select": ("concept",),
        "candidates": 1,
        "pool": 3,
        "select_studies": 2,
        "learn_studies": 4,
        "top": 2,
        "combinations": (),
        "methods": TRIED,
        "strengths": (-4.0, 4.0),
        "unit": "max_activation",
        "positions": ("generated",),
        "sae": "",
        "manifest": "",
        "prior_image": "own",
        "studies": 5,
        "batch_studies": 2,
        "batch_rows": 6,
        "workers": 2,
        "max_new_tokens": 12,
        "temperature": 0.0,
        "top_p": 1.0,
        "dry_run": False,
    }
    studies = {"source": "phantom", "n": N_STUDIES, "seed": 2, "size": 28}
    evaluate = {"bootstrap": 50, "judge": "none", "judge_studies": 1}
    return ConfigDict({"seed": 0, "studies": studies, "steer": steer, "evaluate": evaluate})


def write_activations(directory: Path, studies: list, rng: np.random.Generator) -> None:
    """Random activations of six tokens of each study, half of them for training."""
    per_study = 6
    n = per_study * len(studies)
    tokens = TokenRows(
        study=np.repeat(np.arange(len(studies)), per_study).astype(np.int32),
        position=np.tile(np.arange(per_study), len(studies)).astype(np.int32),
        token_id=np.full(n, 7, np.int32),
        kind=np.tile([Kind.INDICATION, *[Kind.FINDINGS] * 5], len(studies)).astype(np.int8),
    )
    table = pa.table(
        {
            "study_id": [s.study_id for s in studies],
            "patient_id": [s.patient_id for s in studies],
            "split": ["train"] * 6 + ["held_out"] * 6,
            "labels": [json.dumps({"cardiomegaly": i % 2 == 0, "oedema": False}) for i in range(len(studies))],
            "start": np.arange(len(studies)) * per_study,
            "stop": (np.arange(len(studies)) + 1) * per_study,
        }
    )
    layout = StoreLayout(n, D_MODEL, "float32", 128, 64)
    writer = StoreWriter(directory, layout, tokens, table, {"site": SITE})
    writer.write(0, rng.normal(size=(n, D_MODEL)).astype(np.float32))


def write_inputs(workdir: Path) -> None:
    """Writes what a sweep reads into a run directory."""
    config, rng = make_config(), np.random.default_rng(0)
    studies = list(load_studies(config.studies))
    for name in ("model", "activations", "sae", "interp"):
        with Stage(workdir, name, {"test": name}) as written:
            if name == "model":
                write_model(written.dir, studies)
            elif name == "activations":
                write_activations(written.dir, studies, rng)
            elif name == "sae":
                params = autoencoder.init(jax.random.key(1), D_MODEL, N_FEATURES, jnp.zeros(D_MODEL))
                save_sae(written.dir, Sae(params, 0.1, 4, (32, 32), {"site": SITE}))
            else:
                features = {
                    "feature": np.arange(N_FEATURES, dtype=np.int32),
                    "explanation": [f"mentions word {i}" for i in range(N_FEATURES - 1)] + ["oedema of the lung"],
                    "detection": np.full(N_FEATURES, 0.6),
                    "max_activation": np.full(N_FEATURES, 6.0),
                    "concept": pa.nulls(N_FEATURES, pa.string()),
                    "concept_f1": pa.nulls(N_FEATURES, pa.float64()),
                }
                pq.write_table(pa.table(features), written.dir / "features.parquet")
                concepts = {
                    "concept": ["cardiomegaly", "oedema", "pneumothorax"],
                    "feature": np.array([5, 9, 5], np.int32),
                    "f1": [0.9, 0.8, 0.95],
                    "runners_up": [[1], [2, 3], [7, 8]],
                    "runners_up_f1": [[0.2], [0.79, 0.1], [0.9, 0.86]],
                }
                pq.write_table(pa.table(concepts), written.dir / "concepts.parquet")
            written.finish({})


def lines_of(workdir: Path) -> list[dict]:
    """What the sweep of `make_config` has written."""
    return [json.loads(line) for line in (workdir / "steer" / "test" / stage.GENERATIONS).read_text().splitlines()]
