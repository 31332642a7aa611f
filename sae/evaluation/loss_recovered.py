"""Loss recovered: how well the model predicts with the autoencoder's reconstruction in place of its activation.

The tokens of a study's findings are predicted by the model as it is, with the activation at the site replaced by its
reconstruction, by zero, and by its mean, each on the tokens that the autoencoder is for (`token_filter`). With the
cross-entropies CE over all findings tokens of all studies,

    recovered_zero = (CE_zero - CE_spliced) / (CE_zero - CE)
    recovered_mean = (CE_mean - CE_spliced) / (CE_mean - CE)

so 1 is a reconstruction that the model cannot distinguish from the activation, and 0 one as bad as the ablation. The
mean is taken over the replaced tokens of the measured studies.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from maira_jax.checkpoint import store as model_store
from maira_jax.errors import UserError
from maira_jax.inputs.batches import assemble, fill_up, plan_batches, reporting_request
from maira_jax.inputs.image import ImageConfig
from maira_jax.inputs.tokens import Kind, Tokenizer, token_filter_mask
from maira_jax.model import language, maira2, sharding
from maira_jax.model.config import Maira2Config
from maira_jax.model.int8 import Weights
from maira_jax.model.layers import Params
from maira_jax.model.sites import Site
from maira_jax.run import storage
from maira_jax.run.progress import progress
from maira_jax.studies.readers import load_studies
from maira_jax.studies.study import Study
from sae import autoencoder
from sae.activations.store import HELD_OUT
from sae.autoencoder import Sae

# A function from an autoencoder to the measurements of `recovered`.
Loss = Callable[[Sae], dict[str, Any]]
# Rows of logits that are computed at a time: a whole sequence's would be the largest array by far.
_TAIL_STEP = 32


@struct.dataclass
class _Splice:
    """What replaces the activation: `share` times its reconstruction, plus `constant`; nothing where not `active`.

    Attributes:
      params: the autoencoder's parameters.
      threshold: the autoencoder's threshold, float32 [].
      share: float32 [].
      constant: float32 [d_model].
      active: bool [].
    """

    params: autoencoder.Params
    threshold: jax.Array
    share: jax.Array
    constant: jax.Array
    active: jax.Array


class _ScoredBatch(NamedTuple):
    """Studies with their findings, padded on the right.

    Attributes:
      tokens: int32 [B, T].
      mask: bool [B, T], False on padding.
      pixels: [B, images, size, size, 3] or None.
      replaced: bool [B, T], where the activation is replaced.
      scored: bool [B, T], the tokens whose prediction counts.
      tail: number of last tokens of each row that hold all its scored ones.
    """

    tokens: np.ndarray
    mask: np.ndarray
    pixels: np.ndarray | None
    replaced: np.ndarray
    scored: np.ndarray
    tail: int


@functools.partial(jax.jit, static_argnames=("cfg", "site", "tail", "top_k"))
def _run(
    params: Params,
    cfg: Maira2Config,
    site: Site,
    tokens: jax.Array,
    mask: jax.Array,
    pixels: jax.Array | None,
    replaced: jax.Array,
    scored: jax.Array,
    tail: int,
    splice: _Splice,
    top_k: int | None,
) -> tuple[jax.Array, jax.Array]:
    """One pass of the model; see `_ScoredBatch` for the arguments.

    Returns:
      The summed cross-entropy of the scored tokens, float32 [], and the sum over the replaced tokens of what the
      activation is after its replacement, float32 [d_model].
    """

    def replacement(x: jax.Array) -> jax.Array:
        f = autoencoder.encode(splice.params, x.astype(jnp.float32), splice.threshold, top_k)
        new = splice.share * autoencoder.decode(splice.params, f) + splice.constant
        return jnp.where(replaced[..., None], new.astype(x.dtype), x)

    def hook(x: jax.Array, code: jax.Array) -> jax.Array:
        # Only the branch that is taken runs: the autoencoder once in a pass, not once in a layer.
        return jax.lax.cond(splice.active & (code == site.code), replacement, lambda x: x, x)

    last = Site.last(cfg)
    out = maira2.forward(params, cfg, tokens, mask, pixels, read=(site, last), edits=hook, logits=False)
    at = maira2.last_positions(mask, tail)  # [B, tail]
    x = maira2.at_positions(out.sites[last.name], jnp.maximum(at - 1, 0))  # [B, tail, d_model]
    logits = language.logits(params["language"], cfg.text, x).astype(jnp.float32)  # [B, tail, vocab]
    predicted = maira2.at_positions(tokens[..., None], at)  # [B, tail, 1]
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), predicted, axis=-1)[..., 0]  # [B, tail]
    total = jnp.where(replaced[..., None], out.sites[site.name].astype(jnp.float32), 0).sum((0, 1))
    return jnp.where(jnp.take_along_axis(scored, at, axis=1), losses, 0.0).sum(), total


def _batches(
    studies: Sequence[Study], tokenizer: Tokenizer, images: ImageConfig, token_filter: str, batch_size: int
) -> Iterator[_ScoredBatch]:
    """The studies in a deterministic order; a row that only fills a batch up has no token that counts."""
    requests = [reporting_request(study, tokenizer, findings=study.findings) for study in studies]
    for plan in plan_batches(requests, batch_size):
        padded = [requests[row] for row in fill_up(plan.rows, batch_size)]
        batch = assemble(padded, tokenizer, images, plan.length, plan.n_images)
        there = np.arange(batch_size)[:, None] < len(plan.rows)
        replaced = there & batch.mask & token_filter_mask(batch.kinds, token_filter)
        scored = there & (batch.kinds == Kind.FINDINGS)
        first = np.where(scored.any(1), np.argmax(scored, axis=1), batch.mask.sum(1))  # [B]
        length_scored = int((batch.mask.sum(1) - first).max())
        tail = min(-(-length_scored // _TAIL_STEP) * _TAIL_STEP, scored.shape[1] - 1)
        yield _ScoredBatch(batch.tokens, batch.mask, batch.pixels, replaced, scored, tail)


def recovered(
    sae: Sae, params: Params, cfg: Maira2Config, site: Site, batches: Callable[[], Iterable[_ScoredBatch]]
) -> dict[str, Any]:
    """Measures the four cross-entropies, in nats per token.

    Args:
      sae: an autoencoder of raw activations at `site`.
      params: the model's parameters.
      cfg: the model's configuration.
      site: a site of the language model.
      batches: starts a pass over the studies; called twice.

    Returns:
      `tokens`, `replaced` (tokens), `ce`, `ce_spliced`, `ce_zero`, `ce_mean`, `recovered_zero` and `recovered_mean`;
      a share is None where its ablation does not change the loss.

    Raises:
      UserError: the autoencoder is for another width, or there is no token to replace or none to predict.
    """
    width = cfg.text.hidden_size
    if sae.d_model != width:
        raise UserError(f"the autoencoder is for activations of width {sae.d_model}, but the model's have {width}")
    threshold, top_k, on = jnp.asarray(sae.threshold, jnp.float32), sae.top_k, sharding.mesh_of(params)
    weights = jax.device_put(sae.params, NamedSharding(on, PartitionSpec()))

    def run(batch: _ScoredBatch, share: float, constant: np.ndarray, active: bool = True) -> tuple[float, np.ndarray]:
        splice = _Splice(
            weights, threshold, jnp.float32(share), jnp.asarray(constant, jnp.float32), jnp.asarray(active)
        )
        with jax.set_mesh(on):
            loss, total = _run(params, cfg, site, *sharding.place_rows(on, batch[:-1]), batch.tail, splice, top_k)
        return float(loss), np.asarray(total, np.float64)

    totals = dict.fromkeys(("ce", "ce_spliced", "ce_zero", "ce_mean"), 0.0)
    tokens = replaced = 0
    zero, total = np.zeros(width), np.zeros(width)
    for batch in batches():
        tokens, replaced = tokens + int(batch.scored.sum()), replaced + int(batch.replaced.sum())
        loss, activations = run(batch, 0.0, zero, active=False)
        totals["ce"], total = totals["ce"] + loss, total + activations
        totals["ce_spliced"] += run(batch, 1.0, zero)[0]
        totals["ce_zero"] += run(batch, 0.0, zero)[0]
    if not tokens or not replaced:
        raise UserError("there is no findings token to predict, or none to replace: give studies with findings")
    for batch in batches():
        totals["ce_mean"] += run(batch, 0.0, total / replaced)[0]
    measured: dict[str, Any] = {name: total / tokens for name, total in totals.items()}
    for name in ("zero", "mean"):
        lost = measured[f"ce_{name}"] - measured["ce"]
        gained = measured[f"ce_{name}"] - measured["ce_spliced"]
        measured[f"recovered_{name}"] = gained / lost if lost else None
    return {"tokens": tokens, "replaced": replaced} | measured


def measure(
    sae: Sae,
    model_dir: Path,
    studies: Sequence[Study],
    batch_size: int,
    mesh: tuple[int, ...] = (),
    weights: Weights = "full",
) -> dict[str, Any]:
    """`recovered` for a converted model and the given studies; the site and the tokens are those of the autoencoder.

    Args:
      mesh, weights: see `maira_jax.checkpoint.store.load`.

    Raises:
      UserError: the model cannot be read or does not fit, or the studies have no findings.
    """
    params, cfg = model_store.load(model_dir, mesh, rows=batch_size, weights=weights)
    batch_size = sharding.rows_on(sharding.mesh_of(params), batch_size)
    source = sae.meta["source"]
    tokenizer, images = Tokenizer.from_dir(model_dir), ImageConfig.from_dir(model_dir)
    with progress(total=2 * len(studies), unit="study", desc="splice") as bar:

        def batches() -> Iterator[_ScoredBatch]:
            for batch in _batches(studies, tokenizer, images, source["token_filter"], batch_size):
                yield batch
                bar.update(int(batch.scored.any(1).sum()))

        return recovered(sae, params, cfg, Site.parse(source["site"], cfg), batches)


def of_run(
    workdir: Path,
    table: pa.Table,
    section: ml_collections.ConfigDict,
    n_studies: int,
    batch_size: int,
    mesh: tuple[int, ...],
    weights: Weights,
) -> Loss | None:
    """The measurement for autoencoders of a run, on some of its held-out studies.

    Args:
      workdir: the run's folder, which holds the model.
      table: the activations' study table.
      section: the section `studies` of the configuration, which describes the studies that were harvested.
      n_studies: maximum number of studies.
      batch_size: studies in one pass of the model.
      mesh, weights: see `maira_jax.checkpoint.store.load`.

    Returns:
      A function from an autoencoder to what `recovered` gives, or None if nothing is to be measured.

    Raises:
      UserError: there is no model, or no such study.
    """
    if not n_studies:
        return None
    model_dir = Path(workdir) / "model"
    storage.fetch(model_dir)
    if not model_dir.is_dir():
        raise UserError(f"{model_dir} does not exist, and train.loss_recovered_studies needs the model: set it to 0")
    held_out = table.filter(pc.equal(table["split"], HELD_OUT))
    names = set(held_out["study_id"].slice(0, n_studies).to_pylist())
    studies = [study for study in load_studies(section) if study.study_id in names]
    if not studies:
        raise UserError(
            "none of config.studies is a held-out study of the activations: give the studies that were harvested, or "
            "set train.loss_recovered_studies to 0"
        )
    return functools.partial(
        measure, model_dir=model_dir, studies=studies, batch_size=batch_size, mesh=mesh, weights=weights
    )
