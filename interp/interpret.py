"""The interpret stage: exemplars, explanations, detection scores and concepts for every feature.

Each phase leaves a file and judges answer in batches of features, so a killed run goes on where it was.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from interp import concepts, contexts, detect, exemplars, features, index, llm
from interp.explain import ExplainTask, assemble
from interp.judge import Judge, OfflineJudge, Task
from maira_jax.errors import UserError
from maira_jax.processing.tokens import Kind, Tokenizer
from maira_jax.run import files
from maira_jax.run.progress import progress
from maira_jax.run.stage import Stage
from sae.activations import HELD_OUT, Store
from sae.autoencoder import Sae
from sae.checkpoint import load_sae

Rows = list[dict[str, Any]]

JUDGES = ("offline", "llm")
# Features whose prompts are counted for the estimate of a run, and an explanation of usual length in them.
_SAMPLED = 32
_TYPICAL_EXPLANATION = "A pleural effusion that is said to be present, on either side and of any size. " * 3


@dataclasses.dataclass(frozen=True)
class InterpretConfig:
    """The `interpret` section; what the fields mean stands in configs/phantom.py."""

    judge: str
    context_length: int
    block_tokens: int
    n_top: int
    n_sample: int
    n_pool: int
    n_explain: int
    n_score: int
    n_least: int
    n_prompt: int
    n_least_studies: int
    concept_sections: tuple[str, ...]
    feature_batch: int
    seed: int

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "InterpretConfig":
        """Reads and checks the section.

        Raises:
          UserError: a field is missing, unknown or out of range.
        """
        section = config.interpret.to_dict()
        names = {field.name for field in dataclasses.fields(cls)} - {"seed"}
        if section.keys() != names:
            wrong = sorted(section.keys() ^ names)[0]
            problem = "is missing" if wrong in names else "is unknown"
            raise UserError(f"interpret.{wrong} {problem}: see configs/phantom.py for the fields of this section")
        section["concept_sections"] = tuple(section["concept_sections"])
        cfg = cls(**section, seed=config.seed)
        if cfg.judge not in JUDGES:
            raise UserError(f"interpret.judge {cfg.judge!r} does not exist: choose {' or '.join(JUDGES)}")
        for name in names - {"judge", "concept_sections"}:
            if getattr(cfg, name) < 1:
                raise UserError(f"interpret.{name} is {getattr(cfg, name)}, but must be at least 1: change it")
        if cfg.block_tokens < cfg.context_length:
            raise UserError("interpret.block_tokens must not be below interpret.context_length: change one of them")
        for name in ("n_explain", "n_score"):
            count = getattr(cfg, name)
            if count % exemplars.N_DECILES or count > min(cfg.n_sample, cfg.n_pool):
                raise UserError(
                    f"interpret.{name} is {count}, but must be a multiple of {exemplars.N_DECILES} and not above "
                    "interpret.n_sample or interpret.n_pool: change it"
                )
        if cfg.n_least > min(cfg.n_explain, cfg.n_score):
            raise UserError("interpret.n_least must not be above interpret.n_explain or interpret.n_score: change it")
        known = set(contexts.SECTION_NAMES.values())
        for name in cfg.concept_sections:
            if name not in known:
                raise UserError(f"interpret.concept_sections names {name!r}: choose from {', '.join(sorted(known))}")
        return cfg


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Interprets every feature of `workdir/sae`; see DESIGN for the files in `workdir/interp`.

    Returns:
      What the manifest counts.

    Raises:
      UserError: the config is invalid, an input stage is not finished, or there is nothing held out to score on.
    """
    cfg = InterpretConfig.from_config(config)
    judge: Judge = OfflineJudge() if cfg.judge == "offline" else llm.from_config(config, Path(workdir))
    section = {"interpret": config.interpret.to_dict(), "seed": config.seed}
    if judge.identity:
        section["judge"] = dict(judge.identity)
    stage = Stage(Path(workdir), "interp", section, inputs=("model", "activations", "sae"))
    with contextlib.closing(judge), stage:
        if not stage.finished:
            _run(cfg, judge, Path(workdir), stage.dir)
            stage.finish(_counts(files.read_json(stage.dir / "summary.json")))
            shutil.rmtree(stage.dir / "phases", ignore_errors=True)
        return stage.manifest["counts"]


