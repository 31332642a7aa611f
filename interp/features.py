"""The results of interpretation: features.parquet and .jsonl, concepts.parquet, summary.json."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interp.concepts import Fit, Labels
from interp.contexts import SECTION_NAMES
from interp.index import EDGES, SplitIndex
from interp.judge import Judge
from interp.lens import similar_features
from maira_jax.processing.tokens import Kind
from maira_jax.run import files
from sae.autoencoder import Sae

GOOD_SCORE, CHANCE = 0.75, 0.5
GOOD_F1 = 0.8
_N_TOP_TOKENS, _N_SIMILAR = 8, 8
SECTIONS = tuple(dict.fromkeys(SECTION_NAMES[kind] for kind in Kind))

SCHEMA = pa.schema(
    [
        ("feature", pa.int32()),
        ("label", pa.string()),
        ("explanation", pa.string()),
        ("reason", pa.string()),  # why there is no score; null where there is one
        ("judge", pa.string()),
        ("prompt_version", pa.string()),
        ("cost", pa.float64()),  # US dollars; an answer that two features share counts for both
        ("detection", pa.float64()),  # balanced accuracy; chance is 0.5
        ("accuracy", pa.float64()),
        ("precision", pa.float64()),
        ("recall", pa.float64()),
        ("f1", pa.float64()),
        ("by_decile", pa.list_(pa.float64())),  # accuracy on activating examples, weakest decile first
        ("n_examples", pa.int32()),
        ("n_failed", pa.int32()),
        ("control", pa.float64()),  # balanced accuracy of another feature's explanation on the same examples
        ("fuzz", pa.float64()),  # balanced accuracy of telling right from wrong marks; null without contexts for it
        ("fuzz_n_examples", pa.int32()),
        ("fuzz_n_failed", pa.int32()),
        ("density", pa.float64()),  # share of the tokens on which it is active
        ("max_activation", pa.float64()),
        ("n_contexts_train", pa.int64()),
        ("n_contexts_held_out", pa.int64()),
        ("histogram", pa.list_(pa.int64())),  # peaks of activating contexts; edges in summary.json
        ("sections", pa.struct([(name, pa.float64()) for name in SECTIONS])),  # share of its active tokens
        ("top_tokens", pa.list_(pa.string())),
        ("group", pa.int16()),  # of the Matryoshka prefixes, 0 is in all of them
        ("similar", pa.list_(pa.int32())),  # by cosine of the decoder rows
        ("similar_cosine", pa.list_(pa.float64())),
        ("concept", pa.string()),  # the labelled concept that it detects best, above chance, on the train studies
        ("concept_f1", pa.float64()),  # on the held-out studies
    ]
)


def top_tokens(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The peak tokens of a feature's train exemplars, by the sum of their activations."""
    weight: Counter[str] = Counter()
    for row in rows:
        if row["split"] == "train" and row["peak"] is not None:
            weight[row["tokens"][row["peak"]].strip()] += row["max_activation"]
    return [token for token, _ in sorted(weight.items(), key=lambda item: (-item[1], item[0]))[:_N_TOP_TOKENS]]


