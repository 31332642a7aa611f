"""The harvest stage: studies through the model, activations into the store.

Every study is tokenised first, so the number of rows and the place of each study in the store are known before the
model runs. The unit of work is a shard: the studies that touch its rows, padded to a few lengths. What a shard holds
depends on nothing but the plan, so a killed harvest resumes with the shards that are missing.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import grain
import jax
import ml_collections
import ml_dtypes
import numpy as np

from maira_jax.checkpoint import store as model_store
from maira_jax.errors import UserError
from maira_jax.inputs.batches import InputBatch, assemble, fill_up
from maira_jax.inputs.image import ImageConfig
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model import maira2
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params
from maira_jax.model.sites import Site
from maira_jax.run import files
from maira_jax.run.progress import progress
from maira_jax.run.stage import Stage
from maira_jax.studies.readers import load_studies
from sae.activations import imported
from sae.activations.config import HarvestSection
from sae.activations.harvest_plan import HarvestPlan, make_plan
from sae.activations.store import StoreLayout, StoreWriter

_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


@dataclasses.dataclass(frozen=True)
class HarvestBatch:
    """Studies that go through the model together.

    Attributes:
      shard: number of the shard that they are computed for.
      studies: numbers of the studies in the plan.
      bucket: index into the plan's padded lengths.
    """

    shard: int
    studies: tuple[int, ...]
    bucket: int


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Stores the activations of `config.studies` at `config.harvest.site`, or those in `config.harvest.arrays`.

    Prompt and findings go through the model together (teacher forced); the tokens that `config.harvest.token_filter`
    names are kept.

    Returns:
      What the manifest counts.

    Raises:
      UserError: a field is out of range, a study cannot be read, or the disk is full.
    """
    harvest = HarvestSection.of(config)
    if harvest.arrays:
        return imported.run(config, workdir)
    section = {"harvest": harvest.deciding(), "studies": config.studies.to_dict(), "seed": config.seed}
    with Stage(Path(workdir), "activations", section, inputs=("model",), computing=harvest.computing()) as stage:
        if stage.finished:
            return stage.manifest["counts"]
        harvester = Harvester.open(config, workdir)
        plan = harvester.plan
        layout = StoreLayout.of(plan.n_tokens, harvester.d_model, harvest.dtype)
        writer = StoreWriter(stage.dir, layout, plan.token_table(), harvester.studies, harvester.source)
        _fill(writer, harvester)
        stage.finish(writer.counts())
        return stage.manifest["counts"]


class Harvester:
    """Runs the model over planned studies and gives the activations of their kept tokens.

    Args:
      config: the whole configuration, with its sections `harvest` and `studies`.
      model_dir: the folder of the converted model.
      params: the model's parameters.
      model: the model's configuration.

    Attributes:
      plan: which tokens of which study are kept.
      studies: the study table; see `STUDY_SCHEMA`.
      source: where the activations come from, as plain values.
      d_model: width of the activations.

    Raises:
      UserError: a field is out of range, or a study cannot be read.
    """

    def __init__(self, config: ml_collections.ConfigDict, model_dir: Path, params: Params, model: Maira2Config):
        harvest = HarvestSection.of(config)
        site = _language_site(harvest.site, model)
        self._tokenizer, self._images = Tokenizer.from_dir(model_dir), ImageConfig.from_dir(model_dir)
        self._batch_size = harvest.batch_size
        self._forward = functools.partial(_forward, params, model, site, harvest.dtype)
        self.plan = make_plan(load_studies(config.studies), self._tokenizer, harvest)
        self.studies = self.plan.study_table(harvest.held_out_fraction, config.seed)
        self.d_model = model.text.hidden_size
        self.source = {
            "checkpoint": files.read_json(model_dir / "manifest.json")["section"]["checkpoint"],
            "site": site.name,
            "token_filter": harvest.token_filter,
        }

    @classmethod
    def open(cls, config: ml_collections.ConfigDict, workdir: Path) -> Self:
        """A harvester of `config.studies` with the model in `workdir/model`.

        Raises:
          UserError: a field is out of range, or a study cannot be read.
        """
        model_dir = Path(workdir) / "model"
        return cls(config, model_dir, *model_store.load(model_dir))

    def batches(self, studies: Sequence[int], shard: int = 0) -> list[HarvestBatch]:
        """Groups the studies of these numbers into batches for a shard, the longest study first."""
        plan = self.plan
        chosen = sorted((i for i in studies if len(plan.kept[i])), key=lambda i: (-len(plan.requests[i].encoded), i))
        parts = [tuple(chosen[at : at + self._batch_size]) for at in range(0, len(chosen), self._batch_size)]
        return [
            HarvestBatch(shard, part, int(np.searchsorted(plan.lengths, len(plan.requests[part[0]].encoded))))
            for part in parts
        ]

    def read(self, batches: list[HarvestBatch]) -> Iterator[tuple[HarvestBatch, list[np.ndarray]]]:
        """Yields each batch with the activations of its studies' kept tokens, [kept, d_model] each, as stored."""
        source = grain.MapDataset.source(
            _HarvestInputs(self.plan, batches, self._tokenizer, self._images, self._batch_size)
        )
        inputs = source.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2))
        for batch, activations in _one_behind(inputs, self._forward):
            yield batch, [activations[row, self.plan.kept[i]] for row, i in enumerate(batch.studies)]


