"""The passes over a store on several devices find exactly what one device finds. Argument: an empty folder.

The program of the exemplar pass holds no collective.
"""

import dataclasses
import re
import sys
from pathlib import Path

import jax
import numpy as np

from interp.exemplars import index
from interp.exemplars.index_pass import by_tiles, device_program, running_index, shared_sae
from interp.medsae.vectors import study_vectors
from sae.activations.store import ActivationStore
from sae.saved import load_sae
from tests.helpers.exemplar_world import build, make_world
from tests.helpers.interp_run import make_workdir

N_FEATURES = 512
MESH = (2, 4)  # of any mesh the pass takes the devices alone
_COLLECTIVE = re.compile(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter")


def assert_equal(one, other):
    (one, one_peak), (other, other_peak) = one, other
    for name in index.SPLITS:
        for field in dataclasses.fields(index.SplitIndex):
            got, expected = (getattr(found[name], field.name) for found in (other, one))
            np.testing.assert_array_equal(got, expected, err_msg=f"{name} {field.name}")
    np.testing.assert_array_equal(other_peak, one_peak)


def program(devices, route, top_k):
    """The text of the optimised program for these devices."""
    cfg = running_index.IndexConfig(n_top=5, n_sample=40, n_pool=64, block_tokens=64, seed=3)
    mesh = shared_sae.feature_mesh(devices, N_FEATURES)
    arguments = device_program.abstract_arguments(mesh, cfg, 8, N_FEATURES)
    lowered = device_program.add_block.lower(*arguments, cfg=cfg, top_k=top_k, route=route, mesh=mesh)
    return lowered.compile().as_text()


def assert_equal_vectors(directory, devices):
    """The label stage's vectors of studies, whose features devices share.

    Products of other shapes may be rounded differently.
    """
    workdir = make_workdir(directory / "run", 20)
    sae, store = load_sae(workdir / "sae"), ActivationStore.open(workdir / "activations")
    others = {"random directions": np.random.default_rng(0).normal(size=(sae.d_model, 5)).astype(np.float32)}
    found = [
        study_vectors(sae, store, ("findings",), directory / f"{number}", devices[:number], others) for number in (1, 8)
    ]
    for name in ("study", "embedding"):
        np.testing.assert_array_equal(*(getattr(vectors, name) for vectors in found), err_msg=name)
    for basis in ("features", *others):
        one, eight = (vectors.activation[basis][:, :] for vectors in found)
        np.testing.assert_allclose(eight, one, rtol=1e-6, atol=0, err_msg=basis)


def main(directory: Path) -> None:
    world, devices = make_world(n_features=N_FEATURES), jax.devices()
    sizes = [shared_sae.feature_mesh(devices, n_features).size for n_features in (96, 384, 16384)]
    assert sizes == [1, 6, 8]  # shares of whole columns of a product's kernel, in which every number of devices agrees
    few = world | {"sae": dataclasses.replace(world["sae"], k=1)}  # blocks exceed the first capacity
    per_token = world | {"sae": dataclasses.replace(world["sae"], threshold=0.0, k=3, per_token=True)}
    alone = build(few, 64, devices=devices[:1])
    assert_equal(alone, build(few, 64, devices=shared_sae.devices_of(MESH)))
    assert_equal(alone, build(few, 64, devices=devices[:5]))  # 4 of 5 share them
    by_tile = by_tiles.Tiles(max_length=12, features=16)
    assert_equal(
        build(per_token, 64, devices=devices[:1]),
        build(per_token, 64, devices=shared_sae.devices_of(MESH), route=by_tile),
    )
    for route in (device_program.EntryList(64), by_tile):
        assert not _COLLECTIVE.search(program(devices, route, None))
        assert _COLLECTIVE.search(program(devices, route, 3))  # it counts each token's features over all devices
    assert_equal_vectors(directory, devices)
    print("equal")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
