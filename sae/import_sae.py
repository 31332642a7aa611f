"""The stage that makes the autoencoder of a file the run's own, so that later stages find it as after a training."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from maira_jax.checkpoint.convert import ModelSection
from maira_jax.errors import UserError
from maira_jax.run import storage
from maira_jax.run.config import Section, setting
from maira_jax.run.stages.stage import MANIFEST, Stage, read_manifest
from sae import formats
from sae.activations.store import ActivationStore
from sae.autoencoder import Sae
from sae.evaluation import calibrate, metrics
from sae.evaluation.striped import StripedSae, largest_batch
from sae.training import held_out
from sae.training.config import TrainSection
from sae.training.stage import counts_of, loss_of, save_measured

_IMPORTED = "imported"  # what the manifest calls the autoencoder
# Entries of a batch's matrix of pre-activations on one CPU, which holds several such matrices: 256 MiB each.
_CPU_ENTRIES = 2**26


class ImportSaeSection(Section, name="import_sae"):
    """The autoencoder of a file, as the run's own."""

    sae: str = setting(
        "", "Folder or file of the autoencoder, of any format that can be read; empty: none.", remembered=False
    )
    l0: int = setting(
        0,
        "Set the threshold so that this many features are active per token on average; 0: the file's.",
        ge=0,
        remembered=False,
    )


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Reads `config.import_sae.sae`, measures it on the activations of the run, and writes it into `workdir/sae`.

    There it lies as after a training: with `metrics.json` and `density.npy`, measured on the same held-out tokens (the
    fields of `config.train` that say on how many, and on how many studies the loss recovered is). Normalisation and
    group sizes are the file's.

    Returns:
      What the manifest of `sae/` counts.

    Raises:
      UserError: the file cannot be read, is of other activations than those of the run, or the run has another
        autoencoder.
    """
    section, workdir = ImportSaeSection.of(config), Path(workdir)
    if not section.sae:
        raise UserError("import_sae.sae names no autoencoder: give its folder or file with --sae")
    path = Path(section.sae).expanduser()
    sae = formats.load(path)
    train, seed = TrainSection.of(config), int(config.seed)
    measured_on = {name: getattr(train, name) for name in ("held_out_tokens", "loss_recovered_studies")}
    if section.l0:
        measured_on["calibration_tokens"] = train.calibration_tokens
    identity: dict[str, Any] = {"autoencoder": _IMPORTED, "import_sae": {"sae": digest(sae), "l0": section.l0}}
    identity |= {"train": measured_on, "seed": seed}
    identity["weights"] = ModelSection.of(config).weights
    with Stage(workdir, "sae", identity, inputs=("activations",), computing={"sae": str(path)}, config=config) as stage:
        if not stage.finished:
            store = ActivationStore.open(workdir / "activations", train.readers)
            check_fits(sae, store, path)
            loss = loss_of(config, workdir, store)
            sae, measured, density = _measured(sae, store, section.l0, train, seed)
            measured["loss"] = None if loss is None else loss(sae)
            save_measured(stage.dir, sae, measured, density)
            stage.finish(counts_of(sae, measured))
        return stage.manifest["counts"]


def imported_counts(workdir: Path) -> dict[str, Any]:
    """What the manifest of `workdir/sae` counts, where that holds an imported autoencoder; else empty."""
    storage.fetch(workdir / "sae" / MANIFEST)
    path = workdir / "sae" / MANIFEST
    manifest = read_manifest(path) if path.is_file() else {}
    found: dict[str, Any] = manifest["counts"] if manifest.get("section", {}).get("autoencoder") == _IMPORTED else {}
    return found


def digest(sae: Sae) -> str:
    """A hash of all that decides an autoencoder's features and reconstructions."""
    found = hashlib.sha256(repr((sae.k, sae.group_sizes, sae.per_token)).encode())
    for array in (sae.threshold, *(sae.params[name] for name in sorted(sae.params))):
        found.update(np.ascontiguousarray(array, np.float32).data)
    return found.hexdigest()


def check_fits(sae: Sae, store: ActivationStore, path: Path) -> None:
    """Refuses an autoencoder of other activations than those of a store, by their width and site.

    Raises:
      UserError: they differ; a site that the file does not state is taken for the store's.
    """
    if sae.d_model != store.d_model:
        raise UserError(
            f"{path} takes {sae.d_model} dimensions and {store.directory} has {store.d_model}: "
            "harvest the model and site that it was trained on"
        )
    stated, site = stated_site(sae.meta), str(store.source.get("site", ""))
    if stated and site and stated not in (site, _block(site)):
        raise UserError(
            f"{path} says that it was trained on {stated}, and {store.directory} has {site}: "
            "harvest that site (harvest.site)"
        )


def stated_site(meta: Mapping[str, Any]) -> str:
    """The site, or else the decoder block, that a file says its autoencoder was trained on; "" where it does not."""
    if "source" in meta:
        return str(meta["source"].get("site", ""))
    trainer, saelens = meta.get("dictionary_learning", {}), meta.get("saelens", {})
    name = str(trainer.get("submodule_name") or "")
    if name.startswith(("language.", "vision.", "projector")):
        return name
    hook = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|mid|post)", str(saelens.get("hook_name")))
    if hook:
        block = int(hook[1])
        before = f"language.{block - 1}.resid_post" if block else "language.embed"
        return before if hook[2] == "pre" else f"language.{block}.resid_{hook[2]}"
    layer = trainer.get("layer")
    return f"block {layer}" if isinstance(layer, int) and layer >= 0 else ""


def _block(site: str) -> str:
    """The decoder block of a site."""
    found = re.match(r"language\.(\d+)\.", site)
    return f"block {found[1]}" if found else ""


def _measured(
    sae: Sae, store: ActivationStore, l0: int, train: TrainSection, seed: int
) -> tuple[Sae, dict[str, Any], np.ndarray]:
    """The autoencoder, with its threshold set for `l0` if that is not 0; its metrics; the density of each feature."""
    striped = StripedSae.of(sae)
    largest = largest_batch(striped.on, sae.n_features)
    if striped.on_one_cpu:
        largest = max(min(largest, _CPU_ENTRIES // sae.n_features), 1)
    sizes = (train.calibration_tokens if l0 else train.held_out_tokens), train.held_out_tokens
    setting_it, measuring = held_out.tokens_of(store, striped.on, largest, sizes, seed)
    threshold, k = sae.threshold, sae.k
    if l0:
        if sae.per_token:
            raise UserError(f"this autoencoder keeps the {k} largest features of each token: set import_sae.l0 to 0")
        threshold, k = calibrate.threshold_for_l0(striped, setting_it, l0), k or l0
    meta = dict(sae.meta) | {"source": dict(store.source)}
    found = Sae(sae.params, threshold, k, sae.group_sizes, meta, sae.per_token)
    return found, *metrics.evaluate(striped, threshold, measuring)
