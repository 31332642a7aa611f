"""A run directory with all that a session reads: an untrained model of phantom studies and a random autoencoder."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from configs import phantom as phantom_config
from interp.exemplars import exemplar_table
from maira_jax.inputs.prompt import reporting_prompt
from maira_jax.inputs.tokens import Tokenizer, token_filter_mask
from maira_jax.run import files
from maira_jax.run.stages.stage import Stage
from maira_jax.studies.readers import load_studies
from sae import autoencoder
from sae.activations.store import StoreLayout, StoreWriter
from sae.activations.token_rows import TokenRows
from sae.autoencoder import Sae
from sae.saved import save_sae
from tests.helpers.phantom_model import D_MODEL, write_model

N_FEATURES, SITE = 64, "language.1.resid_post"
NAMES = {5: "left pleural effusion", 6: "denies effusion <script>", 9: "cardiomegaly"}


def make_config() -> ConfigDict:
    config = phantom_config.get_config()
    config.studies.update({"n": 8, "seed": 2, "size": 28})
    config.steer.update({"max_new_tokens": 12, "positions": ("generated",)})
    return config


def make(workdir: Path) -> Path:
    """Writes finished `model`, `activations`, `sae` and `interp` stages for 8 studies, of which 4 are held out."""
    config = make_config()
    studies = list(load_studies(config.studies))
    with Stage(workdir, "model", {}) as stage:
        write_model(stage.dir, studies)
        stage.finish({})
    with Stage(workdir, "activations", {"studies": config.studies.to_dict()}, config=config) as stage:
        _write_activations(stage.dir, studies, Tokenizer.from_dir(workdir / "model"))
        stage.finish({})
    with Stage(workdir, "sae", {}) as stage:
        params = autoencoder.init(jax.random.key(1), D_MODEL, N_FEATURES, jnp.zeros(D_MODEL))
        save_sae(stage.dir, Sae(params, 0.1, 4, (32, 32), {"source": {"site": SITE, "token_filter": "paper"}}))
        stage.finish({})
    with Stage(workdir, "interp", {}) as stage:
        _write_interpretations(stage.dir)
        stage.finish({})
    return workdir


def _write_activations(directory: Path, studies: list, tokenizer: Tokenizer) -> None:
    parts = []
    stops = [0]
    for number, study in enumerate(studies):
        encoded = tokenizer.encode(reporting_prompt(study), study.findings)
        kept = np.flatnonzero(token_filter_mask(encoded.kinds, "paper"))
        parts.append((np.full(len(kept), number), kept, encoded.ids[kept], encoded.kinds[kept]))
        stops.append(stops[-1] + len(kept))
    table = pa.table(
        {
            "study_id": [study.study_id for study in studies],
            "patient_id": [study.patient_id for study in studies],
            "split": ["train", "held_out"] * (len(studies) // 2),
            "labels": [json.dumps(study.labels) for study in studies],
            "start": stops[:-1],
            "stop": stops[1:],
        }
    )
    tokens = TokenRows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    layout = StoreLayout(stops[-1], D_MODEL, "float32", 4096, 64)
    writer = StoreWriter(directory, layout, tokens, table, {"site": SITE, "token_filter": "paper"})
    writer.write(0, np.zeros((stops[-1], D_MODEL), np.float32))


def _write_interpretations(directory: Path) -> None:
    features = {
        "feature": np.arange(N_FEATURES, dtype=np.int32),
        "name": [NAMES.get(i, f"word {i}") for i in range(N_FEATURES)],
        "explanation": [NAMES.get(i, f"word {i}") for i in range(N_FEATURES)],
        "concept": ["pleural effusion" if i == 5 else None for i in range(N_FEATURES)],
        "concept_f1": [0.9 if i == 5 else None for i in range(N_FEATURES)],
        "max_activation": np.full(N_FEATURES, 6.0),
        "density": np.full(N_FEATURES, 0.25),
    }
    pq.write_table(pa.table(features), directory / "features.parquet")
    concepts = {
        "concept": ["cardiomegaly", "pleural effusion"],
        "feature": np.array([9, 5], np.int32),
        "f1": [0.8, 0.9],
        "runners_up": [[1], [7]],
        "runners_up_f1": [[0.2], [0.7]],
    }
    pq.write_table(pa.table(concepts), directory / "concepts.parquet")
    files.write_json(directory / "summary.json", {"concepts": {"left_out": {"edema": "it is rare"}}})
    empty = dict.fromkeys(exemplar_table.SCHEMA.names)
    rows = [
        empty
        | {"feature": 5, "kind": "top", "study_id": "s1", "section": "findings", "tokens": [" an", " <b>effusion"]}
        | {"activations": [0.0, peak], "max_activation": peak}
        for peak in (2.0, 3.0)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=exemplar_table.SCHEMA), directory / "exemplars.parquet")