def _counts(summary: dict[str, Any]) -> dict[str, Any]:
    counts = {name: summary[name] for name in ("features", "alive", "scored", "above_075", "below_05")}
    return counts | {"concepts": summary["concepts"]["tested"], "concepts_f1_08": summary["concepts"]["f1_08"]}


def _run(cfg: InterpretConfig, judge: Judge, workdir: Path, out: Path) -> None:
    sae, store = load_sae(workdir / "sae"), Store.open(workdir / "activations")
    if sae.d_model != store.d_model:
        raise UserError(
            f"{workdir / 'sae'} takes {sae.d_model} dimensions and {workdir / 'activations'} has {store.d_model}: "
            "use the autoencoder that was trained on these activations"
        )
    studies = store.studies
    held_out = np.array([split == HELD_OUT for split in studies["split"].to_pylist()], bool)
    if held_out.all() or not held_out.any():
        raise UserError(
            f"{workdir / 'activations'} holds studies of one split only, and scores need both: "
            "harvest again with more studies or another harvest.held_out_fraction"
        )
    phases = out / "phases"
    _index_phase(cfg, sae, store, Tokenizer.from_dir(workdir / "model"), held_out, phases, out)
    statistics = index.load(phases / "index.npz")
    labels = concepts.Labels.from_json(studies["labels"].to_pylist())
    found = concepts.fit(np.load(phases / "study_peak.npy", mmap_mode="r"), labels, held_out)
    concept_table, left_out = concepts.table(found, labels, held_out, cfg.n_least_studies)
    judging = _Judging(cfg, judge, out / "exemplars.parquet", sae.n_features, phases)
    judging.announce()
    explained = judging.explain()
    scored = judging.score(explained)
    features.write(out, sae, judge, statistics, explained, scored, labels, found, concept_table, left_out)


def _index_phase(
    cfg: InterpretConfig,
    sae: Sae,
    store: Store,
    tokenizer: Tokenizer,
    held_out: np.ndarray,
    phases: Path,
    out: Path,
) -> None:
    """Writes index.npz, study_peak.npy and exemplars.parquet, unless they are there."""
    if (out / "exemplars.parquet").is_file():
        return
    tokens = {name: store.tokens[name].to_numpy() for name in ("study", "position", "token_id", "kind")}
    pieces = _pieces(tokenizer, tokens["token_id"])
    cut = contexts.cut(**tokens, pieces=pieces, max_length=cfg.context_length)
    sizes = index.IndexConfig(cfg.n_top, cfg.n_sample, cfg.n_pool, cfg.block_tokens, cfg.seed)
    kinds = frozenset(kind for kind in Kind if contexts.SECTION_NAMES[kind] in cfg.concept_sections)
    with files.atomic_path(phases / "study_peak.npy") as path:
        # On disk, because it grows with the number of studies.
        peak = np.lib.format.open_memmap(path, "w+", np.float32, (len(held_out), sae.n_features))
        found = index.build(sae, store, cut, held_out, sizes, peak, kinds)
        peak.flush()
    index.save(phases / "index.npz", found)
    chosen = exemplars.choose(found, {"train": cfg.n_explain, "held_out": cfg.n_score}, cfg.seed)
    active = np.flatnonzero(chosen.kind != exemplars.RANDOM)
    values = exemplars.token_activations(sae, store, cut, chosen.feature[active], chosen.context[active])
    exemplars.write(
        out / "exemplars.parquet",
        chosen,
        values,
        cut,
        tokens["token_id"],
        tokens["position"],
        store.studies["study_id"].to_pylist(),
        pieces,
        sae.n_features,
        cfg.feature_batch,
    )


def _pieces(tokenizer: Tokenizer, token_id: np.ndarray) -> list[str]:
    """Texts of the token ids that occur; empty for the others, some of which have none."""
    used = np.unique(token_id)
    pieces = [""] * (int(used.max(initial=-1)) + 1)
    for i, piece in zip(used, tokenizer.pieces(used), strict=True):
        pieces[i] = piece
    return pieces


