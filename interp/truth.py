"""What features truly detect, where it is known what every sentence states: the measure of detection scores.

Detection scores rest on a judge's explanations. On studies whose sentences were written from known facts, a feature can
be held against the facts instead. A *statement* is one thing that a context can state (a finding, its absence, a side,
a change ...), or the section that it is in. Contexts are as the index drew them: each feature's uniform sample of
activating ones, and the silent ones of the pool. All choices are made on the train split and measured on the other.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from interp.contexts import SECTION_NAMES
from interp.corpus import Corpus
from interp.index import SPLITS, SplitIndex
from maira_jax.processing.tokens import Kind

_REPORTS = (Kind.FINDINGS, Kind.PRIOR_REPORT)
_WORDLESS = (Kind.IMAGE, Kind.IMAGE_LAST)
# A description has as many parts as the offline judge's rules have, and a part must be worth as much as there.
_MOST_PARTS, _LEAST_GAIN = 3, 0.05

SCHEMA = pa.schema(
    [
        ("statement", pa.string()),
        ("prevalence", pa.float64()),  # among the held-out contexts
        ("feature", pa.int32()),  # with the best F1 on the train split
        ("label", pa.string()),  # what the judge called it
        ("f1", pa.float64()),  # of its activity as a sign of the statement, on the held-out split
        ("precision", pa.float64()),
        ("recall", pa.float64()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Statements:
    """What is true of contexts.

    Attributes:
      names: of the C statements.
      holds: bool [n_contexts, C].
      known: bool [n_contexts]; false for images, and for pieces of sentences.
    """

    names: tuple[str, ...]
    holds: np.ndarray
    known: np.ndarray


@dataclasses.dataclass(frozen=True)
class Descriptions:
    """The best description of each of F features: one of up to three statements holds.

    Attributes:
      statements: a tuple a feature, empty for features without enough contexts.
      f1: [F], of the description as a sign of activity on the held-out split, were half of the contexts activating, as
        in detection; NaN for features without enough contexts.
    """

    statements: list[tuple[str, ...]]
    f1: np.ndarray


def statements(corpus: Corpus, stated: Mapping[str, Mapping[str, frozenset[str]]]) -> Statements | None:
    """What every context states; None if that is known of none.

    Args:
      corpus: the contexts.
      stated: study id -> sentence -> what it states (see `Study.stated`).
    """
    sections = sorted({SECTION_NAMES[kind] for kind in Kind if kind not in _WORDLESS})
    concepts = sorted({name for said in stated.values() for states in said.values() for name in states})
    names = tuple(f"any {section}" for section in sections) + tuple(concepts)
    number = {name: i for i, name in enumerate(names)}
    contexts = corpus.contexts
    holds, known = np.zeros((len(contexts), len(names)), bool), np.zeros(len(contexts), bool)
    said = [stated.get(study) for study in corpus.studies["study_id"].to_pylist()]
    for i, (study, kind) in enumerate(zip(contexts.study.tolist(), map(Kind, contexts.kind.tolist()), strict=True)):
        sentences = said[study]
        if sentences is None or kind in _WORDLESS:
            continue
        states = sentences.get(corpus.text(i)) if kind in _REPORTS else frozenset[str]()
        if states is not None:
            known[i] = True
            holds[i, [number[f"any {SECTION_NAMES[kind]}"], *(number[name] for name in states)]] = True
    return Statements(names, holds, known) if known.any() else None


def describe(found: Mapping[str, SplitIndex], stated: Statements, n_least: int) -> Descriptions:
    """Describes every feature by statements, as a judge describes it by what it reads.

    Statements are added one by one, each the one that raises true positive rate minus false positive rate most on the
    train split.

    Args:
      found: of both splits.
      stated: of all contexts.
      n_least: fewest activating and silent contexts of a feature in each split.
    """
    out, f1 = [], []
    for train, held_out in zip(*(_examples(found[split], stated) for split in SPLITS), strict=True):
        chosen: list[int] = []
        score = np.nan
        if min(map(len, (*train, *held_out))) >= n_least:
            chosen = _greedy(*train)
            hit, alarm = (part[:, chosen].any(1).mean() for part in held_out)
            score = 2 * hit / (1 + hit + alarm)
        out.append(tuple(stated.names[c] for c in chosen))
        f1.append(score)
    return Descriptions(out, np.array(f1))


def _examples(found: SplitIndex, stated: Statements) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each feature what holds in its activating and in its silent contexts, bool [contexts, C] each."""
    pool = found.pool[stated.known[found.pool]]
    silent = ~found.pool_active[stated.known[found.pool]]
    in_pool = stated.holds[pool]
    for feature, sample in enumerate(found.sample_context):
        active = sample[sample >= 0]
        yield stated.holds[active[stated.known[active]]], in_pool[silent[:, feature]]


def _greedy(active: np.ndarray, silent: np.ndarray) -> list[int]:
    chosen: list[int] = []
    open_active, open_silent = np.ones(len(active), bool), np.ones(len(silent), bool)
    while len(chosen) < _MOST_PARTS:
        gain = active[open_active].sum(0) / len(active) - silent[open_silent].sum(0) / len(silent)
        best = int(gain.argmax())
        if chosen and gain[best] < _LEAST_GAIN:
            break
        chosen.append(best)
        open_active &= ~active[:, best]
        open_silent &= ~silent[:, best]
    return chosen


def table(found: Mapping[str, SplitIndex], stated: Statements, labels: Sequence[str | None], n_least: int) -> pa.Table:
    """The feature that detects each statement best, for statements that enough contexts make and do not make.

    Args:
      found, stated, n_least: as for `describe`.
      labels: what the judge called each feature.
    """
    train, held_out = (_rates(found[split], stated) for split in SPLITS)
    rows = []
    for c, name in enumerate(stated.names):
        counts = [stated.holds[part.pool[stated.known[part.pool]], c] for part in found.values()]
        if min(min(int(holds.sum()), int((~holds).sum())) for holds in counts) < n_least:
            continue
        feature = int(np.nan_to_num(train[0][c]).argmax())
        f1, precision, recall = (float(np.nan_to_num(part[c, feature])) for part in held_out)
        prevalence = float(counts[SPLITS.index("held_out")].mean())
        rows.append(
            {"statement": name, "prevalence": prevalence, "feature": feature, "label": labels[feature]}
            | {"f1": f1, "precision": precision, "recall": recall}
        )
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _rates(found: SplitIndex, stated: Statements) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """F1, precision and recall of each feature's activity as a sign of each statement, [C, F] each"""
    pool_known = stated.known[found.pool].mean()
    columns = []
    for feature, (active, silent) in enumerate(_examples(found, stated)):
        sample = found.sample_context[feature]
        # The sample and the pool stand for all contexts of the split.
        n_active = found.n_contexts[feature] * len(active) / max((sample >= 0).sum(), 1)
        n_silent = (found.total_contexts - found.n_contexts[feature]) * pool_known
        hits = active.sum(0) / max(len(active), 1) * n_active
        missed = silent.sum(0) / max(len(silent), 1) * n_silent
        columns.append(
            (2 * hits / _nonzero(n_active + hits + missed), hits / _nonzero(n_active), hits / _nonzero(hits + missed))
        )
    f1, precision, recall = (np.stack(part, axis=1) for part in zip(*columns, strict=True))
    return f1, precision, recall


def _nonzero(count: np.ndarray | float) -> np.ndarray:
    """A count to divide by: its numerator is 0 where it is."""
    return np.maximum(count, 1e-9)
