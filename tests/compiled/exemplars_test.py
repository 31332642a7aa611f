"""The exemplar pass at the real size, as the compilers of a TPU slice and of a host with eight H100s make it."""

import math
import re

import jax
import numpy as np
import pytest

from interp.config import BLOCK_TOKENS, N_POOL, N_SAMPLE
from interp.exemplars.index_pass import device_program, running_index, shared_sae
from launch.benches import absent_devices
from sae.autoencoder import Sae

D_MODEL, N_FEATURES, K, MAX_LENGTH = 4096, 16384, 256, 32


def compiled(name):
    if sentence := absent_devices.missing(absent_devices.platform(name)):
        pytest.skip(sentence)
    cfg = running_index.IndexConfig(n_top=10, n_sample=N_SAMPLE, n_pool=N_POOL, block_tokens=BLOCK_TOKENS, seed=0)
    devices = absent_devices.devices(name)
    mesh = shared_sae.feature_mesh(devices, N_FEATURES)
    arguments = device_program.abstract_arguments(mesh, cfg, D_MODEL, N_FEATURES)
    sae = Sae({"W_enc": jax.ShapeDtypeStruct((D_MODEL, N_FEATURES), np.float32)}, 0.5, K, (N_FEATURES,))
    route = device_program.suited_route(devices, sae, cfg, MAX_LENGTH)
    return device_program.add_block.lower(*arguments, cfg=cfg, top_k=None, route=route, mesh=mesh).compile()


@pytest.mark.parametrize("name", ["v5e:2x2", pytest.param("v5p:2x2x2", marks=pytest.mark.drill), "8xh100"])
def test_devices_do_not_wait_for_each_other_and_move_whole_rows(name):
    program = compiled(name)
    text = program.as_text()
    assert not re.search(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter", text)
    assert not re.search(r" scatter\(", text)
    for sizes in re.findall(r" gather\(.*slice_sizes=\{([\d,]+)\}", text):
        assert math.prod(map(int, sizes.split(","))) >= 512, sizes
    # Only what is kept of each feature is sorted, when its places are full.
    kept = 2 * N_SAMPLE * N_FEATURES // len(program.input_shardings[0][0].running.n_contexts.device_set)
    for shape in re.findall(r"= \(?f32\[([\d,]+)\][^=]* sort\(", text):
        assert math.prod(map(int, shape.split(","))) <= kept, shape
    memory = program.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    assert peak + memory.temp_size_in_bytes < 2**30
