"""An interpreted run as large as MAIRA-2's: 16,384 features, texts and X-rays, random numbers in place of findings.

It is a configuration too: `--config=tests/helpers/large_run.py:WORKDIR` reads the images that `make_workdir` wrote.
"""

import dataclasses
import json
from pathlib import Path

import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFilter

from configs import base
from interp.exemplars import exemplar_table
from interp.exemplars.selection import KINDS
from interp.features import concepts as concept_table
from interp.features import summary, table
from maira_jax.inputs.tokens import Kind, Tokenizer
from maira_jax.phantom.pretraining import tokenizer_files
from maira_jax.run import files
from maira_jax.run.config import setting
from maira_jax.run.stages.stage import Stage
from maira_jax.studies.readers.registry import READERS, StudiesSection
from maira_jax.studies.study import Study
from sae.activations.store import HELD_OUT, TRAIN, StoreLayout, StoreWriter
from sae.activations.token_rows import TokenRows
from sae.autoencoder import Sae
from sae.saved import save_sae

GRID, SENTENCES, WORDS = 37, 8, 12  # patches along a side; sentences of a report, words of a sentence
TOP, DECILE, OTHERS = 10, 5, 20  # exemplars of a feature in a split: strongest, of each decile, of each other kind
_SIDE, _BATCH, _CONCEPTS = 768, 256, 30


@dataclasses.dataclass(frozen=True)
class LargeRun:
    """Sizes of the run."""

    n_features: int = 16384
    n_studies: int = 1500
    d_model: int = 64


@READERS.register("large_run")
class LargeRunSection(StudiesSection):
    """Studies with an X-ray's file each."""

    path: str = setting("", "Folder of the images.")

    def load(self) -> list[Study]:
        found = sorted(Path(self.path).glob("*.jpg"))
        return [Study(path.stem, path.stem, frontal=path) for path in found]


def get_config(workdir: str) -> ml_collections.ConfigDict:
    config = base.get_config()
    config.studies = base.studies("large_run", path=str(Path(workdir) / "xrays"))
    return config


def make_workdir(workdir: Path, run: LargeRun) -> None:
    """Writes finished `model`, `activations`, `sae` and `interp` stages, and the images."""
    rng = np.random.default_rng(0)
    vocabulary = [f"{a}{b}{c}" for a in "bdfgklmnpr" for b in "aeiou" for c in ("r", "st", "ng", "lla", "nt", "mo")]
    ids = [f"study-{i:06d}" for i in range(run.n_studies)]
    _write_images(workdir / "xrays", ids, rng)
    words = rng.zipf(1.3, (run.n_studies, SENTENCES, WORDS)) % len(vocabulary)
    with Stage(workdir, "model", {}) as stage:
        tokenizer_files.from_corpus([" ".join(vocabulary)], 600, stage.dir)
        vision = {"image_size": 14 * GRID, "patch_size": 14}
        files.write_json(stage.dir / "config.json", {"vision_config": vision})
        stage.finish({"parameters": 7_000_000_000})
    _write_store(workdir, run, ids, words, rng)
    with Stage(workdir, "sae", {}) as stage:
        w = rng.normal(size=(run.n_features, run.d_model)).astype(np.float32)
        params = {"W_enc": w.T, "b_enc": np.zeros(run.n_features, np.float32), "W_dec": w}
        save_sae(stage.dir, Sae(params | {"b_dec": np.zeros(run.d_model, np.float32)}, 20.0, 64, (run.n_features,)))
        stage.finish({"n_features": run.n_features})
    with Stage(workdir, "interp", {}, inputs=("sae",)) as stage:
        pieces = [f" {vocabulary[i]}" for i in range(len(vocabulary))]
        _write_exemplars(stage.dir / "exemplars.parquet", run, ids, words, pieces, rng)
        features = _feature_table(run, vocabulary, rng)
        found = {"features": features, "controls": table.CONTROL_SCHEMA.empty_table(), "concepts": _concepts(run, rng)}
        table.write(stage.dir, found, {}, None, summary.JudgeOrigin("random numbers", "0", {}), 10)
        stage.finish({"features": run.n_features})


