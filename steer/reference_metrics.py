"""Published metrics of reports against reference reports, by other programs that a user installs for them.

* `radeval` (RadEval, MIT licence): CheXbert F1, RadGraph F1, RadCliQ and GREEN. It loads its models from the Hugging
  Face hub when they are first used; GREEN's has 7 billion parameters.
* `radmatch` (arXiv 2609.01470, Apache-2.0): findings are extracted, matched and graded by the language model of the
  section `judge`; its measure is the number of actionable errors in a report.

Whether steering makes them better or worse is tested by paired randomisation: in every resample the two reports on a
study are swapped at random, for all reports that one study has together.
"""

import contextlib
import hashlib
import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import scipy

from interp.llm import egress
from interp.llm.section import JudgeSection
from maira_jax.errors import UserError
from maira_jax.run import files

METRICS = ("f1chexbert", "radgraph", "radcliq", "green", "radmatch")
Scores: TypeAlias = Callable[[Sequence[str], Sequence[str]], Mapping[str, Sequence[float | None]]]
"""From n reference reports and n reports to scores of each, by name; None where a report has none."""

_CHEXBERT, _RADMATCH = "f1chexbert", "radmatch"
_N_SWAPS = 9999


class SteeredPair(NamedTuple):
    """A report before and after steering, with the reference report of its study."""

    study_id: str
    reference: str
    original: str
    steered: str


class ChexBert:
    """CheXbert's labels by radeval: of each report the share that agrees, and F1 over all. A text is labelled once.

    Raises:
      UserError: radeval is not installed.
    """

    def __init__(self) -> None:
        radeval = _imported("radeval", "metrics")
        self._evaluator = radeval.RadEval(metrics=[_CHEXBERT], per_sample=True, show_progress=False)
        _label_once(self._evaluator.f1chexbert_scorer)

    def scores(self, references: Sequence[str], reports: Sequence[str]) -> Mapping[str, Sequence[float | None]]:
        """The shares of observations in which each report agrees with its reference."""
        found = self._measured(references, reports, per_sample=True)
        return {name: list(values) for name, values in found.items()}

    def f1(self, references: Sequence[str], reports: Sequence[str]) -> dict[str, float]:
        """The F1 of the labels over all reports, as radeval names and averages it."""
        return {name: float(f1) for name, f1 in self._measured(references, reports, per_sample=False).items()}

    def _measured(self, references: Sequence[str], reports: Sequence[str], per_sample: bool) -> Mapping[str, Any]:
        self._evaluator.per_sample = per_sample
        return self._evaluator(refs=list(references), hyps=list(reports))


def _label_once(scorer: Any) -> None:
    """Has radeval's CheXbert remember its labels: every measure asks for those of the same texts again."""
    label = scorer.get_labels
    known: dict[str, Any] = {}

    def get_labels(reports: Sequence[str], **options: Any) -> list[Any]:
        new = list(dict.fromkeys(report for report in reports if report not in known))
        if new:
            known.update(zip(new, label(new, **options), strict=True))
        return [known[report] for report in reports]

    scorer.get_labels = get_labels


def radeval_scores(names: Sequence[str]) -> Scores:
    """The scores of each report by metrics of radeval, CheXbert left out.

    Raises:
      UserError: radeval is not installed.
    """
    radeval = _imported("radeval", "metrics")

    def scores(references: Sequence[str], reports: Sequence[str]) -> Mapping[str, Sequence[float | None]]:
        evaluator = radeval.RadEval(metrics=list(names), per_sample=True, show_progress=False)
        found = evaluator(refs=list(references), hyps=list(reports))
        return {name: list(values) for name, values in found.items() if len(values) == len(reports)}

    return scores


def published(
    names: Sequence[str],
    pairs: Mapping[str, Sequence[SteeredPair]],
    judge: Callable[[], JudgeSection],
    folder: Path,
    seed: int,
) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """What `measured` gives for some of `METRICS`; of CheXbert as well its F1 over all reports, without `p`.

    Args:
      names: names in `METRICS`.
      pairs: by method the reports.
      judge: gives the section of the server that RadMatch asks.
      folder: where RadMatch leaves its records.
      seed: the seed of the swaps.

    Raises:
      UserError: a program is not installed, or RadMatch's server is not allowed.
    """
    of_radeval = [name for name in names if name not in (_CHEXBERT, _RADMATCH)]
    found: dict[str, dict[str, dict[str, float | int | None]]] = {method: {} for method in pairs}
    chexbert = ChexBert() if _CHEXBERT in names else None
    ways: list[Scores] = [chexbert.scores] if chexbert else []
    ways += [radeval_scores(of_radeval)] if of_radeval else []
    ways += [radmatch_scores(judge(), folder)] if _RADMATCH in names else []
    for scores in ways:
        for method, own in measured(pairs, scores, seed).items():
            found[method] |= own
    if chexbert:
        for method, pairs_of_method in pairs.items():
            references = [pair.reference for pair in pairs_of_method]
            before, after = (
                chexbert.f1(references, texts)
                for texts in ([p.original for p in pairs_of_method], [p.steered for p in pairs_of_method])
            )
            n = len(references)
            found[method] |= {k: {"before": before[k], "after": after[k], "p": None, "n": n} for k in before}
    return found


