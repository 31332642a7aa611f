"""A run directory whose features are known: phantom reports, planted features, and the stages that interpret reads."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import ml_collections
import numpy as np
import pyarrow as pa
from scipy.stats import ortho_group

from configs import phantom as phantom_config
from maira_jax.checkpoint import store as model_store
from maira_jax.inputs.prompt import reporting_prompt
from maira_jax.inputs.tokens import Kind, Tokenizer, token_filter_mask
from maira_jax.phantom.pretraining import tokenizer_files
from maira_jax.run import files
from maira_jax.run.stages.stage import Stage
from maira_jax.studies.readers import phantom
from maira_jax.studies.study import Study
from sae.activations.store import HELD_OUT, TRAIN, StoreLayout, StoreWriter
from sae.activations.token_rows import TokenRows
from sae.autoencoder import Sae
from sae.saved import save_sae

# Feature -> pattern of the sentences (findings unless another kind is given) on whose tokens it fires.
PLANTED = {
    0: (r"pleural effusion", Kind.FINDINGS),
    1: (r"^(?!.*\bno\b).*pneumothorax", Kind.FINDINGS),
    2: (r".", Kind.TECHNIQUE),
    3: (r"^there is", Kind.FINDINGS),
    4: (r"telephone|notified|discussed|informed|communicated", Kind.FINDINGS),
    5: (r"pacemaker", Kind.FINDINGS),
}
EVERYWHERE, NOISE, RARE, DEAD = 6, 7, 8, 9
N_FEATURES = 12  # those after DEAD are dead as well


# What every feature's activation should be on a study's tokens: of the study, the tokens' texts and kinds. [n, F]
Strengths: TypeAlias = Callable[[Study, list[str], np.ndarray, np.random.Generator], np.ndarray]


def make_workdir(
    workdir: Path,
    n_studies: int = 160,
    seed: int = 0,
    strengths_of: Strengths | None = None,
    group_sizes: tuple[int, ...] = (8, 4),
) -> Path:
    """Writes finished `model`, `activations` and `sae` stages; the model is a tokenizer and an unembedding.

    The phantom's studies 0 to `n_studies` of seed `seed`; without `strengths_of`, the features are those of `PLANTED`.
    """
    n_features = sum(group_sizes)
    d_model = n_features + 4
    studies = phantom.studies(0, n_studies, seed=seed, size=8)
    with Stage(workdir, "model", {}) as stage:
        texts = [f"{reporting_prompt(study).content} {study.findings}" for study in studies]
        tokenizer_files.from_corpus(texts, 500, stage.dir)
        files.write_json(stage.dir / "config.json", {"vision_config": {"image_size": 28, "patch_size": 14}})
        tokenizer = Tokenizer.from_dir(workdir / "model")
        head = np.random.default_rng(seed).normal(size=(d_model, tokenizer.vocab_size)).astype(np.float32)
        model_store.save(stage.dir, {"language": {"norm": {"scale": np.ones(d_model, np.float32)}, "lm_head": head}})
        stage.finish({})
    rng = np.random.default_rng(seed)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("study", "position", "token_id", "kind")}
    strengths, lengths = [], []
    for i, study in enumerate(studies):
        encoded = tokenizer.encode(reporting_prompt(study), study.findings)
        kept = np.flatnonzero(token_filter_mask(encoded.kinds, "paper"))
        ids, kinds = encoded.ids[kept], encoded.kinds[kept]
        for name, values in zip(columns, (np.full(len(kept), i), kept, ids, kinds), strict=True):
            columns[name].append(values)
        strengths.append((strengths_of or _strengths)(study, tokenizer.pieces(ids), kinds, rng))
        lengths.append(len(kept))
    directions = ortho_group.rvs(d_model, random_state=seed)[:n_features].astype(np.float32)
    x = np.concatenate(strengths) @ directions
    stops = np.cumsum(lengths)
    with Stage(workdir, "activations", {}) as stage:
        tokens = TokenRows(**{name: np.concatenate(parts) for name, parts in columns.items()})
        table = pa.table(
            {
                "study_id": [study.study_id for study in studies],
                "patient_id": [study.patient_id for study in studies],
                "split": [HELD_OUT if i % 3 == 0 else TRAIN for i in range(n_studies)],
                "labels": [json.dumps(study.labels) for study in studies],
                "start": stops - lengths,
                "stop": stops,
            }
        )
        writer = StoreWriter(
            stage.dir, StoreLayout(*x.shape, "float32", 4096, 64), tokens, table, {"site": "language.0.resid_post"}
        )
        for shard in writer.missing():
            start, stop = writer.layout.rows(shard)
            writer.write(shard, x[start:stop])
        stage.finish({"tokens": len(x)})
    with Stage(workdir, "sae", {}) as stage:
        params = {
            "W_enc": directions.T,
            "b_enc": np.zeros(n_features, np.float32),
            "W_dec": directions,
            "b_dec": np.zeros(d_model, np.float32),
        }
        save_sae(stage.dir, Sae(params, 0.5, 2, group_sizes))
        stage.finish({})
    return workdir


def sentences(pieces: list[str], kinds: np.ndarray) -> Iterator[tuple[np.ndarray, str]]:
    """The rows and the text of every sentence."""
    sentence = np.zeros(len(pieces), int)
    for i in range(1, len(pieces)):
        ends = pieces[i - 1].endswith(".") and pieces[i].startswith(" ")
        sentence[i] = sentence[i - 1] + (ends or kinds[i] != kinds[i - 1])
    for number in range(sentence.max() + 1):
        rows = np.flatnonzero(sentence == number)
        yield rows, "".join(pieces[i] for i in rows).strip()


def _strengths(study: Study, pieces: list[str], kinds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    out = np.zeros((len(pieces), N_FEATURES), np.float32)
    for rows, text in sentences(pieces, kinds):
        for feature, (pattern, kind) in PLANTED.items():
            if kinds[rows[0]] == kind and re.search(pattern, text.lower()):
                out[rng.choice(rows), feature] = rng.uniform(1, 5)
    out[:, EVERYWHERE] = rng.uniform(1, 2, len(pieces))
    out[:, NOISE] = (rng.random(len(pieces)) < 0.05) * rng.uniform(1, 5, len(pieces))
    out[:, RARE] = (rng.random(len(pieces)) < 0.0005) * 3.0
    return out


def config(**interpret: object) -> ml_collections.ConfigDict:
    """The phantom's config with fewer examples, controls, resamples and splits."""
    cfg = phantom_config.get_config()
    fewer = {"n_explain": 40, "n_score": 50, "n_control": 8, "bootstrap": 200}
    cfg.interpret.update({"concept_sections": ("findings",)} | fewer | interpret)
    cfg.label.update({"bootstrap": 50, "probe_seeds": 1})
    cfg.studies.update({"n": 240, "seed": 0})
    return cfg
