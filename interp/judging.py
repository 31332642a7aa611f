"""Asks a judge to explain features and to score its explanations, in batches that survive a kill."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from interp.config import InterpretConfig
from interp.exemplars import exemplar_table
from interp.explainers.evidence import ExplainTask, assemble
from interp.explainers.judge import Judge, Task
from interp.scorers import detection
from maira_jax.run import files
from maira_jax.run.progress import progress

Rows = list[dict[str, Any]]

# Features whose prompts are counted for the estimate of a run, and an explanation of usual length in them.
_SAMPLED = 32
_TYPICAL_EXPLANATION = "A pleural effusion that is said to be present, on either side and of any size. " * 3
_N_TOP_TOKENS = 8


@dataclasses.dataclass(frozen=True)
class Judging:
    """The phases that ask a judge, for all features of an exemplar file.

    Attributes:
      cfg: the section.
      judge: is asked.
      path: of the exemplars.
      n_features: in the file.
      phases: folder of the finished batches.
      only: the features to explain; empty: all.
    """

    cfg: InterpretConfig
    judge: Judge
    path: Path
    n_features: int
    phases: Path
    only: tuple[int, ...]

    def announce(self, n_controls: int) -> None:
        """Lets the judge say what is going to be asked, with so many controls beside the features."""

        def sample() -> Iterator[list[Task]]:
            wanted = np.array(self.only or range(self.n_features))
            for feature in wanted[np.unique(np.linspace(0, len(wanted) - 1, _SAMPLED).astype(int))].tolist():
                rows = _by_feature(self.path, feature, feature + 1)[feature]
                task = self._explain_task(feature, rows)
                texts = {feature: _TYPICAL_EXPLANATION}
                arms = self._scoring_tasks({feature: rows}, texts, texts)[feature]
                yield [task, *arms] if isinstance(task, ExplainTask) else []

        self.judge.announce(sample(), (len(self.only) or self.n_features) + n_controls)

    def explain(self) -> Rows:
        """One record a feature: label, text, cost and top tokens, or the reason why there is no explanation."""

        def tasks(begin: int, stop: int) -> Iterator[list[Task]]:
            for feature, rows in _by_feature(self.path, begin, stop).items():
                task = self._explain_task(feature, rows)
                yield [task] if isinstance(task, ExplainTask) else []

        def records(begin: int, stop: int) -> Rows:
            made: Rows = []
            asked = []
            for feature, rows in _by_feature(self.path, begin, stop).items():
                task = self._explain_task(feature, rows)
                if isinstance(task, ExplainTask):
                    asked.append(task)
                reason = task if isinstance(task, str) else None
                made.append({"feature": feature, "reason": reason, "top_tokens": top_tokens(rows)})
            answers = {task.feature: answer for task, answer in zip(asked, self.judge.explain(asked), strict=True)}
            for feature, record in enumerate(made, begin):
                answer = answers.get(feature)
                record |= dataclasses.asdict(answer) if answer else {"label": None, "text": None, "cost": 0.0}
                if answer is None and record["reason"] is None:
                    record["reason"] = "the judge gave no explanation"
            return made

        return self._in_batches("explanations", "explain", tasks, records)

    def score(self, explained: Rows, shuffle: bool = True) -> Rows:
        """One record a feature: its scores, with those of another's explanation if wished, or why there are none."""
        texts: dict[int, Any] = {record["feature"]: record["text"] for record in explained}
        others = shuffled(texts, self.cfg.seed) if shuffle else {}

        def tasks(begin: int, stop: int) -> Iterator[list[Task]]:
            yield from self._scoring_tasks(_by_feature(self.path, begin, stop), texts, others).values()

        def records(begin: int, stop: int) -> Rows:
            made: Rows = []
            sets: list[detection.ScoringSet] = []
            fuzzed: list[detection.ScoringSet] = []
            for feature, rows in _by_feature(self.path, begin, stop).items():
                record = {"feature": feature, "reason": explained[feature]["reason"], "cost": 0.0}
                made.append(record | {"score": None, "control": None, "fuzz": None})
                if texts[feature] is None:
                    continue
                unfuzzed, fuzzing = self._sets(feature, rows)
                if isinstance(unfuzzed, str):
                    made[-1]["reason"] = unfuzzed
                    continue
                sets.append(unfuzzed)
                fuzzed += [fuzzing] if fuzzing else []
            for name, shown, source in (
                ("score", sets, texts),
                ("control", sets if shuffle else [], others),
                ("fuzz", fuzzed, texts),
            ):
                explanations = [source[examples.feature] for examples in shown]
                scores = detection.run(
                    self.judge, shown, explanations, self.cfg.n_prompt, self.cfg.bootstrap, self.cfg.seed
                )
                for examples, (result, cost) in zip(shown, scores, strict=True):
                    record = made[examples.feature - begin]
                    record["cost"] += cost
                    if result.n_examples:
                        record[name] = dataclasses.asdict(result)
                    elif name == "score":
                        record["reason"] = "the judge gave no answers"
            return made

        return self._in_batches("scores", "score", tasks, records)

    def _explain_task(self, feature: int, rows: Rows) -> ExplainTask | str:
        """The task, or the reason why there is none."""
        if self.only and feature not in self.only:
            return "not asked for"
        task = assemble(feature, rows, self.cfg.n_explain)
        if not any(row["max_activation"] > 0 for row in rows):
            return "never active"
        if len(task.activating) < self.cfg.n_least:
            return f"active in fewer than {self.cfg.n_least} train contexts"
        if len(task.others) < self.cfg.n_least:
            return f"silent in fewer than {self.cfg.n_least} of the sampled train contexts"
        return task

    def _sets(self, feature: int, rows: Rows) -> tuple[detection.ScoringSet | str, detection.ScoringSet | None]:
        found = detection.detection_set(feature, rows, self.cfg.n_least, self.cfg.seed)
        return found, detection.fuzzing_set(feature, rows, self.cfg.seed)

    def _scoring_tasks(
        self, rows: dict[int, Rows], texts: dict[int, Any], others: dict[int, Any]
    ) -> dict[int, list[Task]]:
        """All tasks that score each feature; none for those without explanation or examples."""
        out: dict[int, list[Task]] = {}
        for feature, own in rows.items():
            out[feature] = []
            unfuzzed, fuzzing = self._sets(feature, own) if texts[feature] else ("", None)
            if isinstance(unfuzzed, detection.ScoringSet):
                for examples, source in ((unfuzzed, texts), (unfuzzed, others), (fuzzing, texts)):
                    text = source.get(feature)
                    out[feature] += examples.tasks(text, self.cfg.n_prompt) if examples and text else []
        return out

    def _in_batches(
        self,
        folder: str,
        what: str,
        tasks: Callable[[int, int], Iterator[list[Task]]],
        records: Callable[[int, int], Rows],
    ) -> Rows:
        """Joins the records of all batches; a batch whose file is there is read, neither asked nor made again."""
        batches = [
            (begin, min(begin + self.cfg.feature_batch, self.n_features), self.phases / folder / f"{begin:08d}.json")
            for begin in range(0, self.n_features, self.cfg.feature_batch)
        ]
        missing = [(begin, stop) for begin, stop, path in batches if not path.is_file()]
        if missing:
            n_features = sum(stop - begin for begin, stop in missing)
            self.judge.prepare(what, lambda: (group for part in missing for group in tasks(*part)), n_features)
        joined: Rows = []
        with progress(total=self.n_features, unit="features", desc=f"interpret: {what}") as bar:
            for begin, stop, path in batches:
                if not path.is_file():
                    files.write_json(path, records(begin, stop))
                joined += files.read_json(path)
                bar.update(stop - begin)
        return joined


def top_tokens(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The peak tokens of a feature's train exemplars, by the sum of their activations."""
    weight: Counter[str] = Counter()
    for row in rows:
        if row["split"] == "train" and row["peak"] is not None:
            weight[row["tokens"][row["peak"]].strip()] += row["max_activation"]
    return [token for token, _ in sorted(weight.items(), key=lambda item: (-item[1], item[0]))[:_N_TOP_TOKENS]]


def shuffled(texts: dict[int, Any], seed: int) -> dict[int, Any]:
    """Every explanation moved to another feature."""
    out = dict(texts)
    order = np.random.default_rng((seed, len(texts))).permutation([i for i, text in texts.items() if text]).tolist()
    for i, j in zip(order, np.roll(order, 1).tolist(), strict=True):
        out[i] = texts[j]
    return out


def _by_feature(path: Path, begin: int, stop: int) -> dict[int, Rows]:
    rows: dict[int, Rows] = {feature: [] for feature in range(begin, stop)}
    for row in exemplar_table.read(path, begin, stop).to_pylist():
        rows[row["feature"]].append(row)
    return rows
