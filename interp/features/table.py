"""The results of interpretation: features.parquet and .jsonl, other tables, summary.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from interp.exemplars.selection import NON_ACTIVATING_KINDS
from interp.features import relatives
from interp.features.summary import JudgeOrigin, summarise
from interp.scorers.detection import SHUFFLED
from maira_jax.inputs.tokens import SECTIONS
from maira_jax.run import files
from maira_jax.run.columns import column

_INTERVAL = pa.list_(pa.float64())  # not of fixed size: pyarrow below 26 cannot read an empty one from parquet
_BY_NEGATIVE = pa.struct([(kind, pa.float64()) for kind in NON_ACTIVATING_KINDS])

SCHEMA = pa.schema(
    [
        column("feature", pa.int32(), "its number"),
        column("name", pa.string(), "a few words"),
        column("explanation", pa.string(), "when it is active"),
        column("reason", pa.string(), "why there is no score; null where there is one"),
        column("judge", pa.string(), "who answered"),
        column("prompt_version", pa.string(), "names of the prompts or rules"),
        column("cost", pa.float64(), "US dollars; an answer that two features share counts for both"),
        column("detection", pa.float64(), "balanced accuracy of detection; chance is 0.5"),
        column("detection_interval", _INTERVAL, "95 % interval of detection"),
        column("detection_random", pa.float64(), "the same with random negatives alone, as published scores are"),
        column("detection_random_interval", _INTERVAL, "95 % interval of detection_random"),
        column("detection_hard", pa.float64(), "the same with the hard negatives alone"),
        column("detection_hard_interval", _INTERVAL, "95 % interval of detection_hard"),
        column("accuracy", pa.float64(), "of detection"),
        column("accuracy_interval", _INTERVAL, "95 % interval of accuracy"),
        column("precision", pa.float64(), "of detection"),
        column("precision_interval", _INTERVAL, "95 % interval of precision"),
        column("recall", pa.float64(), "of detection"),
        column("recall_interval", _INTERVAL, "95 % interval of recall"),
        column("f1", pa.float64(), "of detection"),
        column("f1_interval", _INTERVAL, "95 % interval of f1"),
        column("by_decile", pa.list_(pa.float64()), "accuracy on activating examples, weakest decile first"),
        column(
            "by_negative",
            pa.struct([(kind, pa.float64()) for kind in NON_ACTIVATING_KINDS]),
            "accuracy on each non-activating kind",
        ),
        column("n_examples", pa.int32(), "examples that were answered"),
        column("n_failed", pa.int32(), "examples without a usable answer"),
        column("detection_shuffled", pa.float64(), "of another feature's explanation on the same examples: a control"),
        column("detection_shuffled_random", pa.float64(), "the same with random negatives alone"),
        column("detection_shuffled_hard", pa.float64(), "the same with the hard negatives alone"),
        column("fuzzing", pa.float64(), "balanced accuracy on right and wrong marks; null without contexts to mark"),
        column("fuzzing_interval", _INTERVAL, "95 % interval of fuzzing"),
        column("fuzzing_n_examples", pa.int32(), "examples of fuzzing that were answered"),
        column("fuzzing_n_failed", pa.int32(), "examples of fuzzing without a usable answer"),
        column("explanation_group", pa.int32(), "the first feature whose explanation says nearly the same"),
        column("density", pa.float64(), "share of the tokens on which it is active"),
        column("mean_position", pa.float64(), "of those tokens in their studies' sequences, from 0"),
        column("max_activation", pa.float64(), "its largest activation"),
        column("n_contexts_train", pa.int64(), "train contexts in which it is active"),
        column("n_contexts_held_out", pa.int64(), "held-out contexts in which it is active"),
        column("histogram", pa.list_(pa.int64()), "its peaks in activating contexts; edges in summary.json"),
        column(
            "sections",
            pa.struct([(name, pa.float64()) for name in SECTIONS]),
            "share of its active tokens",
        ),
        column("top_tokens", pa.list_(pa.string()), "on which it is strongest"),
        column(
            "promoted",
            pa.list_(pa.string()),
            "tokens whose logits it raises most; null without a language head",
        ),
        column("promoted_logit", pa.list_(pa.float64()), "for a row of length 1, before the final norm's division"),
        column("suppressed", pa.list_(pa.string()), "tokens whose logits it lowers most"),
        column("suppressed_logit", pa.list_(pa.float64()), "likewise"),
        column("group", pa.int16(), "of the Matryoshka prefixes; 0 is in all of them"),
        column("parent", pa.int32(), "the feature of a narrower prefix that it splits off from; null without one"),
        column("parent_share", pa.float64(), "of its contexts, those in which the parent is active"),
        column("children", pa.list_(pa.int32()), "features that split off from it"),
        column("similar", pa.list_(pa.int32()), "features near it, by cosine of the decoder rows"),
        column("similar_cosine", pa.list_(pa.float64()), "their cosines"),
        column("coactive", pa.list_(pa.int32()), "features active with it, by correlation over the sampled contexts"),
        column("coactive_correlation", pa.list_(pa.float64()), "their correlations"),
        column("concept", pa.string(), "the labelled concept that it detects best, above chance, on the train studies"),
        column("concept_f1", pa.float64(), "on the held-out studies"),
        column(
            "true_description",
            pa.list_(pa.string()),
            "facts or words that mostly hold where it is active",
        ),
        column("true_f1", pa.float64(), "of that description, on held-out contexts, half of them activating"),
        column("fact_f1", pa.float64(), "of the best description by facts alone"),
    ]
)


CONTROL_SCHEMA = pa.schema(
    [
        column("control", pa.string(), "its kind: raw dimensions, random directions and others"),
        column("direction", pa.string(), "of raw dimensions and principal components: sign and number"),
        column("matched_feature", pa.int32(), "the feature that has its density"),
        column("density", pa.float64(), "share of the tokens on which it is active"),
        column("name", pa.string(), "a few words"),
        column("explanation", pa.string(), "when it is active"),
        column("reason", pa.string(), "why there is no score; null where there is one"),
        column("cost", pa.float64(), "US dollars; an answer that two features share counts for both"),
        column("detection", pa.float64(), "balanced accuracy of detection; chance is 0.5"),
        column("detection_interval", _INTERVAL, "95 % interval of detection"),
        column("detection_random", pa.float64(), "the same with random negatives alone, as published scores are"),
        column("detection_hard", pa.float64(), "the same with the hard negatives alone"),
        column("n_examples", pa.int32(), "examples that were answered"),
        column("n_failed", pa.int32(), "examples without a usable answer"),
        column("fuzzing", pa.float64(), "balanced accuracy on right and wrong marks; null without contexts to mark"),
        column("fuzzing_interval", _INTERVAL, "95 % interval of fuzzing"),
        column("fuzzing_n_examples", pa.int32(), "examples of fuzzing that were answered"),
        column("fuzzing_n_failed", pa.int32(), "examples of fuzzing without a usable answer"),
        column("true_f1", pa.float64(), "of that description, on held-out contexts, half of them activating"),
        column("fact_f1", pa.float64(), "of the best description by facts alone"),
    ]
)
# Column -> measure of `interp.scorers.statistics.Score`.
_MEASURES = {
    "detection": "balanced_accuracy",
    "detection_random": "against_random",
    "detection_hard": "against_hard",
    **{name: name for name in ("accuracy", "precision", "recall", "f1")},
}


def schema_with(scorers: Sequence[str], schema: pa.Schema = SCHEMA) -> pa.Schema:
    """The schema and the columns of scorers that it does not know: score, interval, and counts of examples."""
    types = {"": pa.float64(), "_interval": _INTERVAL, "_n_examples": pa.int32(), "_n_failed": pa.int32()}
    own = [(f"{name}{end}", kind) for name in scorers for end, kind in types.items()]
    return pa.schema([*schema, *(pa.field(*entry) for entry in own if entry[0] not in schema.names)])


def tables(
    known: Mapping[str, Any],
    origin: JudgeOrigin,
    explained: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Sequence[Mapping[str, Any]]],
    controls: Sequence[Mapping[str, Any]],
) -> dict[str, pa.Table]:
    """The tables "features" and "controls".

    Args:
      known: the columns of `interp.features.columns` and of `interp.scorers.ground_truth.feature_columns`.
      origin: where explanations and scores come from.
      explained: one record per feature.
      scores: scorer -> one record per feature; `SHUFFLED` -> those of detection with another feature's explanation.
      controls: one record per control.
    """
    scorers = [name for name in scores if name not in ("detection", SHUFFLED)]
    columns = {
        "features": dict(known) | judged(origin, explained, scores),
        "controls": _control_columns(controls, scorers),
    }
    return {
        name: pa.Table.from_arrays([pa.array(columns[name][field.name], field.type) for field in schema], schema=schema)
        for name, schema in (
            ("features", schema_with(scorers)),
            ("controls", schema_with(scorers, CONTROL_SCHEMA)),
        )
    }


def write(
    out: Path,
    found: Mapping[str, pa.Table],
    left_out: Mapping[str, str],
    covered: Mapping[str, Any] | None,
    origin: JudgeOrigin,
    n_bootstrap: int,
) -> None:
    """Writes the stage's results into its folder `out`.

    Args:
      out: the folder.
      found: the tables "features", "controls", "concepts" (see `interp.features.concepts`), "coverage" and, where the
        ground truth is known, "statements" (see `interp.scorers.ground_truth`).
      left_out: the concepts that are not in their table, and why.
      covered: how well every basis finds the concepts (see `interp.coverage`); None without concepts.
      origin: where explanations and scores come from.
      n_bootstrap: number of resamples for the intervals of means.
    """
    for name, table in found.items():
        with files.atomic_path(out / f"{name}.parquet") as path:
            pq.write_table(table, path)
    with files.atomic_path(out / "features.jsonl") as path, path.open("w") as file:
        for row in found["features"].to_pylist():
            file.write(json.dumps(row) + "\n")
    summary = summarise(found, left_out, origin, n_bootstrap)
    files.write_json(out / "summary.json", summary | {"coverage": covered})


def judged(
    origin: JudgeOrigin, explained: Sequence[Mapping[str, Any]], scores: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """The columns of "features" that come from an explainer and a judge; arguments as for `tables`."""
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
        columns |= _other_columns(name, found[name])
    return columns | _score_columns(found["detection"])


def _other_columns(name: str, scores: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """The columns of a scorer other than detection."""
    return {
        name: _of(scores, "balanced_accuracy"),
        f"{name}_interval": _intervals(scores, "balanced_accuracy"),
        f"{name}_n_examples": _of(scores, "n_examples"),
        f"{name}_n_failed": _of(scores, "n_failed"),
    }


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


def _control_columns(controls: Sequence[Mapping[str, Any]], scorers: Sequence[str]) -> dict[str, Any]:
    names = (*CONTROL_SCHEMA.names[:8], "true_f1", "fact_f1")
    own = {name: [record.get(name) for record in controls] for name in names}
    own |= {name: [None] * len(controls) for name in CONTROL_SCHEMA.names if name.startswith("fuzzing")}
    for name in scorers:
        own |= _other_columns(name, [record["scores"][name] for record in controls])
    return own | _score_columns([record["scores"]["detection"] for record in controls])