def write(
    out: Path,
    sae: Sae,
    judge: Judge,
    index: Mapping[str, SplitIndex],
    explained: Sequence[Mapping[str, Any]],
    scored: Sequence[Mapping[str, Any]],
    labels: Labels,
    fit: Fit,
    concept_table: pa.Table,
    concepts_left_out: Mapping[str, str],
) -> None:
    """Writes the four files into the stage's folder `out`; `explained` and `scored` have a record a feature."""
    columns = _statistics(sae, index) | _judged(judge, explained, scored) | _concepts(labels, fit)
    table = pa.Table.from_arrays([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)
    with files.atomic_path(out / "features.parquet") as path:
        pq.write_table(table, path)
    with files.atomic_path(out / "features.jsonl") as path, path.open("w") as file:
        for row in table.to_pylist():
            file.write(json.dumps(row) + "\n")
    with files.atomic_path(out / "concepts.parquet") as path:
        pq.write_table(concept_table, path)
    files.write_json(out / "summary.json", summarise(table, concept_table, concepts_left_out, judge))


def _statistics(sae: Sae, index: Mapping[str, SplitIndex]) -> dict[str, Any]:
    """Columns that need no judge."""
    train, held_out = index["train"], index["held_out"]
    by_kind = train.n_tokens + held_out.n_tokens  # [F, kinds]
    active = by_kind.sum(1)
    by_section = {
        name: by_kind[:, [int(kind) for kind in Kind if SECTION_NAMES[kind] == name]].sum(1) / np.maximum(active, 1)
        for name in SECTIONS
    }
    similar, cosine = similar_features(np.asarray(sae.params["W_dec"]), _N_SIMILAR)
    return {
        "feature": np.arange(sae.n_features),
        "density": active / (train.total_tokens + held_out.total_tokens),
        "max_activation": np.maximum(train.top_peak[:, 0], held_out.top_peak[:, 0]).astype(np.float64),
        "n_contexts_train": train.n_contexts,
        "n_contexts_held_out": held_out.n_contexts,
        "histogram": (train.histogram + held_out.histogram).tolist(),
        "sections": [{name: float(share[i]) for name, share in by_section.items()} for i in range(sae.n_features)],
        "group": np.repeat(np.arange(len(sae.group_sizes)), sae.group_sizes),
        "similar": similar.tolist(),
        "similar_cosine": cosine.astype(np.float64).tolist(),
    }


def _judged(
    judge: Judge, explained: Sequence[Mapping[str, Any]], scored: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    def scores(name: str, arm: str = "score") -> list[Any]:
        return [record[arm][name] if record[arm] else None for record in scored]

    return {
        "label": [record["label"] for record in explained],
        "explanation": [record["text"] for record in explained],
        "top_tokens": [record["top_tokens"] for record in explained],
        "reason": [record["reason"] for record in scored],
        "judge": [judge.name] * len(scored),
        "prompt_version": [judge.prompt_version] * len(scored),
        "cost": [a["cost"] + b["cost"] for a, b in zip(explained, scored, strict=True)],
        "detection": scores("balanced_accuracy"),
        "control": scores("balanced_accuracy", "control"),
        "fuzz": scores("balanced_accuracy", "fuzz"),
        "fuzz_n_examples": scores("n_examples", "fuzz"),
        "fuzz_n_failed": scores("n_failed", "fuzz"),
    } | {
        name: scores(name) for name in ("accuracy", "precision", "recall", "f1", "by_decile", "n_examples", "n_failed")
    }


def _concepts(labels: Labels, fit: Fit) -> dict[str, Any]:
    """The concept that each feature detects best: by train F1 above that of saying yes to every study.

    Without that, every feature would be said to detect the most frequent concept.
    """
    n_features = fit.train_f1.shape[1]
    if not labels.concepts:
        return {"concept": [None] * n_features, "concept_f1": [None] * n_features}
    above = fit.train_f1 - fit.always_f1[:, None]
    best, found = above.argmax(0), above.max(0) > 0
    return {
        "concept": [labels.concepts[c] if ok else None for c, ok in zip(best, found, strict=True)],
        "concept_f1": [float(fit.f1[c, i]) if ok else None for i, (c, ok) in enumerate(zip(best, found, strict=True))],
    }


def summarise(
    table: pa.Table, concept_table: pa.Table, concepts_left_out: Mapping[str, str], judge: Judge
) -> dict[str, Any]:
    """The content of summary.json."""
    detection, control, fuzz = (
        np.array([score for score in table[name].to_pylist() if score is not None])
        for name in ("detection", "control", "fuzz")
    )
    usage = judge.usage()
    reasons = Counter(reason for reason in table["reason"].to_pylist() if reason is not None)
    found = concept_table.select(["concept", "feature", "f1"]).to_pylist()
    return {
        "judge": judge.name,
        "prompt_version": judge.prompt_version,
        "cost": usage.get("cost", 0.0),
        "usage": usage,
        "features": table.num_rows,
        "alive": sum(density > 0 for density in table["density"].to_pylist()),
        "scored": len(detection),
        "not_scored": dict(sorted(reasons.items())),
        "above_075": int((detection > GOOD_SCORE).sum()),
        "below_05": int((detection < CHANCE).sum()),
        "median": _median(detection),
        "examples_failed": sum(n or 0 for name in ("n_failed", "fuzz_n_failed") for n in table[name].to_pylist()),
        "fuzz": {"scored": len(fuzz), "above_075": int((fuzz > GOOD_SCORE).sum()), "median": _median(fuzz)},
        "control": {
            "what": "every feature scored with another feature's explanation",
            "scored": len(control),
            "above_075": int((control > GOOD_SCORE).sum()),
            "mean": float(control.mean()) if len(control) else None,
            "median": _median(control),
        },
        "concepts": {
            "tested": len(found),
            "f1_08": sum(row["f1"] >= GOOD_F1 for row in found),
            "found": [row["concept"] for row in found if row["f1"] >= GOOD_F1],
            "left_out": dict(concepts_left_out),
        },
        "histogram_edges": EDGES.tolist(),
    }


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if len(values) else None