def radmatch_scores(judge: JudgeSection, folder: Path) -> Scores:
    """The actionable errors of each report by RadMatch; what it writes stays in `folder`, and is not asked for again.

    Args:
      judge: the server that extracts and judges.
      folder: for the reports and RadMatch's records of them.

    Raises:
      UserError: radmatch is not installed, or the server is another machine that is not allowed.
    """
    # Not at the top: it imports openai, which takes long.
    from interp.llm.connection import api_key

    runner = _imported("radmatch.pipeline_runner", _RADMATCH)
    endpoint = egress.check(judge.base_url, judge.allow_remote)

    def scores(references: Sequence[str], reports: Sequence[str]) -> Mapping[str, Sequence[float | None]]:
        names = [
            hashlib.sha256(f"{a}\0{b}".encode()).hexdigest()[:32] for a, b in zip(references, reports, strict=True)
        ]
        for part, texts in (("reference", references), ("reports", reports)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            for name, text in zip(names, texts, strict=True):
                (folder / part / f"{name}.txt").write_text(text, encoding="utf-8")
        with _environment(
            RADMATCH_LOCAL_BASE_URL=endpoint.base_url,
            RADMATCH_LOCAL_API_KEY=api_key(),
            NO_PROXY=endpoint.host,
        ):
            runner.run_all(
                reports_pred_dir=folder / "reports",
                output_dir=folder,
                llm_extractor=f"local:{judge.model}",
                llm_judge=f"local:{judge.model}",
                reports_gt_dir=folder / "reference",
                fewshot="chest-xr",
                workers=judge.concurrency,
            )
        found = (folder / "radmatch_results" / "per_report_metrics" / f"{name}.json" for name in names)
        errors = [files.read_object(path)["actionable_errors_total"] if path.is_file() else None for path in found]
        return {"radmatch_actionable_errors": errors}

    return scores


def measured(
    pairs: Mapping[str, Sequence[SteeredPair]], scores: Scores, seed: int
) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """What steering did to reports by published metrics.

    Args:
      pairs: by method the reports.
      scores: of each report; equal reports on a study are asked for once.
      seed: the seed of the swaps.

    Returns:
      By method and metric the mean `before` and `after`, the two-sided `p` of their difference, and `n`, the number of
      pairs in which both have a score. `p` is None of fewer than two studies.
    """
    every = [pair for own in pairs.values() for pair in own]
    wanted = list(dict.fromkeys((pair.reference, text) for pair in every for text in (pair.original, pair.steered)))
    by_metric = scores([reference for reference, _ in wanted], [report for _, report in wanted])
    known = {name: dict(zip(wanted, values, strict=True)) for name, values in by_metric.items()}
    return {
        method: {name: _compared(own, values, seed) for name, values in known.items()} for method, own in pairs.items()
    }


def _compared(
    pairs: Iterable[SteeredPair], values: Mapping[tuple[str, str], float | None], seed: int
) -> dict[str, float | int | None]:
    both: list[tuple[str, float, float]] = []
    for pair in pairs:
        before, after = (values[pair.reference, text] for text in (pair.original, pair.steered))
        if before is not None and after is not None:
            both.append((pair.study_id, before, after))
    if not both:
        return {"before": None, "after": None, "p": None, "n": 0}
    studies = np.unique([study for study, *_ in both], return_inverse=True)[1]
    found = np.array([scores for _, *scores in both])  # [pairs, 2]
    sums = np.stack([np.bincount(studies, weights=column) for column in found.T])  # [2, studies]
    p = None
    if sums.shape[1] > 1:
        test = scipy.stats.permutation_test(
            tuple(sums),
            lambda before, after, axis: (after - before).sum(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=_N_SWAPS,
            rng=np.random.default_rng([seed, 4]),
        )
        p = float(test.pvalue)
    before, after = found.mean(0).tolist()
    return {"before": before, "after": after, "p": p, "n": len(both)}


def _imported(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"evaluate.metrics needs a program that is not installed ({error}): pip install 'maira-jax[{extra}]'"
        ) from error


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Sets environment variables for as long as the context lasts."""
    before: dict[str, Any] = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