def _language_site(name: str, model: Maira2Config) -> Site:
    site = Site.parse(name, model)
    if site.tower != "language":
        raise UserError(f"harvest.site {name!r} has no activation per token: choose a language site")
    return site


class _HarvestInputs:
    """What the model is given for each batch; a grain source, so that images are read ahead by threads."""

    def __init__(
        self, plan: HarvestPlan, batches: list[HarvestBatch], tokenizer: Tokenizer, images: ImageConfig, batch_size: int
    ):
        self._plan, self._batches, self._batch_size = plan, batches, batch_size
        self._tokenizer, self._images = tokenizer, images

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[HarvestBatch, InputBatch]:
        batch, plan = self._batches[index], self._plan
        requests = [plan.requests[i] for i in fill_up(batch.studies, self._batch_size)]
        length, n_images = plan.lengths[batch.bucket], plan.n_images[batch.bucket]
        return batch, assemble(requests, self._tokenizer, self._images, length, n_images)


@functools.partial(jax.jit, static_argnames=("model", "site", "dtype"))
def _forward(
    params: Params, model: Maira2Config, site: Site, dtype: str, tokens: jax.Array, mask: jax.Array, pixels: Any
) -> jax.Array:
    """Activations of a padded batch (see `InputBatch`), [B, T, d_model] in the store's dtype."""
    output = maira2.forward(params, model, tokens, mask, pixels, read=(site,), logits=False)
    return output.sites[site.name].astype(_DTYPES[dtype])  # [B, T, d_model]


def _fill(writer: StoreWriter, harvester: Harvester) -> None:
    """Computes and writes the shards that are missing."""
    layout, plan = writer.layout, harvester.plan
    missing = writer.missing()
    batches = [batch for shard in missing for batch in harvester.batches(plan.touching(layout.rows(shard)), shard)]
    to_do = sum(stop - start for start, stop in map(layout.rows, missing))
    with progress(total=layout.n_tokens, initial=layout.n_tokens - to_do, unit="tok", desc="harvest") as bar:
        values, current = np.empty(0), None
        for batch, activations in harvester.read(batches):
            if batch.shard != current:
                if current is not None:
                    writer.write(current, values)
                current = batch.shard
                start, stop = layout.rows(current)
                values = np.empty((stop - start, layout.d_model), activations[0].dtype)
            bar.update(_place(values, layout.rows(batch.shard), plan, batch, activations))
        if current is not None:
            writer.write(current, values)


def _one_behind(inputs: Any, read: Callable[..., jax.Array]) -> Iterator[tuple[HarvestBatch, np.ndarray]]:
    """Yields each batch with its activations [B, T, d_model] on the host, while the device computes the next batch."""
    previous = None
    for batch, (tokens, mask, _, pixels) in inputs:
        following = (batch, read(tokens, mask, pixels))
        if previous is not None:
            yield previous[0], np.asarray(previous[1])
        previous = following
    if previous is not None:
        yield previous[0], np.asarray(previous[1])


def _place(
    values: np.ndarray, rows: tuple[int, int], plan: HarvestPlan, batch: HarvestBatch, activations: Sequence[np.ndarray]
) -> int:
    """Copies the activations of a batch's studies to their rows of the shard; returns the number of rows."""
    copied = 0
    for i, kept in zip(batch.studies, activations, strict=True):
        start = int(plan.starts[i])
        low, high = max(start, rows[0]), min(start + len(kept), rows[1])
        values[low - rows[0] : high - rows[0]] = kept[low - start : high - start]
        copied += high - low
    return copied
