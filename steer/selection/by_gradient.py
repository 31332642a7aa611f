"""Features by their effect, to first order, on how likely the model finds it to state a concept: gradient x activation.

For a concept the objective is the log-probability of a sentence that states it, minus that of one that denies it, each
as the beginning of the report on a study's own prompt and image. One backward pass for each sentence and batch gives
its gradient along a vector that is added to all edited tokens at the site, and with it the first-order effect of every
feature at once: its decoder row times its largest activation. Sources: attribution patching (Syed et al.,
arXiv 2310.10348), and on choosing features to steer by their effect Arad et al. (arXiv 2505.20063).
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from maira_jax.inputs.batches import InputBatch, assemble, fill_up, padded_length, reporting_request
from maira_jax.inputs.tokens import Kind
from maira_jax.model import maira2, sharding
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params
from maira_jax.model.maira2 import Edits
from maira_jax.reports.changes import TargetFindings
from maira_jax.reports.statements import ConceptSentences, concept_sentences
from maira_jax.studies.study import Study
from steer.selection.rule import SELECTIONS, EditedModel, SelectionInputs, SelectionRule, refuse_outside_language

_READ_REPORTS = 1000  # of the training studies, whose sentences on a concept are counted


def gradient_scores(
    model: EditedModel,
    studies: Sequence[Study],
    statements: Mapping[str, ConceptSentences],
    w_dec: np.ndarray,
    max_activation: np.ndarray,
) -> dict[str, np.ndarray]:
    """The first-order effect of adding each feature, at its largest activation, to all edited tokens.

    A feature that makes other findings as likely steers off target: of its effect on a concept, its largest positive
    effect on the concepts about other findings is subtracted.

    Args:
      model: the model.
      studies: whose prompts and images are read, all in one batch.
      statements: the sentences of each concept.
      w_dec: the decoder, float32 [F, d_model].
      max_activation: float32 [F].

    Returns:
      By concept nats, mean over studies and sentences, float64 [F].

    Raises:
      UserError: a study has no prompt, or an image cannot be read.
    """
    texts = dict.fromkeys(text for each in statements.values() for text in (*each.stating, *each.denying))
    requests = {text: [reporting_request(study, model.tokenizer, findings=text) for study in studies] for text in texts}
    length = padded_length(max(len(request.encoded) for rows in requests.values() for request in rows))
    gradients = {
        text: _gradient(model, assemble(rows, model.tokenizer, model.image_cfg, length))
        for text, rows in requests.items()
    }
    effects = {}
    for concept, each in statements.items():
        stating, denying = (np.mean([gradients[text] for text in texts], axis=0) for texts in each)  # [d_model]
        effects[concept] = (w_dec.astype(np.float64) @ (stating - denying)) * max_activation  # [F]
    names = {concept: TargetFindings.of(concept).name for concept in statements}
    return {
        concept: effect
        - np.max([effects[name] for name in statements if names[name] != names[concept]], axis=0, initial=0.0)
        for concept, effect in effects.items()
    }


@SELECTIONS.register("gradient")
class GradientRule(SelectionRule):
    """Gradient times activation of the sentences that training reports state the concept with; see the module."""

    proposes = True

    def scores(self, candidates: Mapping[str, Sequence[int]], inputs: SelectionInputs) -> Mapping[str, np.ndarray]:
        refuse_outside_language(inputs, "gradient")
        studies = inputs.training()
        reports = [study.findings for study in studies if study.findings][:_READ_REPORTS]
        statements = {concept: concept_sentences(reports, concept) for concept in candidates}
        rows = sharding.rows_on(sharding.mesh_of(inputs.model.params), min(inputs.n_studies, len(studies)))
        read = fill_up(studies[:rows], rows)
        return gradient_scores(inputs.model, read, statements, inputs.w_dec, inputs.catalogue.max_activations)


def _gradient(model: EditedModel, batch: InputBatch) -> np.ndarray:
    """The gradient of the log-probability of the findings along a vector that is added, mean over rows, [d_model]."""
    on = sharding.mesh_of(model.params)
    edited = model.edited(batch.kinds) & batch.mask
    with jax.set_mesh(on):
        placed = sharding.place_rows(on, (batch.tokens, batch.mask, batch.pixels, edited, batch.kinds == Kind.FINDINGS))
        found = _gradient_of_rows(model.params, model.cfg, model.site.code, *placed)  # [B, d_model]
    return np.asarray(found, np.float64).mean(0)


@functools.partial(jax.jit, static_argnames=("cfg",))
def _gradient_of_rows(
    params: Params,
    cfg: Maira2Config,
    site: jax.Array,
    tokens: jax.Array,
    mask: jax.Array,
    pixels: jax.Array | None,
    edited: jax.Array,
    scored: jax.Array,
) -> jax.Array:
    rows = len(tokens)

    def log_probability(added: jax.Array) -> jax.Array:
        edits = Edits(jnp.full(rows, site, jnp.int32), added, jnp.ones(rows), edited)
        logits = maira2.forward(params, cfg, tokens, mask, pixels, edits=edits).logits
        assert logits is not None
        logs = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))  # [B, T - 1, vocab]
        each = jnp.take_along_axis(logs, tokens[:, 1:, None], axis=-1)[..., 0]  # [B, T - 1]
        return jnp.where(scored[:, 1:], each, 0).sum()

    return jax.grad(log_probability)(jnp.zeros((rows, cfg.text.hidden_size), jnp.float32))
