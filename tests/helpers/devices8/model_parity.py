"""Data and model parallel passes equal those of one device. Argument: an empty folder."""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np

from maira_jax.checkpoint import convert, store
from maira_jax.generation.decode import generate
from maira_jax.model import sharding
from maira_jax.model.config import Maira2Config
from tests.helpers.random_checkpoint import model_section
from tests.helpers.tiny_model import CFG, all_sites, batch, forward, make, relative


def main(directory: Path) -> None:
    cfg = dataclasses.replace(
        CFG,
        vision=dataclasses.replace(CFG.vision, num_attention_heads=8),
        text=dataclasses.replace(CFG.text, num_attention_heads=8, num_key_value_heads=8),
    )
    params, _ = make(directory, cfg)
    convert.run(model_section(directory), directory / "run")
    inputs = batch((1, 2, 1, 1, 3, 1, 2, 1))[:3]
    read = all_sites(cfg)
    one = forward(params, cfg, *inputs, read=read)
    words, _ = generate(params, cfg, *inputs, max_new_tokens=12, eos_id=-1)
    for data, model in ((4, 2), (2, 4), (8, 1), (1, 8)):
        split, _ = store.load(directory / "run" / "model", (data, model))
        mesh = sharding.mesh_of(split)
        rows = sharding.place_rows(mesh, inputs)
        kernel = split["language"]["layers"]["gate_up"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape)[3] == kernel.shape[3] // model
        with jax.set_mesh(mesh):
            many = forward(split, cfg, *rows, read=read)
        assert len(many.logits.sharding.device_set) == 8
        differences = {name: relative(value, np.asarray(one.sites[name])) for name, value in many.sites.items()}
        differences["logits"] = relative(many.logits, np.asarray(one.logits))
        print(data, "x", model, max(differences.values()))
        assert max(differences.values()) < 1e-5, differences
        if model == 4:
            with jax.set_mesh(mesh):
                spoken, _ = generate(split, cfg, *rows, max_new_tokens=12, eos_id=-1)
            np.testing.assert_array_equal(spoken, words)
    check_int8(directory / "run" / "model", cfg, inputs)
    print("equal")


def check_int8(model: Path, cfg: Maira2Config, inputs: tuple[np.ndarray, ...]) -> None:
    """Weights are rounded alike on a mesh, where the inputs of a product lie on several devices."""
    one, _ = store.load(model, (1, 1), weights="int8")
    many, _ = store.load(model, (2, 4), weights="int8")
    kernel = many["language"]["layers"]["down"]["kernel"]
    assert {shard.data.shape for shard in kernel.values.addressable_shards} == {(4, 96 // 4, 48)}
    jax.tree.map(np.testing.assert_array_equal, many, one)
    expected = forward(one, cfg, *inputs)
    mesh = sharding.mesh_of(many)
    with jax.set_mesh(mesh):
        found = forward(many, cfg, *sharding.place_rows(mesh, inputs))
    assert relative(found.logits, np.asarray(expected.logits)) < 1e-5


if __name__ == "__main__":
    main(Path(sys.argv[1]))
