"""A mesh of 8 forced host devices gives what one device gives."""

import subprocess
import sys

import pytest
from jax.sharding import AbstractMesh

from maira_jax.errors import UserError
from maira_jax.model import sharding
from tests.helpers.paths import ROOT
from tests.helpers.tiny_model import CFG

_CHECK = """
import jax
jax.config.update("jax_num_cpu_devices", 8)
import dataclasses
import sys
from pathlib import Path
import numpy as np
from maira_jax.checkpoint import store
from maira_jax.generation.decode import generate
from maira_jax.model import maira2, sharding
from tests.helpers.tiny_model import CFG, all_sites, batch, make, relative

cfg = dataclasses.replace(
    CFG,
    vision=dataclasses.replace(CFG.vision, num_attention_heads=8),
    text=dataclasses.replace(CFG.text, num_attention_heads=8, num_key_value_heads=8),
)
directory = Path(sys.argv[1])
params, _ = make(directory, cfg)
store.save(directory, params)
tokens, mask, pixels, _ = batch((1, 2, 1, 1, 3, 1, 2, 1))
forward = jax.jit(maira2.forward, static_argnames=("cfg", "read"))
read = all_sites(cfg)
one = forward(params, cfg, tokens, mask, pixels, read=read)
words, _ = generate(params, cfg, tokens, mask, pixels, max_new_tokens=12, eos_id=-1)
for data, model in ((4, 2), (2, 4), (8, 1), (1, 8)):
    mesh = sharding.mesh(data, model)
    split, _ = store.load(directory, mesh)
    rows = sharding.of_batch(mesh)
    put = [jax.device_put(x, rows) for x in (tokens, mask, pixels)]
    kernel = split["language"]["layers"]["gate"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[2] == kernel.shape[2] // model
    many = forward(split, cfg, *put, read=read)
    assert len(many.logits.sharding.device_set) == 8
    apart = {name: relative(value, np.asarray(one.sites[name])) for name, value in many.sites.items()}
    apart["logits"] = relative(many.logits, np.asarray(one.logits))
    print(data, "x", model, max(apart.values()))
    assert max(apart.values()) < 1e-5, apart
    if model == 4:
        spoken, _ = generate(split, cfg, *put, max_new_tokens=12, eos_id=-1)
        np.testing.assert_array_equal(spoken, words)
print("equal")
"""


def test_data_and_model_parallel_equal_one_device(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _CHECK, str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    print(done.stdout)
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]


def test_a_mesh_that_would_cut_a_head_is_refused():
    sharding.check(CFG, AbstractMesh((4, 2), sharding.AXES))
    with pytest.raises(UserError, match=r"model = 4 does not divide text_config.num_attention_heads = 6.*\[1, 2\]"):
        sharding.check(CFG, AbstractMesh((2, 4), sharding.AXES))
