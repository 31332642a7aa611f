"""What features truly detect, where it is known what every sentence states: the measure of detection scores.

Detection scores rest on a judge's explanations. On studies whose sentences were written from known facts, a feature can
be compared with the facts instead. A *statement* is one thing that a context can state (a finding, its absence, a side,
a change ...), or the section that it is in: a *fact*; or a word that is in it. Many features stand for a word ("of"),
which no fact is like, and a judge that names the word is right. Contexts are as the index drew them: each feature's
uniform sample of activating ones, and the non-activating ones of the pool, which count by their length, as they are
drawn for detection. All choices are made on the train split and measured on the other.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from interp.exemplars.corpus import Corpus
from interp.exemplars.index import SPLITS, SplitIndex
from interp.exemplars.shown import section_words
from interp.explainers.rules import words
from maira_jax.inputs.prompt import NOT_AVAILABLE
from maira_jax.inputs.tokens import SECTION_NAMES, SECTIONS, Kind
from maira_jax.run.columns import column
from sae.activations.store import HELD_OUT

_REPORTS = (Kind.FINDINGS, Kind.PRIOR_REPORT)
# That a section is empty, which the prompt says.
_EMPTY = "not given"
# A description has as many parts as the offline judge's rules have, and a part must be worth as much as there.
_MAX_PARTS, _MIN_GAIN = 3, 0.05

# What holds in some contexts, bool [contexts, C], and how much each context counts, float64 [contexts].
_Weighted: TypeAlias = tuple[np.ndarray, np.ndarray]

SCHEMA = pa.schema(
    [
        column("statement", pa.string(), "a fact that a sentence may state, or a word in quotes"),
        column("prevalence", pa.float64(), "among the held-out contexts"),
        column("feature", pa.int32(), "with the best F1 on the train split"),
        column("name", pa.string(), "that the judge gave the feature"),
        column("f1", pa.float64(), "of its activity as a sign of the statement, on the held-out split"),
        column("precision", pa.float64(), "likewise"),
        column("recall", pa.float64(), "likewise"),
    ]
)


@dataclasses.dataclass(frozen=True)
class Statements:
    """What is true of contexts.

    Attributes:
      names: names of the C statements: facts, then words.
      n_facts: how many of them are facts.
      holds: bool [n_contexts, C].
      known: bool [n_contexts]; false for pieces of sentences.
      length: int32 [n_contexts], tokens.
    """

    names: tuple[str, ...]
    n_facts: int
    holds: np.ndarray
    known: np.ndarray
    length: np.ndarray

    def facts(self) -> "Statements":
        """The facts alone."""
        return dataclasses.replace(self, names=self.names[: self.n_facts], holds=self.holds[:, : self.n_facts])


@dataclasses.dataclass(frozen=True)
class Descriptions:
    """The best description of each of F features: one of up to three statements holds.

    Attributes:
      statements: one tuple per feature, empty for features without enough contexts.
      f1: [F], of the description as a sign of activity on the held-out split, were half of the contexts activating, as
        in detection; NaN for features without enough contexts.
    """

    statements: list[tuple[str, ...]]
    f1: np.ndarray


def statements(
    corpus: Corpus, stated: Mapping[str, Mapping[str, frozenset[str]]], min_contexts: int
) -> Statements | None:
    """What every context states; None if that is known of none.

    Args:
      corpus: the contexts.
      stated: study id -> sentence -> what it states (see `Study.stated`).
      min_contexts: contexts that a word needs to be a statement.
    """
    concepts = sorted({name for sentences in stated.values() for states in sentences.values() for name in states})
    contexts = corpus.contexts
    texts = [corpus.text(i) for i in range(len(contexts))]
    counts = Counter(word for text in texts for word in set(words(text)))
    spoken = sorted(word for word, n in counts.items() if n >= min_contexts)
    facts = (*(f"any {section_words(section)}" for section in sorted(SECTIONS)), _EMPTY, *concepts)
    names = (*facts, *(f'"{word}"' for word in spoken))
    number = {name: i for i, name in enumerate(names)}
    holds, known = np.zeros((len(contexts), len(names)), bool), np.zeros(len(contexts), bool)
    sentences_of = [stated.get(study) for study in corpus.studies["study_id"].to_pylist()]
    for i, (study, kind) in enumerate(zip(contexts.study.tolist(), map(Kind, contexts.kind.tolist()), strict=True)):
        sentences = sentences_of[study]
        if sentences is None:
            continue
        states = sentences.get(texts[i]) if kind in _REPORTS else frozenset[str]()
        if texts[i] == NOT_AVAILABLE:
            states = frozenset({_EMPTY})
        if states is not None:
            known[i] = True
            true = (f"any {section_words(SECTION_NAMES[kind])}", *states, *(f'"{word}"' for word in words(texts[i])))
            holds[i, [number[name] for name in true if name in number]] = True
    return Statements(names, len(facts), holds, known, contexts.length) if known.any() else None


def describe(found: Mapping[str, SplitIndex], stated: Statements, min_contexts: int) -> Descriptions:
    """Describes every feature by statements, as a judge describes it by what it reads.

    Statements are added one by one, each the one that raises true positive rate minus false positive rate most on the
    train split.

    Args:
      found: the activity of the features on both splits.
      stated: what is true of all contexts.
      min_contexts: minimal number of activating and non-activating contexts of a feature in each split.
    """
    out, f1 = [], []
    for train, held_out in zip(*(_examples(found[split], stated) for split in SPLITS), strict=True):
        chosen: list[int] = []
        score = np.nan
        if min(len(part) for part, _ in (*train, *held_out)) >= min_contexts:
            chosen = _greedy(*train)
            hit, alarm = (np.average(part[:, chosen].any(1), weights=weight) for part, weight in held_out)
            score = 2 * hit / (1 + hit + alarm)
        out.append(tuple(stated.names[c] for c in chosen))
        f1.append(score)
    return Descriptions(out, np.array(f1))


def feature_columns(
    found: Mapping[str, SplitIndex], stated: Statements | None, min_contexts: int, n_features: int
) -> dict[str, list[Any]]:
    """The columns that say what each feature truly detects; null where it is not known what the contexts state.

    Args:
      found, min_contexts: as for `describe`.
      stated: what every context states; None if that is known of none.
      n_features: number of features.
    """
    if stated is None:
        return dict.fromkeys(("true_description", "true_f1", "fact_f1"), [None] * n_features)
    whole, facts = (describe(found, known, min_contexts) for known in (stated, stated.facts()))
    return {
        "true_description": [list(names) or None for names in whole.statements],
        "true_f1": [f1 if np.isfinite(f1) else None for f1 in whole.f1.tolist()],
        "fact_f1": [f1 if np.isfinite(f1) else None for f1 in facts.f1.tolist()],
    }


def _examples(found: SplitIndex, stated: Statements) -> Iterator[tuple[_Weighted, _Weighted]]:
    """For each feature what holds in its activating and in its non-activating contexts."""
    pool = found.pool[stated.known[found.pool]]
    other = ~found.pool_active[stated.known[found.pool]]
    in_pool, length = stated.holds[pool], stated.length[pool].astype(np.float64)
    for feature, sample in enumerate(found.sample_context):
        active = sample[sample >= 0]
        active = active[stated.known[active]]
        rows = other[:, feature]
        yield (stated.holds[active], np.ones(len(active))), (in_pool[rows], length[rows])


def _greedy(active: _Weighted, other: _Weighted) -> list[int]:
    chosen: list[int] = []
    # For each class what holds, each context's share of the weight, and which contexts no statement holds for yet.
    parts = [(holds, weight / weight.sum(), np.ones(len(holds), bool)) for holds, weight in (active, other)]
    while len(chosen) < _MAX_PARTS:
        rates = [share[left] @ holds[left] for holds, share, left in parts]
        gain = rates[0] - rates[1]
        best = int(gain.argmax())
        if chosen and gain[best] < _MIN_GAIN:
            break
        chosen.append(best)
        for holds, _, left in parts:
            left &= ~holds[:, best]
    return chosen


def table(
    found: Mapping[str, SplitIndex], stated: Statements, names: Sequence[str | None], min_contexts: int
) -> pa.Table:
    """The feature that detects each statement best, for statements that enough contexts make and do not make.

    Args:
      found, stated, min_contexts: as for `describe`; only facts are looked for.
      names: the name that the judge gave each feature.
    """
    stated = stated.facts()
    train, held_out = (_rates(found[split], stated) for split in SPLITS)
    rows = []
    for c, statement in enumerate(stated.names):
        counts = [stated.holds[part.pool[stated.known[part.pool]], c] for part in found.values()]
        if min(min(int(holds.sum()), int((~holds).sum())) for holds in counts) < min_contexts:
            continue
        feature = int(np.nan_to_num(train[0][c]).argmax())
        f1, precision, recall = (float(np.nan_to_num(part[c, feature])) for part in held_out)
        prevalence = float(counts[SPLITS.index(HELD_OUT)].mean())
        rows.append(
            {"statement": statement, "prevalence": prevalence, "feature": feature, "name": names[feature]}
            | {"f1": f1, "precision": precision, "recall": recall}
        )
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _rates(found: SplitIndex, stated: Statements) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """F1, precision and recall of each feature's activity as a sign of each statement, [C, F] each"""
    pool_known = stated.known[found.pool].mean()
    columns = []
    for feature, ((active, _), (other, _)) in enumerate(_examples(found, stated)):
        sample = found.sample_context[feature]
        # The sample and the pool stand for all contexts of the split.
        n_active = found.n_contexts[feature] * len(active) / max((sample >= 0).sum(), 1)
        n_other = (found.total_contexts - found.n_contexts[feature]) * pool_known
        hits = active.sum(0) / max(len(active), 1) * n_active
        missed = other.sum(0) / max(len(other), 1) * n_other
        columns.append(
            (2 * hits / _nonzero(n_active + hits + missed), hits / _nonzero(n_active), hits / _nonzero(hits + missed))
        )
    f1, precision, recall = (np.stack(part, axis=1) for part in zip(*columns, strict=True))
    return f1, precision, recall


def _nonzero(count: np.ndarray | float) -> np.ndarray:
    """A count to divide by: its numerator is 0 where it is."""
    return np.maximum(count, 1e-9)
