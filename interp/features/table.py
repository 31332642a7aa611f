"""The results of interpretation: features.parquet and .jsonl, other tables, summary.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interp.exemplars.contexts import SECTION_NAMES, SECTIONS
from interp.exemplars.index import SplitIndex, pool_activity
from interp.exemplars.selection import NON_ACTIVATING_KINDS
from interp.features import logit_lens, relatives
from interp.features.concepts import ConceptFit, StudyLabels
from interp.features.summary import JudgeOrigin, summarise
from interp.scorers.ground_truth import Statements, describe
from maira_jax.checkpoint.store import load_unembedding
from maira_jax.inputs.tokens import Kind, Tokenizer
from maira_jax.run import files
from sae.autoencoder import Sae

_N_SIMILAR, _N_PROMOTED = 8, 8
SHUFFLED = "detection_shuffled"  # key of the scores of detection with another feature's explanation

_INTERVAL = pa.list_(pa.float64(), 2)

SCHEMA = pa.schema(
    [
        ("feature", pa.int32()),
        ("name", pa.string()),  # a few words
        ("explanation", pa.string()),
        ("reason", pa.string()),  # why there is no score; null where there is one
        ("judge", pa.string()),
        ("prompt_version", pa.string()),
        ("cost", pa.float64()),  # US dollars; an answer that two features share counts for both
        ("detection", pa.float64()),  # balanced accuracy; chance is 0.5
        ("detection_interval", _INTERVAL),
        ("detection_random", pa.float64()),  # the same with random negatives alone, as published scores are
        ("detection_random_interval", _INTERVAL),
        ("detection_hard", pa.float64()),  # with the hard negatives alone
        ("detection_hard_interval", _INTERVAL),
        ("accuracy", pa.float64()),
        ("accuracy_interval", _INTERVAL),
        ("precision", pa.float64()),
        ("precision_interval", _INTERVAL),
        ("recall", pa.float64()),
        ("recall_interval", _INTERVAL),
        ("f1", pa.float64()),
        ("f1_interval", _INTERVAL),
        ("by_decile", pa.list_(pa.float64())),  # accuracy on activating examples, weakest decile first
        # Accuracy on the non-activating examples of each kind.
        ("by_negative", pa.struct([(kind, pa.float64()) for kind in NON_ACTIVATING_KINDS])),
        ("n_examples", pa.int32()),
        ("n_failed", pa.int32()),
        ("detection_shuffled", pa.float64()),  # of another feature's explanation on the same examples: a control
        ("detection_shuffled_random", pa.float64()),
        ("detection_shuffled_hard", pa.float64()),
        ("fuzzing", pa.float64()),  # balanced accuracy on right and wrong marks; null without contexts to mark
        ("fuzzing_interval", _INTERVAL),
        ("fuzzing_n_examples", pa.int32()),
        ("fuzzing_n_failed", pa.int32()),
        ("explanation_group", pa.int32()),  # the first feature whose explanation says nearly the same
        ("density", pa.float64()),  # share of the tokens on which it is active
        ("mean_position", pa.float64()),  # of those tokens in their studies' sequences, from 0
        ("max_activation", pa.float64()),
        ("n_contexts_train", pa.int64()),
        ("n_contexts_held_out", pa.int64()),
        ("histogram", pa.list_(pa.int64())),  # peaks of activating contexts; edges in summary.json
        ("sections", pa.struct([(name, pa.float64()) for name in SECTIONS])),  # share of its active tokens
        ("kinds", pa.struct([(kind.name.lower(), pa.float64()) for kind in Kind])),  # the same by kind of token
        ("top_tokens", pa.list_(pa.string())),
        (
            "promoted",
            pa.list_(pa.string()),
        ),  # tokens whose logits the decoder row raises most; null without a language head
        ("promoted_logit", pa.list_(pa.float64())),  # for a row of length 1, before the final norm's division
        ("suppressed", pa.list_(pa.string())),
        ("suppressed_logit", pa.list_(pa.float64())),
        ("group", pa.int16()),  # of the Matryoshka prefixes, 0 is in all of them
        ("parent", pa.int32()),  # the feature of a narrower prefix that it splits off from; null without one
        ("parent_share", pa.float64()),  # of its contexts, those in which the parent is active
        ("children", pa.list_(pa.int32())),
        ("similar", pa.list_(pa.int32())),  # by cosine of the decoder rows
        ("similar_cosine", pa.list_(pa.float64())),
        ("coactive", pa.list_(pa.int32())),  # by correlation of activity over the sampled contexts
        ("coactive_correlation", pa.list_(pa.float64())),
        ("concept", pa.string()),  # the labelled concept that it detects best, above chance, on the train studies
        ("concept_f1", pa.float64()),  # on the held-out studies
        # Facts and words of which one mostly holds where it is active, if known.
        ("true_description", pa.list_(pa.string())),
        ("true_f1", pa.float64()),  # of that description, on held-out contexts, half of them activating
        ("fact_f1", pa.float64()),  # of the best description by facts alone
    ]
)


CONTROL_SCHEMA = pa.schema(
    [
        ("control", pa.string()),  # one of `interp.scorers.controls`
        ("direction", pa.string()),  # of the raw dimensions: sign and number
        ("matched_feature", pa.int32()),  # the feature that has its density
        ("density", pa.float64()),
        ("name", pa.string()),
        ("explanation", pa.string()),
        ("reason", pa.string()),
        ("cost", pa.float64()),
        ("detection", pa.float64()),
        ("detection_interval", _INTERVAL),
        ("detection_random", pa.float64()),
        ("detection_hard", pa.float64()),
        ("n_examples", pa.int32()),
        ("n_failed", pa.int32()),
        ("true_f1", pa.float64()),
        ("fact_f1", pa.float64()),
    ]
)
# Column -> measure of `interp.scorers.statistics.Score`.
_MEASURES = {
    "detection": "balanced_accuracy",
    "detection_random": "against_random",
    "detection_hard": "against_hard",
    **{name: name for name in ("accuracy", "precision", "recall", "f1")},
}


def schema_with(scorers: Sequence[str]) -> pa.Schema:
    """`SCHEMA` and the columns of scorers that it does not know: score, interval, and counts of examples."""
    types = {"": pa.float64(), "_interval": _INTERVAL, "_n_examples": pa.int32(), "_n_failed": pa.int32()}
    own = [(f"{name}{end}", kind) for name in scorers for end, kind in types.items()]
    return pa.schema([*SCHEMA, *(pa.field(*entry) for entry in own if entry[0] not in SCHEMA.names)])


def tables(
    known: Mapping[str, Any],
    origin: JudgeOrigin,
    explained: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Sequence[Mapping[str, Any]]],
    controls: Sequence[Mapping[str, Any]],
) -> dict[str, pa.Table]:
    """The tables "features" and "controls".

    Args:
      known: columns that need no judge: of `statistics`, `promoted_tokens`, `detected`, and `described` if there are.
      origin: where explanations and scores come from.
      explained: one record per feature.
      scores: scorer -> one record per feature; `SHUFFLED` -> those of detection with another feature's explanation.
      controls: one record per control.
    """
    unknown = dict.fromkeys(("true_description", "true_f1", "fact_f1"), [None] * len(explained))
    columns = {
        "features": unknown | dict(known) | _judged(origin, explained, scores),
        "controls": _control_columns(controls),
    }
    scorers = [name for name in scores if name not in ("detection", SHUFFLED)]
    return {
        name: pa.Table.from_arrays([pa.array(columns[name][field.name], field.type) for field in schema], schema=schema)
        for name, schema in (("features", schema_with(scorers)), ("controls", CONTROL_SCHEMA))
    }


def write(
    out: Path, found: Mapping[str, pa.Table], left_out: Mapping[str, str], origin: JudgeOrigin, n_bootstrap: int
) -> None:
    """Writes the stage's results into its folder `out`.

    Args:
      out: the folder.
      found: the tables "features", "controls", "concepts" (see `interp.features.concepts`) and, if anybody knows,
        "statements" (see `interp.scorers.ground_truth`).
      left_out: concepts that are not in their table, and why.
      origin: where explanations and scores come from.
      n_bootstrap: resamples for the intervals of means.
    """
    for name, table in found.items():
        with files.atomic_path(out / f"{name}.parquet") as path:
            pq.write_table(table, path)
    with files.atomic_path(out / "features.jsonl") as path, path.open("w") as file:
        for row in found["features"].to_pylist():
            file.write(json.dumps(row) + "\n")
    files.write_json(out / "summary.json", summarise(found, left_out, origin, n_bootstrap))


def statistics(sae: Sae, found: Mapping[str, SplitIndex]) -> dict[str, Any]:
    """Columns that need the pass over the tokens and the autoencoder alone."""
    train, held_out = found["train"], found["held_out"]
    by_kind = train.n_tokens + held_out.n_tokens  # [F, kinds]
    active = by_kind.sum(1)
    share = by_kind / np.maximum(active, 1)[:, None]
    by_section = {
        name: share[:, [int(kind) for kind in Kind if SECTION_NAMES[kind] == name]].sum(1) for name in SECTIONS
    }
    pool = pool_activity(dict(found))
    group = np.repeat(np.arange(len(sae.group_sizes)), sae.group_sizes)
    similar, cosine = relatives.nearest(np.asarray(sae.params["W_dec"]), _N_SIMILAR)
    coactive, correlation = relatives.nearest(relatives.centred_activity(pool), _N_SIMILAR)
    together = correlation > 0
    parent, parent_share = relatives.parents(pool, group)
    children: list[list[int]] = [[] for _ in group]
    for child in np.flatnonzero(parent >= 0).tolist():
        children[parent[child]].append(child)
    position = (train.position_sum + held_out.position_sum) / np.maximum(active, 1)
    return {
        "feature": np.arange(sae.n_features),
        "density": active / (train.total_tokens + held_out.total_tokens),
        "mean_position": [float(p) if n else None for p, n in zip(position, active, strict=True)],
        "max_activation": np.maximum(train.top_peak[:, 0], held_out.top_peak[:, 0]).astype(np.float64),
        "n_contexts_train": train.n_contexts,
        "n_contexts_held_out": held_out.n_contexts,
        "histogram": (train.histogram + held_out.histogram).tolist(),
        "sections": [{name: float(column[i]) for name, column in by_section.items()} for i in range(sae.n_features)],
        "kinds": [{kind.name.lower(): float(row[int(kind)]) for kind in Kind} for row in share],
        "group": group,
        "parent": [int(p) if p >= 0 else None for p in parent],
        "parent_share": [float(s) if p >= 0 else None for p, s in zip(parent, parent_share, strict=True)],
        "children": children,
        "similar": similar.tolist(),
        "similar_cosine": cosine.astype(np.float64).tolist(),
        "coactive": [row[mask].tolist() for row, mask in zip(coactive, together, strict=True)],
        "coactive_correlation": [
            row[mask].astype(np.float64).tolist() for row, mask in zip(correlation, together, strict=True)
        ],
    }


def promoted_tokens(workdir: Path, sae: Sae, site: str) -> dict[str, Any]:
    """Columns of the logit lens; null for autoencoders of other places than the language model's residual stream."""
    names = ("promoted", "promoted_logit", "suppressed", "suppressed_logit")
    if not site.startswith("language."):
        return {name: [None] * sae.n_features for name in names}
    found = logit_lens.extreme_tokens(
        np.asarray(sae.params["W_dec"]), *load_unembedding(workdir / "model"), _N_PROMOTED
    )
    tokenizer = Tokenizer.from_dir(workdir / "model")
    columns = [
        [tokenizer.pieces(row) for row in part]
        if np.issubdtype(part.dtype, np.integer)
        else part.astype(float).tolist()
        for part in found
    ]
    return dict(zip(names, columns, strict=True))