def _write_images(folder: Path, ids: list[str], rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    for name in ids:
        coarse = Image.fromarray(rng.integers(0, 255, (24, 24), np.uint8)).resize((_SIDE, _SIDE))
        grain = Image.fromarray(rng.integers(0, 255, (_SIDE, _SIDE), np.uint8)).filter(ImageFilter.GaussianBlur(2))
        Image.blend(coarse, grain, 0.3).save(folder / f"{name}.jpg", quality=90)


def _write_store(workdir: Path, run: LargeRun, ids: list[str], words: np.ndarray, rng: np.random.Generator) -> None:
    per_study = GRID * GRID + SENTENCES * WORDS
    kinds = [Kind.IMAGE] * (GRID * GRID - 1) + [Kind.IMAGE_LAST] + [Kind.FINDINGS] * (SENTENCES * WORDS)
    image = Tokenizer.from_dir(workdir / "model").image_id
    token_id = [np.concatenate([np.full(GRID * GRID, image), 5 + own.ravel()]) for own in words]
    n = run.n_studies * per_study
    tokens = TokenRows(
        np.repeat(np.arange(run.n_studies, dtype=np.int32), per_study),
        np.tile(np.arange(per_study, dtype=np.int32), run.n_studies),
        np.concatenate(token_id).astype(np.int32),
        np.tile(np.array(kinds, np.int8), run.n_studies),
    )
    labels = [json.dumps({f"finding {i}": bool(rng.random() < 0.2) for i in range(_CONCEPTS)}) for _ in ids]
    split = [HELD_OUT if i % 10 == 0 else TRAIN for i in range(run.n_studies)]
    starts = np.arange(run.n_studies + 1) * per_study
    columns = {"study_id": ids, "patient_id": ids, "split": split, "labels": labels}
    studies = pa.table(columns | {"start": starts[:-1], "stop": starts[1:]})
    source = {"checkpoint": "random", "site": "language.15.resid_post", "token_filter": "text_and_frontal"}
    with Stage(workdir, "activations", {"harvest": source}) as stage:
        layout = StoreLayout(n, run.d_model, "bfloat16", 16384, 128)
        writer = StoreWriter(stage.dir, layout, tokens, studies, source)
        for shard in writer.missing():
            low, high = layout.rows(shard)
            writer.write(shard, rng.normal(size=(high - low, run.d_model)).astype(np.float32))
        stage.finish(writer.counts())


def _write_exemplars(
    path: Path, run: LargeRun, ids: list[str], words: np.ndarray, pieces: list[str], rng: np.random.Generator
) -> None:
    """A quarter of the features is active on patches, the others on words."""
    kinds = np.concatenate([np.zeros(TOP, int), np.ones(10 * DECILE, int), np.repeat([2, 3, 4], OTHERS)])
    decile = np.concatenate([np.full(TOP, -1), np.repeat(np.arange(10), DECILE), np.full(3 * OTHERS, -1)])
    per_feature = 2 * len(kinds)
    with pq.ParquetWriter(path, exemplar_table.SCHEMA, compression="zstd") as writer:
        for begin in range(0, run.n_features, _BATCH):
            feature = np.repeat(np.arange(begin, min(begin + _BATCH, run.n_features)), per_feature)
            n, repeats = len(feature), len(feature) // per_feature
            kind = np.tile(np.tile(kinds, 2), repeats)
            train = np.tile(np.repeat([True, False], len(kinds)), repeats)
            tenth = rng.integers(0, run.n_studies // 10, n) * 10
            study = np.where(train, tenth + rng.integers(1, 10, n), tenth)
            of_image, sentence = feature % 4 == 0, rng.integers(0, SENTENCES, n)
            patch = rng.integers(0, GRID * GRID // 32, n) * 32
            length = np.where(of_image, 32, WORDS)
            offsets = np.concatenate([[0], np.cumsum(length)]).astype(np.int32)
            inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], length)
            text = words[np.repeat(study, length), np.repeat(sentence, length), np.minimum(inside, WORDS - 1)]
            text = np.where(np.repeat(of_image, length), len(pieces), text)
            active = np.repeat(kind < 2, length) & (rng.random(offsets[-1]) < 0.25)
            values = np.where(active, rng.uniform(1, 50, offsets[-1]), 0).astype(np.float32)
            largest = np.maximum.reduceat(values, offsets[:-1])
            columns = [
                pa.array(feature.astype(np.int32)),
                pa.array([HELD_OUT, TRAIN]).take(pa.array(train.astype(np.int32))),
                pa.array(KINDS).take(pa.array(kind)),
                pa.array(np.tile(np.tile(decile, 2), repeats).astype(np.int8), mask=kind != 1),
                pa.array(ids).take(pa.array(study)),
                pa.array(["findings", "image"]).take(pa.array(of_image.astype(np.int32))),
                pa.array(np.where(of_image, patch, GRID * GRID + sentence * WORDS).astype(np.int32)),
                pa.ListArray.from_arrays(offsets, pa.array([*pieces, "<image>"]).take(pa.array(text))),
                pa.ListArray.from_arrays(offsets, pa.array(values)),
                pa.array(largest),
                pa.array(np.zeros(n, np.int16), mask=kind >= 2),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=exemplar_table.SCHEMA), row_group_size=n)


