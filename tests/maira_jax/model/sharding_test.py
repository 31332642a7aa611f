"""A mesh of 8 forced host devices gives what one device gives."""

import dataclasses
import itertools
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from maira_jax.errors import UserError
from maira_jax.model import maira2, sharding
from maira_jax.model.sites import Site
from tests.helpers import random_checkpoint
from tests.helpers.paths import ROOT
from tests.helpers.tiny_model import CFG


@pytest.mark.parametrize(
    "program, meshes",
    [
        ("model_parity", []),
        ("stages", ["2x4"]),
        pytest.param("stages", ["8x1", "1x8"], marks=pytest.mark.drill),
    ],
)
def test_a_mesh_gives_what_one_device_gives(tmp_path, program, meshes):
    done = subprocess.run(
        [sys.executable, "-m", f"tests.helpers.devices8.{program}", str(tmp_path), *meshes],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    print(done.stdout)
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]


def test_a_mesh_that_would_cut_a_head_is_refused():
    sharding.check(CFG, sharding.abstract_mesh(4, 2))
    with pytest.raises(UserError, match=r"model = 4 does not divide text_config.num_attention_heads = 6.*\[1, 2, 3, 6"):
        sharding.check(CFG, sharding.abstract_mesh(2, 4))


def test_a_mesh_needs_its_devices():
    assert sharding.make_mesh((1, 1)).shape == {"data": 1, "model": 1}
    with pytest.raises(UserError, match=r"mesh \(16, 8\) needs 128 devices, but there are 1: give --mesh=DATA,MODEL"):
        sharding.make_mesh((16, 8))


@dataclasses.dataclass
class DescribedDevice:
    process_index: int
    id: int


def hosts(*devices):
    """Devices that are only described, as many of each host, the hosts' in turn."""
    by_host = [[DescribedDevice(host, i) for i in range(n)] for host, n in enumerate(devices)]
    return [device for row in itertools.zip_longest(*by_host) for device in row if device]


@pytest.mark.parametrize("shape", [(4, 2), (8, 1), (2, 4), (1, 8), (2, 2)])
def test_the_devices_of_a_host_are_neighbours(shape, monkeypatch):
    monkeypatch.setattr(sharding, "Mesh", lambda devices, *_, **__: devices)  # JAX's takes real devices alone
    of = [device.process_index for device in sharding.make_mesh(shape, devices=hosts(4, 4)).flat]
    assert of == sorted(of) and of.count(0) == of.count(1)


@pytest.mark.parametrize("shape, devices", [((3, 1), (2, 2)), ((2, 3), (2, 2, 2))])
def test_a_mesh_that_hosts_cannot_share_is_refused(shape, devices):
    with pytest.raises(UserError, match=r"cannot be shared evenly by \d processes: give a --mesh"):
        sharding.make_mesh(shape, devices=hosts(*devices))


@pytest.mark.parametrize("data, model", [(1, 8), (2, 4), (8, 1)])
def test_every_parameter_of_the_real_model_has_a_place(data, model):
    cfg, on = random_checkpoint.config(), sharding.abstract_mesh(data, model)
    sharding.check(cfg, on)
    placed = sharding.of_params(cfg, on)
    assert placed.keys() == maira2.parameter_specs(cfg).keys()
    parts = {
        path: math.prod(leaf.shape) // math.prod(leaf.sharding.shard_shape(leaf.shape)) for path, leaf in placed.items()
    }
    vision = {"fc1", "fc2"} if model == 8 else {"query", "key", "value", "out", "fc1", "fc2"}
    language = {"qkv", "out", "gate_up", "down"}
    wanted = {("vision", "layers", name, "kernel") for name in vision}
    wanted |= {("vision", "layers", name, "bias") for name in vision - {"out", "fc2"}}
    wanted |= {("language", "layers", name, "kernel") for name in language}
    wanted |= {("language", "embed"), ("language", "lm_head")}
    assert parts == {path: model if path in wanted else 1 for path in placed}
    assert placed["language", "embed"].shape == (32256, 4096)
    assert placed["language", "layers", "qkv", "kernel"].shape == (32, 4096, 32, 3, 128)


def test_what_comes_after_the_site_is_not_loaded():
    cfg, on = random_checkpoint.config(), sharding.abstract_mesh(1, 1)

    def shapes(site: str) -> dict[str, tuple[int, ...]]:
        placed = sharding.of_params(cfg, on, stop=Site.parse(site, cfg))
        return {".".join(path): leaf.shape for path, leaf in placed.items()}

    middle = shapes("language.15.resid_post")
    assert middle["language.layers.down.kernel"][0] == 16 and middle["vision.layers.fc1.kernel"][0] == 12
    assert not {"language.norm.scale", "language.lm_head"} & middle.keys()
    assert shapes("language.15.resid_mid") == middle
    assert shapes("language.embed")["language.layers.down.kernel"][0] == 1
    assert {name.split(".")[0] for name in shapes("projector.1")} == {"vision", "projector"}
    assert shapes("vision.3.resid_mid")["vision.layers.fc1.kernel"][0] == 4
    assert {name.split(".")[0] for name in shapes("vision.output")} == {"vision"}


@pytest.mark.parametrize(
    "devices, gigabytes, rows, mesh",
    [
        (1, None, 4, (1, 1)),
        (8, None, 4, (4, 1)),
        (8, 80, 32, (8, 1)),
        (8, 16, 32, (4, 2)),  # 13.8 GB
        (4, 16, 6, (2, 2)),
        (8, 3, 32, (1, 8)),
    ],
)
def test_the_chosen_mesh_holds_the_parameters_and_divides_the_batch(devices, gigabytes, rows, mesh, monkeypatch):
    cfg = random_checkpoint.config()
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    monkeypatch.setattr(sharding, "device_memory", lambda: gigabytes and gigabytes * 10**9)

    def nbytes(on: AbstractMesh) -> int:
        return sharding.bytes_per_device(sharding.of_params(cfg, on, jnp.bfloat16))

    assert sharding.chosen_mesh(cfg, nbytes, rows) == mesh
