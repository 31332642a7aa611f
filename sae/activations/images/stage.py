"""The harvest of an image encoder, as a stage."""

import contextlib
import functools
from pathlib import Path
from typing import Any

import ml_collections

from maira_jax.encoders import ENCODERS
from maira_jax.run.config import RunSection
from maira_jax.run.performance.profile import StepTrace
from maira_jax.run.stages.stage import Stage
from sae.activations import open_shards
from sae.activations.config import HarvestSection
from sae.activations.earlier_rows import EarlierRows
from sae.activations.harvest_plan import GROWS, studies_identity, study_table
from sae.activations.images.harvester import ImageHarvester
from sae.activations.store import StoreLayout, StoreWriter, store_header
from sae.activations.token_rows import TokenRows


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Stores what `config.harvest.encoder` makes of the frontal images of `config.studies`.

    The processes of a run share the missing shards out, and each runs the encoder on its own devices.

    Returns:
      What the manifest counts.

    Raises:
      UserError: a field is out of range, a checkpoint, a study or an image cannot be read, or the disk is full.
    """
    harvest = HarvestSection.of(config)
    section = {"harvest": harvest.of_encoder(), "seed": config.seed} | studies_identity(config.studies)
    inputs = ("model",) if ENCODERS.get(harvest.encoder).of_model else ()
    computing = harvest.computing() | {"mesh": RunSection.of(config).mesh}
    with Stage(Path(workdir), "activations", section, inputs, computing, config, GROWS) as stage:
        if stage.finished:
            return stage.manifest["counts"]
        begun_with = stage.manifest.get("chosen", {}).get("batch_size")
        with contextlib.closing(ImageHarvester.open(config, workdir, begun_with)) as harvester:
            stage.record({"batch_size": harvester.batch_size})
            n, rows = len(harvester.studies), harvester.rows_per_image
            layout = StoreLayout.of(n * rows, harvester.d_model, harvest.dtype)
            studies = study_table(harvester.studies, harvester.starts, harvest.held_out_fraction, config.seed)
            source = harvester.source
            earlier = EarlierRows.take(stage.dir, store_header(layout, studies, source), studies, harvest)
            writer = StoreWriter(stage.dir, layout, TokenRows.without_tokens(n, rows), studies, source)
            read = functools.partial(harvester.read, trace=StepTrace.of_run(config, workdir, "harvest"))
            batches = harvester.batches(without=earlier.studies)
            open_shards.fill(writer, harvester.starts, batches, read, lambda: harvester.queue.clock, "row", earlier)
        stage.finish(writer.counts())
        return stage.manifest["counts"]
