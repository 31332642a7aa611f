"""What adding features does, measured by the program of a sweep on some studies' own prompts with their images."""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from maira_jax.inputs.batches import fill_up, reporting_request
from maira_jax.inputs.tokens import Kind
from maira_jax.model import language, maira2, sharding
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params
from maira_jax.studies.study import Study
from steer.config import SteerSection
from steer.methods.direction import Direction, make_directions
from steer.methods.method import MethodInputs
from steer.outcome import outcome, reward
from steer.program import decode
from steer.program.decode import PromptPrefixes, SteeredRows, SweepShape
from steer.program.prompts import Prompts
from steer.program.sweep_writer import GenerationRow, SweepWriter
from steer.selection.rule import AmplifiedTokens, EditedModel
from steer.selection.target import Target

_N_LENS_TOKENS = 20  # of the logit lens that a feature stands for
_N_CONFIDENT = 20  # most likely tokens whose log-probabilities are the confidence
_METHOD = "add"


@dataclasses.dataclass(frozen=True)
class ProgramEffects:
    """`SteeringEffects` of the method `add`, measured by the program that writes a sweep.

    Attributes:
      model: the model, and where it is edited.
      model_dir: its folder.
      section: the section of the configuration.
      inputs: what the method needs.
      studies: the studies that effects are measured on.
      seed: the seed of the draws.
    """

    model: EditedModel
    model_dir: Path
    section: SteerSection
    inputs: MethodInputs
    studies: Sequence[Study]
    seed: int

    @functools.cached_property
    def _prompts(self) -> Prompts:
        return Prompts.of(self.studies, self.model_dir)

    @functools.cached_property
    def _params(self) -> Params:
        return maira2.unstacked(self.model.params)

    def _writer(self, rows: Sequence[GenerationRow]) -> SweepWriter:
        return SweepWriter.of(self._params, self.model.cfg, self._prompts, self.section, self.seed, rows)

    def _rows(self, targets: Sequence[Target], strengths: Sequence[float]) -> list[GenerationRow]:
        """The row of the unsteered report, and then of each target at each strength."""
        directions = [make_directions([target], (_METHOD,), self.inputs)[0] for target in targets]
        none = GenerationRow(Direction.none(self.inputs.sae.d_model), 0.0, self.model.site)
        return [none, *(GenerationRow(each, s, self.model.site) for each in directions for s in strengths)]

    def amplified(self, targets: Sequence[Target]) -> AmplifiedTokens:
        """What the model expects where each feature is added at the sweep's largest strength, at every token of the
        study's report, or at the first one where no study has one.

        Features go in blocks of `steer.batch_rows` through one compiled program; prompts are read up to the site once.
        Several rules ask for the same features, which are measured once.
        """
        features = tuple(target.feature for target in targets)
        if features not in self._known:
            self._known[features] = self._measured(targets)
        return self._known[features]

    @functools.cached_property
    def _known(self) -> dict[tuple[int, ...], AmplifiedTokens]:
        return {}

    def _measured(self, targets: Sequence[Target]) -> AmplifiedTokens:
        rows = self._rows(targets, (max(map(abs, self.section.nonzero_strengths)),))
        lens = self._lens_tokens([target.feature for target in targets])  # [n, k]
        lens = np.concatenate([lens[:1], lens])  # those of the unsteered row are not looked at
        parts = [self._amplified(studies, rows, lens) for studies in self._batches]
        rank, probability, confidence = (np.concatenate(each)[:, : len(rows)] for each in zip(*parts, strict=True))
        counted = self._reports[1]
        return AmplifiedTokens(rank[:, 1:], probability[:, 1:], confidence[:, 1:], confidence[:, 0], counted)

    @property
    def _batches(self) -> list[range]:
        size = self.section.batch_studies
        return [range(len(self.studies))[start : start + size] for start in range(0, len(self.studies), size)]

    def _amplified(self, studies: range, rows: Sequence[GenerationRow], lens: np.ndarray) -> tuple[np.ndarray, ...]:
        """Rank, probability and confidence of `AmplifiedTokens` for rows, filled up to whole blocks."""
        size, found = self.section.batch_rows, []
        writer = self._writer(fill_up(rows[:size], size))
        tokens = jnp.asarray(np.stack(fill_up([self._reports[0][study] for study in studies], writer.n_studies)))
        with jax.set_mesh(writer.mesh):
            prompts = writer.prefill(studies, writer.shape)
            for start in range(0, len(rows), size):
                block = writer.of_rows(fill_up(rows[start : start + size], size))
                own = jnp.asarray(np.stack(fill_up(list(lens[start : start + size]), size)))
                given = (prompts, block.steered_rows(studies), tokens, own)
                found.append(_amplified_tokens(block.params, block.cfg, block.shape, *given))
        return tuple(np.concatenate(each, axis=1)[: len(studies)] for each in zip(*found, strict=True))

    @functools.cached_property
    def _reports(self) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of the studies' reports, int32 [studies, t], and which of them are there."""
        found = []
        for study in self.studies:
            encoded = reporting_request(study, self.model.tokenizer, findings=study.findings or None).encoded
            ids = encoded.ids[np.asarray(encoded.kinds) == Kind.FINDINGS]
            found.append(ids[: self.section.max_new_tokens] if len(ids) else np.zeros(1, np.int32))
        length = max(map(len, found))
        tokens, counted = np.zeros((len(found), length), np.int32), np.zeros((len(found), length), bool)
        for row, ids in enumerate(found):
            tokens[row, : len(ids)], counted[row, : len(ids)] = ids, True
        return tokens, counted

    def _lens_tokens(self, features: Sequence[int]) -> np.ndarray:
        """The tokens that the logit lens reads most strongly in features' decoder rows, int32 [n, k]; 0 of a tower that
        it cannot read."""
        if self.model.site.tower != "language":
            return np.zeros((len(features), _N_LENS_TOKENS), np.int32)
        with jax.set_mesh(sharding.mesh_of(self._params)):
            rows = jnp.asarray(self.inputs.sae.params["W_dec"])[np.array(features)]
            logits = language.logits(self._params["language"], self.model.cfg.text, rows)  # [n, vocab]
            return np.asarray(jax.lax.top_k(logits, _N_LENS_TOKENS)[1])

    def rewards(self, targets: Sequence[Target]) -> np.ndarray:
        """Of each target the mean `reward` over studies at the best strength, mean over the effects that are intended
        by the sweep's strengths: adding its concept and removing it. float64 [n]"""
        rows = self._rows(targets, self.section.nonzero_strengths)
        writer = self._writer(rows)
        found: dict[tuple[int, str], dict[float, list[int]]] = defaultdict(lambda: defaultdict(list))
        numbers = {id(target): number for number, target in enumerate(targets)}
        for studies in self._batches:
            for unsteered, *reports in writer.write(studies):
                for row, report in zip(rows[1:], reports, strict=True):
                    target = row.direction.target
                    assert target is not None
                    did = outcome(
                        unsteered.text,
                        report.text,
                        target.concept,
                        row.strength,
                        finished=report.finished,
                        finite=report.finite,
                    )
                    if did["eligible"]:
                        found[numbers[id(target)], did["intended"]][row.strength].append(reward(did))
        return _best_means(found, len(targets))


