"""The harvest stage: studies through the model, activations into the store.

Every study is tokenised first, so the number of rows and the place of each study in the store are known before the
model runs. Studies go through the model in batches that follow from the plan alone; a shard is written when all of its
rows are computed, and a killed harvest resumes with the batches that hold rows of missing shards.
"""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import jax
import ml_collections
import ml_dtypes
import numpy as np

from maira_jax.checkpoint import store as model_store
from maira_jax.checkpoint.convert import ModelSection
from maira_jax.errors import UserError
from maira_jax.inputs.image import ImageConfig
from maira_jax.inputs.image_readers import ImageReaders
from maira_jax.inputs.readable import load_readable
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model import maira2, sharding
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params
from maira_jax.model.sites import Site
from maira_jax.run import files, processes
from maira_jax.run.config import RunSection
from maira_jax.run.performance import profile
from maira_jax.run.performance.device_queue import DeviceQueue
from maira_jax.run.performance.profile import StepTrace
from maira_jax.run.stages.stage import Stage
from sae.activations import imported, open_shards
from sae.activations.batch_size import automatic_batch_size
from sae.activations.config import HarvestSection
from sae.activations.earlier_rows import EarlierRows
from sae.activations.harvest_batches import HarvestBatch, HarvestBatches, HarvestInputs
from sae.activations.harvest_plan import GROWS, make_plan, studies_identity, study_table
from sae.activations.images import stage as encoded
from sae.activations.store import StoreLayout, StoreWriter, store_header

