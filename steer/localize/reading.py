"""How well each concept is read at each site: one pass of the model for all sites, then probes on held-out studies.

A study is represented by the mean activation of a section's tokens, on which a dense probe is fitted, and, where an
autoencoder was trained at the site, by each feature's largest activation among them, on which a k-sparse probe is.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from interp.features.concepts import StudyLabels
from maira_jax.inputs.batches import (
    GenerationRequest,
    InputBatch,
    assemble_ahead,
    fill_up,
    plan_batches,
)
from maira_jax.inputs.image import ImageConfig
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model import maira2, sharding
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params
from maira_jax.model.sites import Site
from maira_jax.run import files
from maira_jax.run.progress import progress
from sae import autoencoder
from sae.autoencoder import Sae
from sae.evaluation import probing
from steer.config import SteerSection
from steer.localize.section import LocalizePoint, LocalizeSection

_HIGHEST = jax.lax.Precision.HIGHEST


class ReadingScore(NamedTuple):
    """How well a concept is read on held-out studies: the area under the ROC curve, and F1 at the threshold with the
    best F1 on the fitted ones."""

    auroc: float
    f1: float


class ReadModel(NamedTuple):
    """The model that is read, and the autoencoder whose features are, with its site.

    Attributes:
      params, cfg: the model.
      folder: its folder, with tokenizer and image settings.
      sae: None where no features are read.
    """

    params: Params
    cfg: Maira2Config
    folder: Path
    sae: tuple[Site, Sae] | None


def read_studies(
    model: ReadModel,
    requests: Sequence[GenerationRequest],
    points: Sequence[LocalizePoint],
    section: LocalizeSection,
    parts: Path,
) -> tuple[dict[LocalizePoint, np.ndarray], dict[LocalizePoint, np.ndarray]]:
    """One pass of the model over all studies (prompts with findings), which keeps every batch as a file in `parts`.

    Returns:
      By point the studies' mean activations, float32 [studies, d], and at the autoencoder's site the largest activation
      of each feature, float32 [studies, F]; NaN for a study without such tokens.

    Raises:
      UserError: an image cannot be read.
    """
    tokenizer, image_cfg = Tokenizer.from_dir(model.folder), ImageConfig.from_dir(model.folder)
    on = sharding.mesh_of(model.params)
    size = sharding.rows_on(on, section.batch_size)
    plans = plan_batches(requests, size)
    means: dict[LocalizePoint, np.ndarray] = {}
    peaks: dict[LocalizePoint, np.ndarray] = {}
    paths = [parts / f"{number:06d}-{size}.npz" for number in range(len(plans))]
    filled = [[requests[row] for row in fill_up(plan.rows, size)] for plan in plans]
    missing = (
        (path, rows, plan.length, max(plan.n_images, 1))
        for path, rows, plan in zip(paths, filled, plans, strict=True)
        if not path.exists()
    )
    batches = assemble_ahead(missing, tokenizer, image_cfg)
    for path, rows, plan in zip(paths, filled, progress(plans, unit="batch", desc="localize: read"), strict=True):
        if not path.exists():
            n_images = np.array([len(row.images) for row in rows])
            found = _read(model, on, points, next(batches)[1], n_images)
            with files.atomic_path(path) as temporary, temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **found)
        with np.load(path) as arrays:
            for place, point in enumerate(points):
                for kind, kept in (("mean", means), ("peak", peaks)):
                    if f"{kind}{place}" in arrays:
                        values = arrays[f"{kind}{place}"][: len(plan.rows)]
                        whole = kept.setdefault(point, np.full((len(requests), values.shape[1]), np.nan, np.float32))
                        whole[list(plan.rows)] = values
    return means, peaks


def _read(
    model: ReadModel, on: jax.sharding.Mesh, points: Sequence[LocalizePoint], batch: InputBatch, n_images: np.ndarray
) -> dict[str, np.ndarray]:
    """What is kept of a batch: by kind and number of the point, [B, d] or [B, F]."""
    chosen = np.stack([SteerSection(positions=(point.section,)).measured(batch.kinds) for point in points], axis=1)
    assert batch.pixels is not None
    used = np.arange(batch.pixels.shape[1]) < n_images[:, None]  # [B, images]
    site, sae = model.sae or (None, None)
    threshold = None if sae is None else jnp.asarray(sae.threshold, jnp.float32)
    features = None if sae is None else (sae.params, threshold)
    with jax.set_mesh(on):
        placed = sharding.place_rows(on, (batch.tokens, batch.mask, batch.pixels, chosen, used))
        top_k = None if sae is None else sae.top_k
        found = _section_values(model.params, model.cfg, tuple(points), site, top_k, features, *placed)
    return {name: np.asarray(value) for name, value in found.items()}


@functools.partial(jax.jit, static_argnames=("cfg", "points", "sae_site", "top_k"))
def _section_values(
    params: Params,
    cfg: Maira2Config,
    points: tuple[LocalizePoint, ...],
    sae_site: Site | None,
    top_k: int | None,
    features: tuple[autoencoder.Params, jax.Array] | None,
    tokens: jax.Array,
    mask: jax.Array,
    pixels: jax.Array,
    chosen: jax.Array,
    used: jax.Array,
) -> dict[str, jax.Array]:
    """Means, and largest features, over the tokens `chosen [B, points, T]` and the images `used [B, images]`."""
    read = tuple(dict.fromkeys(point.site for point in points))
    output = maira2.forward(params, cfg, tokens, mask, pixels, read=read, logits=False)
    found = {}
    for number, point in enumerate(points):
        x = output.sites[point.site.name].astype(jnp.float32)
        there = chosen[:, number] & mask  # [B, T]
        if point.site.tower != "language":  # x [B, images, patches, d]
            there = jnp.broadcast_to(used[:, :, None], x.shape[:3]).reshape(len(x), -1)  # [B, images * patches]
            x = x.reshape(len(x), -1, x.shape[-1])  # [B, images * patches, d]
        total = jnp.einsum("bt,btd->bd", there.astype(jnp.float32), x, precision=_HIGHEST)  # [B, d]
        n = there.sum(1)[:, None]  # [B, 1]
        found[f"mean{number}"] = jnp.where(n > 0, total / n, jnp.nan)
        if features is not None and point.site == sae_site:
            f = autoencoder.encode(features[0], x, features[1], top_k)  # [B, T, F]
            peak = jnp.where(there[..., None], f, 0).max(1)  # [B, F]
            found[f"peak{number}"] = jnp.where(n > 0, peak, jnp.nan)
    return found


def read_dense(x: np.ndarray, labels: StudyLabels, held_out: np.ndarray, seed: int) -> list[ReadingScore | None]:
    """Dense probes of all concepts, fitted on the studies that are not held out; None where nothing can be scored.

    Args:
      x: float32 [studies, d], NaN for studies that are left out.
      labels: of the same studies.
      held_out: bool [studies].
      seed: seed of the order of the studies.
    """
    there = np.isfinite(x).all(1)  # [studies]
    counted = labels.known & (there & ~held_out)[:, None]  # [studies, concepts]
    if not counted.any():
        return [None] * len(labels.concepts)
    x = np.where(there[:, None], x, 0)
    fitted = x[there & ~held_out]
    mean, scale = fitted.mean(0), fitted.std(0)
    scale = np.where(scale > 1e-6 * np.abs(mean), scale, 1)
    weights, bias = probing.fit_dense(lambda rows: x[rows], mean, scale, labels.value, counted, seed)
    score = (x - mean) / scale @ weights + bias  # [studies, concepts]
    return [_scored(score[:, c], labels, c, there, held_out) for c in range(len(labels.concepts))]


def read_features(peak: np.ndarray, labels: StudyLabels, held_out: np.ndarray, k: int) -> list[ReadingScore | None]:
    """k-sparse probes: of each concept the k features whose means differ most on the fitted studies, in deviations.

    Args:
      peak: float32 [studies, F], NaN for studies that are left out.
      labels, held_out: as in `read_dense`.
      k: features of a probe.
    """
    there = np.isfinite(peak).all(1)  # [studies]
    peak = np.where(there[:, None], peak, 0)
    scores: list[ReadingScore | None] = []
    for c in range(len(labels.concepts)):
        counted = labels.known[:, c] & there & ~held_out
        with_it, without = (peak[counted & (labels.value[:, c] == value)] for value in (True, False))
        if not len(with_it) or not len(without):
            scores.append(None)
            continue
        deviation = peak[counted].std(0)
        apart = np.abs(with_it.mean(0) - without.mean(0)) / np.where(deviation > 0, deviation, np.inf)  # [F]
        x = peak[:, np.sort(np.argsort(-apart, kind="stable")[:k])]  # [studies, k]
        weights, bias = probing.fit_sparse(x[None], labels.value[None, :, c], counted[None])
        scores.append(_scored(x @ weights[0] + bias[0], labels, c, there, held_out))
    return scores


def _scored(
    score: np.ndarray, labels: StudyLabels, c: int, there: np.ndarray, held_out: np.ndarray
) -> ReadingScore | None:
    known, value = labels.known[:, c] & there, labels.value[:, c]
    fitted, scored = known & ~held_out, known & held_out
    n = np.array([(scored & value).sum(), (scored & ~value).sum()])
    if not n.all() or not (fitted & value).any():
        return None
    wins = probing.pair_wins(score[scored], value[scored], np.zeros(scored.sum(), int), 1)[0, 0]
    fires = score > probing.best_f1_threshold(score[fitted], value[fitted])
    hits = (fires & value & scored).sum()
    return ReadingScore(float(wins / n.prod()), float(2 * hits / ((fires & scored).sum() + n[0])))