def _feature_table(run: LargeRun, vocabulary: list[str], rng: np.random.Generator) -> pa.Table:
    n = run.n_features
    score = rng.beta(8, 3, n)
    some = rng.choice(vocabulary, (n, 24))
    columns: dict[str, object] = {name: [None] * n for name in table.SCHEMA.names}
    columns |= {
        "feature": np.arange(n),
        "name": [" ".join(row[:5]) for row in some],
        "explanation": [" ".join([*row, *row]) for row in some],
        "top_tokens": some[:, :8].tolist(),
        "promoted": some[:, :8].tolist(),
        "promoted_logit": rng.uniform(0, 1, (n, 8)).tolist(),
        "suppressed": some[:, 8:16].tolist(),
        "suppressed_logit": rng.uniform(-1, 0, (n, 8)).tolist(),
        **{name: score for name in ("detection", "detection_random", "detection_hard", "f1", "precision", "recall")},
        "detection_interval": np.column_stack([score - 0.1, score + 0.1]).tolist(),
        "f1_interval": np.column_stack([score - 0.1, score + 0.1]).tolist(),
        "by_decile": rng.random((n, 10)).tolist(),
        "n_examples": np.full(n, 200),
        "n_failed": np.zeros(n, int),
        "fuzzing_n_failed": np.zeros(n, int),
        "detection_shuffled": rng.beta(8, 8, n),
        "density": rng.uniform(1e-5, 0.02, n),
        "mean_position": rng.uniform(0, 1400, n),
        "max_activation": np.full(n, 50.0),
        "n_contexts_train": np.full(n, 1000),
        "n_contexts_held_out": np.full(n, 100),
        "histogram": rng.integers(0, 300, (n, len(summary.EDGES) + 1)).tolist(),
        "sections": [{"findings": 0.2 if i % 4 == 0 else 1.0, "image": 0.8 if i % 4 == 0 else 0.0} for i in range(n)],
        "group": np.zeros(n, int),
        "children": [[]] * n,
        **{name: rng.integers(0, n, (n, 8)).tolist() for name in ("similar", "coactive")},
        **{name: rng.random((n, 8)).tolist() for name in ("similar_cosine", "coactive_correlation")},
    }
    return pa.Table.from_arrays([pa.array(columns[f.name], f.type) for f in table.SCHEMA], schema=table.SCHEMA)


def _concepts(run: LargeRun, rng: np.random.Generator) -> pa.Table:
    rows = [
        {"concept": f"finding {i}", "prevalence": 0.2, "n_train": 1000, "n_held_out": 150, "n_positive": 30, "f1": 0.8}
        | {"feature": int(rng.integers(run.n_features)), "threshold": 1.0, "train_f1": 0.8, "precision": 0.8}
        | {"recall": 0.8, "runners_up": [], "runners_up_f1": []}
        for i in range(_CONCEPTS)
    ]
    return pa.Table.from_pylist(rows, concept_table.SCHEMA)
