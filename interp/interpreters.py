"""Who explains features and who scores the explanations, as the configuration says, and the scoring of all of them."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from interp.config import InterpretSection
from interp.exemplar_batches import ExemplarBatches, Records
from interp.explainers import EXPLAINERS, IMAGE_EXPLAINERS
from interp.explainers.chat_model import ChatModel
from interp.explainers.evidence import ExplainTask, explain_task, image_task
from interp.explainers.explainer import Explainer
from interp.features.summary import JudgeOrigin
from interp.scorers import IMAGE_JUDGES, JUDGES, SCORERS
from interp.scorers.detection import SHUFFLED
from interp.scorers.scorer import Scorer, ScoreTask
from maira_jax.run import files
from sae.activations.store import HELD_OUT, ActivationStore

# Explanations are scored on contexts that the explainer has not seen.
TO_SCORE = pc.field("split") == HELD_OUT


@dataclasses.dataclass(frozen=True)
class Interpreters:
    """Who explains features, and who scores the explanations.

    Attributes:
      explainer: explains.
      task_of: what it is shown of a feature, or the reason why it cannot be (see `explain_task`).
      scorers: scorer of each name in `interpret.scorers`; for images, of those that score them.
      judge_name: who answers the scorers' questions.
      versions: names of the prompts or rules of all of them.
      model: the language model that any of them asks, or None.
    """

    explainer: Explainer
    task_of: Callable[[int, Records, int, int], ExplainTask | str]
    scorers: Mapping[str, Scorer]
    judge_name: str
    versions: tuple[str, ...]
    model: ChatModel | None

    @classmethod
    def of(
        cls,
        section: InterpretSection,
        seed: int,
        open_language_model: Callable[[], ChatModel],
        activations: Path,
        of_images: bool,
    ) -> "Interpreters":
        opened: list[ChatModel] = []

        def open_once() -> ChatModel:
            opened[:] = opened or [open_language_model()]
            return opened[0]

        def read_labels() -> Mapping[str, Mapping[str, bool]]:
            studies = ActivationStore.open(activations).studies
            labels = map(json.loads, studies["labels"].to_pylist())
            return dict(zip(studies["study_id"].to_pylist(), labels, strict=True))

        explainer_name = section.explainer or section.judge
        if of_images:
            explainer = IMAGE_EXPLAINERS.get(explainer_name)(open_once, read_labels)
            judge = IMAGE_JUDGES.get(section.judge)(open_once, read_labels)
        else:
            explainer, judge = (
                EXPLAINERS.get(explainer_name)(open_once, read_labels),
                JUDGES.get(section.judge)(open_once, read_labels),
            )
        scorers = {
            name: SCORERS.get(name)(
                judge,
                min_contexts=section.min_contexts,
                n_prompt=section.n_prompt,
                n_bootstrap=section.bootstrap,
                seed=seed,
            )
            for name in section.scorers
            if SCORERS.get(name).scores_images or not of_images
        }
        versions = tuple(dict.fromkeys((*explainer.versions, *judge.versions)))
        task_of = image_task if of_images else explain_task
        return cls(explainer, task_of, scorers, judge.name, versions, opened[0] if opened else None)

    def refuse_no_answer(self, *saved: Path) -> None:
        """Stops if a language model was asked and has answered nothing: such a result would tell nothing.

        Args:
          saved: the folders in which that is recorded; they are removed, so that the next run asks again.

        Raises:
          UserError: of all requests of this process none had a usable answer.
        """
        if self.model is not None and (error := self.model.client.all_failed()):
            for folder in saved:
                files.remove(folder)
            raise error

    def origin(self) -> JudgeOrigin:
        return JudgeOrigin(self.judge_name, " ".join(self.versions), self.model.client.usage() if self.model else {})


def all_scores(
    scorers: Mapping[str, Scorer], exemplars: ExemplarBatches, explained: Records, seed: int
) -> dict[str, Records]:
    """What `score` gives, by the scorer's name, and under `SHUFFLED` that of detection with other explanations."""
    scores = {name: score(scorer, name, exemplars, explained) for name, scorer in scorers.items()}
    return scores | {SHUFFLED: score(scorers["detection"], SHUFFLED, exemplars, _shuffled(explained, seed))}


def score(scorer: Scorer, name: str, exemplars: ExemplarBatches, explained: Records) -> Records:
    """One record per feature: score and cost, or the reason why there is no score."""

    def scored(batches: Sequence[range]) -> Iterator[dict[str, Any]]:
        features = [feature for batch in batches for feature in batch]

        def tasks() -> Iterator[ScoreTask]:
            for feature, rows in exemplars.read(batches, TO_SCORE):
                if explained[feature]["text"] is not None:
                    yield ScoreTask(feature, explained[feature]["text"], rows)

        results = scorer.score(tasks())
        for feature in features:
            if explained[feature]["text"] is None:
                yield {"score": None, "reason": explained[feature]["reason"], "cost": 0.0}
            else:
                yield dataclasses.asdict(next(results))
        assert next(results, None) is None  # also lets it end what it opened

    return exemplars.saved(f"scores/{name}", f"score by {name}", scored)


def _shuffled(explained: Records, seed: int) -> Records:
    """Every explanation moved to another feature."""
    out = [dict(record) for record in explained]
    order = np.array([i for i, record in enumerate(explained) if record["text"]], int)
    order = np.random.default_rng((seed, len(explained))).permutation(order)
    for i, j in zip(order.tolist(), np.roll(order, 1).tolist(), strict=True):
        out[i]["text"] = explained[j]["text"]
    return out