@dataclasses.dataclass(frozen=True)
class _Judging:
    """The phases that ask a judge, for all features of an exemplar file."""

    cfg: InterpretConfig
    judge: Judge
    path: Path
    n_features: int
    phases: Path

    def announce(self) -> None:
        """Lets the judge say what is going to be asked."""

        def sample() -> Iterator[list[Task]]:
            for feature in np.unique(np.linspace(0, self.n_features - 1, _SAMPLED).astype(int)).tolist():
                rows = _by_feature(self.path, feature, feature + 1)[feature]
                task = self._explain_task(feature, rows)
                texts = {feature: _TYPICAL_EXPLANATION}
                arms = self._scoring_tasks({feature: rows}, texts, texts)[feature]
                yield [task, *arms] if isinstance(task, ExplainTask) else []

        self.judge.announce(sample(), self.n_features)

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
                made.append({"feature": feature, "reason": reason, "top_tokens": features.top_tokens(rows)})
            answers = {task.feature: answer for task, answer in zip(asked, self.judge.explain(asked), strict=True)}
            for feature, record in enumerate(made, begin):
                answer = answers.get(feature)
                record |= dataclasses.asdict(answer) if answer else {"label": None, "text": None, "cost": 0.0}
                if answer is None and record["reason"] is None:
                    record["reason"] = "the judge gave no explanation"
            return made

        return self._in_batches("explanations", "explain", tasks, records)

    def score(self, explained: Rows) -> Rows:
        """One record a feature: its scores, with those of another's explanation (control), or why there are none."""
        texts: dict[int, Any] = {record["feature"]: record["text"] for record in explained}
        shuffled = _shuffled(texts, self.cfg.seed)

        def tasks(begin: int, stop: int) -> Iterator[list[Task]]:
            yield from self._scoring_tasks(_by_feature(self.path, begin, stop), texts, shuffled).values()

        def records(begin: int, stop: int) -> Rows:
            made: Rows = []
            sets: list[detect.ScoringSet] = []
            fuzzed: list[detect.ScoringSet] = []
            for feature, rows in _by_feature(self.path, begin, stop).items():
                record = {"feature": feature, "reason": explained[feature]["reason"], "cost": 0.0}
                made.append(record | {"score": None, "control": None, "fuzz": None})
                if texts[feature] is None:
                    continue
                detection, fuzzing = self._sets(feature, rows)
                if isinstance(detection, str):
                    made[-1]["reason"] = detection
                    continue
                sets.append(detection)
                fuzzed += [fuzzing] if fuzzing else []
            for name, shown, source in (
                ("score", sets, texts),
                ("control", sets, shuffled),
                ("fuzz", fuzzed, texts),
            ):
                explanations = [source[examples.feature] for examples in shown]
                scores = detect.run(self.judge, shown, explanations, self.cfg.n_prompt)
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
        task = assemble(feature, rows)
        if not any(row["max_activation"] > 0 for row in rows):
            return "never active"
        if len(task.activating) < self.cfg.n_least:
            return f"active in fewer than {self.cfg.n_least} train contexts"
        if len(task.others) < self.cfg.n_least:
            return f"silent in fewer than {self.cfg.n_least} of the sampled train contexts"
        return task

    def _sets(self, feature: int, rows: Rows) -> tuple[detect.ScoringSet | str, detect.ScoringSet | None]:
        detection = detect.detection_set(feature, rows, self.cfg.n_least, self.cfg.seed)
        return detection, detect.fuzzing_set(feature, rows, self.cfg.seed)

    def _scoring_tasks(
        self, rows: dict[int, Rows], texts: dict[int, Any], shuffled: dict[int, Any]
    ) -> dict[int, list[Task]]:
        """All tasks that score each feature; none for those without explanation or examples."""
        out: dict[int, list[Task]] = {}
        for feature, own in rows.items():
            out[feature] = []
            detection, fuzzing = self._sets(feature, own) if texts[feature] else ("", None)
            if isinstance(detection, detect.ScoringSet):
                for examples, source in ((detection, texts), (detection, shuffled), (fuzzing, texts)):
                    out[feature] += examples.tasks(source[feature], self.cfg.n_prompt) if examples else []
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


def _shuffled(texts: dict[int, Any], seed: int) -> dict[int, Any]:
    """Every explanation moved to another feature."""
    out = dict(texts)
    order = np.random.default_rng((seed, len(texts))).permutation([i for i, text in texts.items() if text]).tolist()
    for i, j in zip(order, np.roll(order, 1).tolist(), strict=True):
        out[i] = texts[j]
    return out


def _by_feature(path: Path, begin: int, stop: int) -> dict[int, Rows]:
    rows: dict[int, Rows] = {feature: [] for feature in range(begin, stop)}
    for row in exemplars.read(path, begin, stop).to_pylist():
        rows[row["feature"]].append(row)
    return rows