def _judged(
    origin: JudgeOrigin, explained: Sequence[Mapping[str, Any]], scores: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    texts = [record["text"] for record in explained]
    absent = [None] * len(explained)
    found = {"fuzzing": absent} | {name: [record["score"] for record in records] for name, records in scores.items()}
    columns = {
        "name": [record["name"] for record in explained],
        "explanation": texts,
        "explanation_group": [i if i >= 0 else None for i in relatives.near_duplicates(texts).tolist()],
        "top_tokens": [record["top_tokens"] for record in explained],
        "reason": [record["reason"] for record in scores["detection"]],
        "judge": [origin.judge] * len(explained),
        "prompt_version": [origin.prompt_version] * len(explained),
        "cost": [
            sum(record["cost"] for record in records) for records in zip(explained, *scores.values(), strict=True)
        ],
        "detection_shuffled": _of(found[SHUFFLED], "balanced_accuracy"),
        "detection_shuffled_random": _of(found[SHUFFLED], "against_random"),
        "detection_shuffled_hard": _of(found[SHUFFLED], "against_hard"),
    }
    for name in found.keys() - {"detection", SHUFFLED}:
        columns |= {
            name: _of(found[name], "balanced_accuracy"),
            f"{name}_interval": _intervals(found[name], "balanced_accuracy"),
            f"{name}_n_examples": _of(found[name], "n_examples"),
            f"{name}_n_failed": _of(found[name], "n_failed"),
        }
    return columns | _score_columns(found["detection"])


def _score_columns(scores: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    plain = ("by_decile", "by_negative", "n_examples", "n_failed")
    return (
        {column: _of(scores, measure) for column, measure in _MEASURES.items()}
        | {f"{column}_interval": _intervals(scores, measure) for column, measure in _MEASURES.items()}
        | {name: _of(scores, name) for name in plain}
    )


def _of(scores: Sequence[Mapping[str, Any] | None], name: str) -> list[Any]:
    return [score[name] if score else None for score in scores]


def _intervals(scores: Sequence[Mapping[str, Any] | None], measure: str) -> list[Any]:
    return [score["intervals"].get(measure) if score else None for score in scores]


def _control_columns(controls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = (*CONTROL_SCHEMA.names[:8], "true_f1", "fact_f1")
    own = {name: [record.get(name) for record in controls] for name in names}
    return own | _score_columns([record["score"] for record in controls])


def described(found: Mapping[str, SplitIndex], stated: Statements, n_least: int) -> dict[str, Any]:
    """Columns of what features truly detect; arguments as for `interp.scorers.ground_truth.describe`."""
    whole, facts = (describe(found, known, n_least) for known in (stated, stated.facts()))
    return {
        "true_description": [list(names) or None for names in whole.statements],
        "true_f1": [float(f1) if np.isfinite(f1) else None for f1 in whole.f1],
        "fact_f1": [float(f1) if np.isfinite(f1) else None for f1 in facts.f1],
    }


def detected(labels: StudyLabels, fit: ConceptFit) -> dict[str, Any]:
    """Columns of the concept that each feature detects best: by train F1 above that of saying yes to every study.

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