_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Stores the activations of `config.studies` at `config.harvest.site`, or those in `config.harvest.arrays`, or what
    `config.harvest.encoder` makes of the frontal images.

    Prompt and findings go through the model together (teacher forced); the tokens that `config.harvest.token_filter`
    names are kept. The processes of a run share the missing shards out, and each runs the model on its own devices.

    Returns:
      What the manifest counts.

    Raises:
      UserError: a field is out of range, a study cannot be read, or the disk is full.
    """
    harvest = HarvestSection.of(config)
    if harvest.arrays:
        return processes.first_only(lambda: imported.run(config, workdir))
    if harvest.encoder:
        return encoded.run(config, workdir)
    section = {"harvest": harvest.of_model(), "seed": config.seed} | studies_identity(config.studies)
    section["weights"] = ModelSection.of(config).weights
    computing = harvest.computing() | {"mesh": RunSection.of(config).mesh}
    with Stage(Path(workdir), "activations", section, ("model",), computing, config, GROWS) as stage:
        if stage.finished:
            return stage.manifest["counts"]
        begun_with = stage.manifest.get("chosen", {}).get("batch_size")
        with contextlib.closing(Harvester.open(config, workdir, begun_with)) as harvester:
            stage.record({"batch_size": harvester.batch_size})
            plan = harvester.plan
            layout = StoreLayout.of(plan.n_tokens, harvester.d_model, harvest.dtype)
            studies, source = harvester.studies, harvester.source
            earlier = EarlierRows.take(stage.dir, store_header(layout, studies, source), studies, harvest)
            writer = StoreWriter(stage.dir, layout, plan.tokens(), studies, source)
            read = functools.partial(harvester.read, trace=StepTrace.of_run(config, workdir, "harvest"))
            batches = harvester.batches.all(without=earlier.studies)
            open_shards.fill(writer, plan.starts, batches, read, lambda: harvester.queue.clock, "tok", earlier)
        stage.finish(writer.counts())
        return stage.manifest["counts"]


class Harvester:
    """Runs the model over planned studies and gives the activations of their kept tokens.

    Args:
      config: the whole configuration, with its sections `harvest` and `studies`.
      model_dir: the folder of the converted model.
      params: the model's parameters.
      model: the model's configuration.
      batch_size: studies in a pass of the model; None: what the configuration says. It is raised to what the `data` of
        the parameters' mesh divides.

    Attributes:
      plan: which tokens of which study are kept.
      studies: the study table; see `STUDY_SCHEMA`.
      source: where the activations come from, as plain values.
      d_model: width of the activations.
      dtype: dtype of the activations.
      batch_size: studies in a pass of the model.
      batches: forms batches of the plan's studies.
      queue: how busy the device is.

    Raises:
      UserError: a field is out of range, or a study cannot be read.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        model_dir: Path,
        params: Params,
        model: Maira2Config,
        batch_size: int | None = None,
    ):
        harvest = HarvestSection.of(config)
        site = language_site(harvest.site, model)
        tokenizer, images = Tokenizer.from_dir(model_dir), ImageConfig.from_dir(model_dir)
        self.plan = make_plan(load_readable(config.studies, model_dir.parent, harvest.readers), tokenizer, harvest)
        self.studies = study_table(self.plan.studies, self.plan.starts, harvest.held_out_fraction, config.seed)
        self.d_model, self.dtype = model.text.hidden_size, np.dtype(_DTYPES[harvest.dtype])
        self.source = {
            "checkpoint": files.read_json(model_dir / "manifest.json")["section"]["checkpoint"],
            "site": site.name,
            "token_filter": harvest.token_filter,
        }
        self._mesh = sharding.mesh_of(params)
        shape, leaves = (self._mesh.shape["data"], self._mesh.shape["model"]), jax.tree.leaves(params)
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)  # by one device
        fitting = automatic_batch_size(
            model, self.plan.lengths[-1], leaves[0].dtype, held, sharding.device_memory(), shape
        )
        rows = sharding.rows_on(self._mesh, batch_size or harvest.batch_size or fitting)
        self.batch_size: int = processes.broadcast(rows)
        self.batches = HarvestBatches(self.plan, tokenizer, images, self.batch_size, shape[0])
        self.queue: DeviceQueue[HarvestBatch, HarvestInputs] = DeviceQueue()
        self._forward = functools.partial(kept_activations, params, model, site, harvest.dtype)
        self._readers = ImageReaders(images.size, harvest.readers)

    @classmethod
    def open(cls, config: ml_collections.ConfigDict, workdir: Path, batch_size: int | None = None) -> Self:
        """A harvester of `config.studies` with the model in `workdir/model`.

        Raises:
          UserError: a field is out of range, or a study cannot be read.
        """
        model_dir = Path(workdir) / "model"
        harvest = HarvestSection.of(config)
        site = language_site(harvest.site, Maira2Config.from_dir(model_dir))
        rows = batch_size or harvest.batch_size
        mesh, weights = RunSection.of(config).mesh, ModelSection.of(config).weights
        params, model = model_store.load(model_dir, mesh, rows=rows, stop=site, weights=weights)
        return cls(config, model_dir, params, model, batch_size)

    def close(self) -> None:
        """Ends the processes that read images."""
        self._readers.close()

    def read(
        self, batches: Iterable[HarvestBatch], trace: StepTrace = profile.OFF
    ) -> Iterator[tuple[HarvestBatch, list[np.ndarray]]]:
        """Yields each batch with the activations of its studies' kept tokens, [kept, d_model] each, as stored.

        Raises:
          UserError: an image cannot be read.
        """
        for batch, activations in self.queue.run(trace.over(self._inputs(batches)), self._run):
            yield batch, self.batches.apart(batch, activations)

    def _run(self, given: HarvestInputs) -> jax.Array:
        with jax.set_mesh(self._mesh):
            return self._forward(*sharding.place_rows(self._mesh, given))

    def _inputs(self, batches: Iterable[HarvestBatch]) -> Iterator[tuple[HarvestBatch, HarvestInputs]]:
        """What the model is given for each batch, while the images of the next ones are read."""
        for batch, squares in self._readers.ahead((batch, batch.images) for batch in batches):
            yield batch, self.batches.inputs(batch, squares)


def language_site(name: str, model: Maira2Config) -> Site:
    """The site that is harvested.

    Raises:
      UserError: it is not in the language model.
    """
    site = Site.parse(name, model)
    if site.tower != "language":
        raise UserError(f"harvest.site {name!r} has no activation per token: choose a language site")
    return site


@functools.partial(jax.jit, static_argnames=("model", "site", "dtype"))
def kept_activations(
    params: Params,
    model: Maira2Config,
    site: Site,
    dtype: str,
    tokens: jax.Array,
    mask: jax.Array,
    pixels: jax.Array | None,
    images: jax.Array | None,
    kept: jax.Array,
) -> jax.Array:
    """Activations of the kept tokens of a batch (see `HarvestInputs`), [groups, capacity, d_model] in the dtype."""
    features = None
    if pixels is not None and images is not None:
        features = maira2.encode_shared_images(params, model, pixels, images)  # [B, images * patches, D]
    output = maira2.forward(params, model, tokens, mask, None, read=(site,), logits=False, features=features)
    x = output.sites[site.name]  # [B, T, D]
    by_group = x.reshape(len(kept), -1, x.shape[-1])  # [groups, B / groups * T, D]
    return jax.vmap(lambda rows, places: rows[places])(by_group, kept).astype(_DTYPES[dtype])