def _best_means(found: Mapping[tuple[int, str], Mapping[float, Sequence[int]]], n: int) -> np.ndarray:
    """From rewards by number and intended effect, and strength, the mean at the best strength, [n]."""
    by_number: dict[int, list[float]] = defaultdict(list)
    for (number, _), by_strength in found.items():
        by_number[number].append(max(sum(each) / len(each) for each in by_strength.values()))
    return np.array([np.mean(by_number[number]) if number in by_number else np.nan for number in range(n)])


@functools.partial(jax.jit, static_argnames=("cfg", "shape"))
def _amplified_tokens(
    params: Params,
    cfg: Maira2Config,
    shape: SweepShape,
    prompts: PromptPrefixes,
    rows: SteeredRows,
    tokens: jax.Array,
    lens: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rank, probability and confidence of `AmplifiedTokens`, [studies, n, t] each; lens: int32 [n, k]."""
    x = decode.continued(params, cfg, shape, prompts, rows, tokens)  # [studies, n, t, d_model]

    def one(row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        x, own = row  # [studies, t, d_model], [k]
        logs = jax.nn.log_softmax(language.logits(params["language"], cfg.text, x).astype(jnp.float32))
        best = logs[..., own].max(axis=-1)  # [studies, t]
        rank = (logs > best[..., None]).sum(axis=-1, dtype=jnp.int32)
        confidence = -jax.lax.top_k(logs, _N_CONFIDENT)[0].mean(axis=-1)
        return rank, jnp.exp(best), confidence

    return tuple(each.swapaxes(0, 1) for each in jax.lax.map(one, (x.swapaxes(0, 1), lens)))
