"""A mesh of 8 forced host devices gives what one device gives."""

import subprocess
import sys
from pathlib import Path

_CHECK = """
import jax
jax.config.update("jax_num_cpu_devices", 8)
import sys
from pathlib import Path
import numpy as np
from maira_jax.checkpoint import store
from maira_jax.generate import generate
from maira_jax.model import maira2, sharding
from tests.model_parity_test import CFG, batch, make

directory = Path(sys.argv[1])
params, _ = make(directory, CFG)
store.save(directory, params)
tokens, mask, pixels, _ = batch((1, 2, 1, 1))
one = maira2.forward(params, CFG, tokens, mask, pixels).logits
words, _ = generate(params, CFG, tokens, mask, pixels, max_new_tokens=12, eos_id=-1)
forward = jax.jit(maira2.forward, static_argnames="cfg")
for data, model in ((4, 2), (1, 2), (2, 1)):
    mesh = sharding.mesh(data, model)
    split, _ = store.load(directory, mesh)
    rows = sharding.of_batch(mesh)
    put = [jax.device_put(x, rows) for x in (tokens, mask, pixels)]
    kernel = split["language"]["layers"]["gate"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[2] == kernel.shape[2] // model
    many = forward(split, CFG, *put).logits
    assert len(many.sharding.device_set) == data * model
    assert np.abs(np.asarray(many) - np.asarray(one)).max() < 1e-5 * np.abs(np.asarray(one)).max()
    spoken, _ = generate(split, CFG, *put, max_new_tokens=12, eos_id=-1)
    np.testing.assert_array_equal(spoken, words)
print("equal")
"""


def test_data_and_model_parallel_equal_one_device(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _CHECK, str(tmp_path)],
        capture_output=True, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]
