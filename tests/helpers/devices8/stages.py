"""Every stage that runs the model gives on a mesh what it gives on one device.

Arguments: an empty folder, and the meshes, such as 2x4.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from configs import phantom
from maira_jax.checkpoint import convert, store
from maira_jax.generation import stage as generation
from maira_jax.inputs import batches
from maira_jax.model import sharding
from maira_jax.run import jsonl
from maira_jax.studies.readers import load_studies
from sae.activations import harvest
from sae.activations.store import ActivationStore
from sae.autoencoder import Sae
from sae.evaluation import loss_recovered
from sae.formats import safetensors as plain_file
from steer import stage as steering
from tests.helpers.sae import make_model, random_sae
from tests.helpers.tiny_model import relative

SITE = "language.1.resid_mid"


def make_config(directory: Path) -> ml_collections.ConfigDict:
    """A run with a random model whose heads 8 devices divide, and whose batches they do not all divide."""
    config = phantom.get_config()
    config.studies.n = 12
    make_model(directory / "hf", config.studies, heads=8)
    config.model.checkpoint = str(directory / "hf")
    config.harvest.update({"site": SITE, "batch_size": 5, "held_out_fraction": 0.3, "readers": 0})
    config.generate.update({"studies": 6, "batch_size": 6, "max_new_tokens": 8})
    config.steer.update(
        {
            "features": (3, 5),
            "concepts": (),
            "methods": ("add", "clamp"),
            "positions": ("generated", "image"),
            "strengths": (-4.0, 4.0),
            "studies": 3,
            "batch_studies": 3,
            "batch_rows": 4,
            "max_new_tokens": 8,
        }
    )
    return config


def results(config: ml_collections.ConfigDict, workdir: Path, model: Path, activations: Path) -> dict[str, Any]:
    """What the stages give; autoencoder and units are those of `activations`."""
    workdir.mkdir()
    (workdir / "model").symlink_to(model)
    harvest.run(config, workdir)
    stored = ActivationStore.open(workdir / "activations")
    sae = autoencoder(ActivationStore.open(activations))
    recovered = loss_recovered.measure(sae, model, load_studies(config.studies)[:5], 3, config.mesh)
    generation.run(config, workdir)
    encoded = config.copy_and_resolve_references()
    encoded.harvest.update({"encoder": "maira2_vision", "rows": "patches"})
    images = workdir.with_name(f"{workdir.name}-images")
    images.mkdir()
    (images / "model").symlink_to(model)
    harvest.run(encoded, images)
    patches = ActivationStore.open(images / "activations")
    again = workdir.with_name(f"{workdir.name}-steer")
    again.mkdir()
    plain_file.save(again, sae)
    config.steer.sae = str(again / "sae.safetensors")
    for name, path in (("model", model), ("activations", activations)):
        (again / name).symlink_to(path)
    steering.run(config, again)
    steered = jsonl.read(again / steering.folder(config.steer.name) / steering.GENERATIONS, "")
    return {
        "stored": stored.read(0, stored.n_tokens),
        "encoded": patches.read(0, patches.n_tokens),
        "losses": np.array([value for name, value in recovered.items() if name.startswith("ce")]),
        "nll": np.array([line.pop("mean_nll") for line in steered]),
        "steered": steered,
        "generated": jsonl.read(workdir / "reports" / generation.RESULT, ""),
    }


def autoencoder(stored: ActivationStore) -> Sae:
    """A random autoencoder of the stored activations."""
    meta = {"source": stored.source, "site": SITE}
    return random_sae(stored.read(0, stored.n_tokens), (32, 32), 4, 0.1, meta=meta)


def main(directory: Path, meshes: Sequence[str]) -> None:
    batches._N_LENGTHS = 2  # each takes programs of its own on every mesh
    config = make_config(directory)
    config.mesh = (1, 8)
    convert.run(config, directory)
    model, activations = directory / "model", directory / "1x1" / "activations"
    config.mesh = (1, 1)
    expected = results(config, directory / "1x1", model, activations)
    for mesh in meshes:
        config.mesh = tuple(map(int, mesh.split("x")))
        found = results(config, directory / mesh, model, activations)
        for name in ("steered", "generated"):
            assert found[name] == expected[name], name
        differences = {name: relative(found[name], expected[name]) for name in ("stored", "encoded", "losses", "nll")}
        print(mesh, differences)
        assert max(differences.values()) < 1e-6, differences
    params, _ = store.load(model)
    assert sharding.mesh_of(params).shape == {"data": 1, "model": 1} and jax.device_count() == 8
    print("equal")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
