"""Opens a session: with a run, or with a checkpoint."""

from pathlib import Path
from typing import Literal

import ml_collections
import pyarrow.parquet as pq

from interp.exemplars.corpus import is_of_images
from interp.sets import FOLDER, OWN_SET
from maira_jax.checkpoint.convert import ModelSection, checkpoint_dir
from maira_jax.errors import UserError
from maira_jax.model.sites import Site
from maira_jax.run import storage
from maira_jax.run.config import RunSection
from maira_jax.run.stages.run_config import remembered
from maira_jax.run.stages.stage import MANIFEST, refuse_damaged
from maira_jax.studies.readers import load_studies
from sae import formats
from sae.activations.store import HELD_OUT, ActivationStore
from sae.autoencoder import Sae
from sae.import_sae import stated_site
from sae.saved import load_sae
from steer.config import GENERATED, SteerSection
from steer.session import near
from steer.session.features import NamedFeatures
from steer.session.loaded_model import LoadedModel
from steer.session.run_studies import RunStudies
from steer.session.session import Session

_MAX_NEW_TOKENS = 300  # of MAIRA-2's model card, for reports


def open_run(workdir: str | Path, *, interpretations: str = OWN_SET) -> Session:
    """Loads the model of a run, and with it the autoencoder and the names of its features as far as they are there.

    Args:
      workdir: the run directory, a folder or an address in a bucket.
      interpretations: the set of interpretations that gives the names: the run's own, or one that was imported.

    Raises:
      UserError: the folder is no run, or a part of it is damaged.
    """
    folder = _local(str(workdir))
    if not (folder / "model").is_dir():
        if storage.is_remote(folder):
            raise UserError(f"{storage.named(str(folder))} holds no run whose model was converted: give its --workdir")
        found = sorted(path.parent.name for path in folder.parent.glob("*/model"))
        remedy = f"give the --workdir of a run, below {folder.parent} or elsewhere, whose model was converted"
        raise near.unknown("run", folder.name, found, remedy)
    for name in ("model", "activations", "sae", OWN_SET):
        if (folder / name / MANIFEST).is_file():
            refuse_damaged(folder, name)
    config = remembered(folder)
    steering = SteerSection.of(config)
    weights, mesh = ModelSection.of(config).weights, RunSection.of(config).mesh
    sae = load_sae(folder / "sae") if (folder / "sae" / "sae.json").is_file() else None
    store = ActivationStore.open(folder / "activations") if (folder / "activations").is_dir() else None
    if store is not None and is_of_images(store.source):
        raise UserError(f"{folder} is of an image encoder, which writes no reports: look at its features in the atlas")
    model = LoadedModel.converted(folder / "model", mesh, weights, 0 if store is None else _longest(store))
    source = {} if sae is None else sae.meta.get("source", {})
    site = str(source.get("site") or (store.source["site"] if store else Site.last(model.cfg).name))
    names = NamedFeatures(0 if sae is None else sae.n_features, folder, interpretations)
    return Session(
        model, folder, _studies(config, store), steering.max_new_tokens, steering.positions, sae, site, names
    )


def open_checkpoint(
    folder: str | Path,
    *,
    sae: str | Path | None = None,
    site: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Session:
    """Loads a checkpoint, and an autoencoder of its activations. There is no run: features have numbers, no names.

    Args:
      folder: a checkpoint in the Hugging Face layout, a converted one, or "phantom" for the one in the package.
      sae: a file or folder of an autoencoder, in any format that `launch.import_sae` reads; None: none.
      site: the site that the autoencoder is of; None: the one that its files name.
      dtype: of the parameters; a converted checkpoint keeps its own.

    Raises:
      UserError: the checkpoint or the autoencoder cannot be read, does not fit, or names no site.
    """
    path = checkpoint_dir(str(folder))
    converted = (path / "params").is_dir()
    model = LoadedModel.converted(path, (), "full", 0) if converted else LoadedModel.checkpoint(path, dtype)
    found = None if sae is None else formats.load(Path(sae).expanduser())
    place = _site_of(found, sae, site, model)
    names = NamedFeatures(0 if found is None else found.n_features, None)
    return Session(model, path, RunStudies([], [], list), _MAX_NEW_TOKENS, (GENERATED,), found, place, names)


def _local(workdir: str) -> Path:
    """The folder of a run, or the one that stands for an address, with all but the large files in it."""
    if not storage.is_address(workdir):
        return Path(workdir).expanduser()
    folder = storage.attach(workdir, storage.default_scratch(), 0)
    for name in ("model", "activations", "sae", OWN_SET, FOLDER):
        storage.fetch(folder / name)
    return folder


def _site_of(sae: Sae | None, file: str | Path | None, site: str | None, model: LoadedModel) -> str:
    """The name of the site that an autoencoder is of; without one the last site of the language model."""
    if sae is None:
        return site or Site.last(model.cfg).name
    name = site or stated_site(sae.meta)
    if not name or name.startswith("block "):  # a block has several sites
        raise UserError(f"{file} does not name the site that it is of: say site='language.15.resid_post', or another")
    place = Site.parse(str(name), model.cfg)
    width = model.cfg.vision.hidden_size if place.tower == "vision" else model.cfg.text.hidden_size
    if sae.d_model != width:
        raise UserError(f"{file} is of width {sae.d_model}, but {place.name} is of width {width}: choose another")
    return place.name


def _longest(store: ActivationStore) -> int:
    """The tokens of the longest sequence of a store, up to its last stored token."""
    metadata = pq.read_metadata(store.directory / "tokens.parquet")
    column = metadata.schema.to_arrow_schema().get_field_index("position")
    groups = [metadata.row_group(i).column(column).statistics.max for i in range(metadata.num_row_groups)]
    return 1 + max(groups, default=0)


def _studies(config: ml_collections.ConfigDict, store: ActivationStore | None) -> RunStudies:
    if store is None:
        return RunStudies(None, [], lambda: load_studies(config.studies))
    ids, splits = (store.studies[name].to_pylist() for name in ("study_id", "split"))
    held_out = [study_id for study_id, split in zip(ids, splits, strict=True) if split == HELD_OUT]
    return RunStudies(ids, held_out, lambda: load_studies(config.studies))
