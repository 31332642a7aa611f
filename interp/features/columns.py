"""Columns of the feature table that need no judge: activity, related features, logit lens, concepts."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from interp.exemplars import neighbours
from interp.exemplars.index import SplitIndex, pool_activity
from interp.features import logit_lens, relatives
from interp.features.concepts import ConceptFit, StudyLabels
from maira_jax.checkpoint.store import load_unembedding
from maira_jax.inputs.tokens import SECTION_NAMES, SECTIONS, Kind, Tokenizer
from sae.activations.store import HELD_OUT, TRAIN
from sae.autoencoder import Sae

_N_SIMILAR, _N_PROMOTED = 8, 8


def of_activity(sae: Sae, found: Mapping[str, SplitIndex]) -> dict[str, Any]:
    """When and where each feature is active."""
    train, held_out = found[TRAIN], found[HELD_OUT]
    by_kind = train.n_tokens + held_out.n_tokens  # [F, kinds]
    active = by_kind.sum(1)  # [F]
    share = by_kind / np.maximum(active, 1)[:, None]  # [F, kinds]
    by_section = {
        name: share[:, [int(kind) for kind in Kind if SECTION_NAMES[kind] == name]].sum(1) for name in SECTIONS
    }
    position = (train.position_sum + held_out.position_sum) / np.maximum(active, 1)  # [F]
    return {
        "feature": np.arange(sae.n_features),
        "density": active / (train.total_tokens + held_out.total_tokens),
        "mean_position": _or_none(position, active > 0),
        "max_activation": np.maximum(train.top_peak[:, 0], held_out.top_peak[:, 0]).astype(np.float64),
        "n_contexts_train": train.n_contexts,
        "n_contexts_held_out": held_out.n_contexts,
        "histogram": (train.histogram + held_out.histogram).tolist(),
        "sections": [{name: float(column[i]) for name, column in by_section.items()} for i in range(sae.n_features)],
    }


def of_relatives(sae: Sae, found: Mapping[str, SplitIndex]) -> dict[str, Any]:
    """Which features are near each feature, and which it splits off from or into."""
    pool = pool_activity(found)  # [contexts, F]
    group = np.repeat(np.arange(len(sae.group_sizes)), sae.group_sizes)  # [F]
    similar, cosine = neighbours.nearest(np.asarray(sae.params["W_dec"]), _N_SIMILAR)  # [F, neighbours]
    coactive, correlation = neighbours.coactive(found, _N_SIMILAR)  # [F, neighbours]
    together = correlation > 0
    parent, parent_share = relatives.parents(pool, group)  # [F]
    children: list[list[int]] = [[] for _ in group]
    for child in np.flatnonzero(parent >= 0).tolist():
        children[parent[child]].append(child)
    return {
        "group": group,
        "parent": _or_none(parent, parent >= 0),
        "parent_share": _or_none(parent_share.astype(np.float64), parent >= 0),
        "children": children,
        "similar": similar.tolist(),
        "similar_cosine": cosine.astype(np.float64).tolist(),
        "coactive": [row[mask].tolist() for row, mask in zip(coactive, together, strict=True)],
        "coactive_correlation": [
            row[mask].astype(np.float64).tolist() for row, mask in zip(correlation, together, strict=True)
        ],
    }


def of_logit_lens(workdir: Path, sae: Sae, site: str) -> dict[str, Any]:
    """The tokens that each feature promotes and suppresses; null at sites outside the language model."""
    names = ("promoted", "promoted_logit", "suppressed", "suppressed_logit")
    if not site.startswith("language."):
        return {name: [None] * sae.n_features for name in names}
    decoder = np.asarray(sae.params["W_dec"])
    found = logit_lens.extreme_tokens(decoder, *load_unembedding(workdir / "model"), _N_PROMOTED)
    tokenizer = Tokenizer.from_dir(workdir / "model")
    columns = [
        [tokenizer.pieces(row) for row in part]
        if np.issubdtype(part.dtype, np.integer)
        else part.astype(float).tolist()
        for part in found
    ]
    return dict(zip(names, columns, strict=True))


def of_concepts(labels: StudyLabels, fit: ConceptFit, left_out: Collection[str]) -> dict[str, Any]:
    """The concept that each feature detects best: by its train F1 above that of calling every study positive.

    By the train F1 alone, every feature would seem to detect the most frequent concept. Concepts in `left_out` are
    not looked at; None where no other is detected better than that, or the best not on any held-out study.
    """
    n_features = fit.train_f1.shape[1]
    tested = np.array([concept not in left_out for concept in labels.concepts], bool)  # [C]
    if not tested.any():
        return {"concept": [None] * n_features, "concept_f1": [None] * n_features}
    above = np.where(tested[:, None], fit.train_f1 - fit.always_f1[:, None], -np.inf)  # [C, F]
    best = above.argmax(0)  # [F]
    found = (above.max(0) > 0) & (fit.f1[best, np.arange(n_features)] > 0)  # [F]
    return {
        "concept": [labels.concepts[c] if ok else None for c, ok in zip(best, found, strict=True)],
        "concept_f1": _or_none(fit.f1[best, np.arange(n_features)], found),
    }


def _or_none(values: np.ndarray, known: np.ndarray | Sequence[bool]) -> list[Any]:
    """The values as plain numbers, None where they are not known."""
    return [value if ok else None for value, ok in zip(values.tolist(), known, strict=True)]
