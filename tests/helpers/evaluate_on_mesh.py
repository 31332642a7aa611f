"""Measures an autoencoder on forced host devices, on every mesh, and prints what the test compares, as JSON."""

import json
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maira_jax.model.sharding import make_mesh
from sae import mesh
from sae.evaluation import calibrate, metrics
from sae.evaluation.striped import HeldOutTokens, StripedSae, in_memory
from tests.helpers.sae import activations, random_sae

MESHES = ((1, 1), (8, 1), (2, 4), (1, 8))
N, D, F, K, GROUPS = 5000, 24, 256, 4, (128, 64, 32, 16, 16)
_COLLECTIVE = re.compile(r" = (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\(")


def _largest_collectives(sae: StripedSae, tokens: HeldOutTokens) -> dict[str, int]:
    """Entries of the largest array that moves between devices, by program."""
    (batch,) = tokens
    center, bounds, threshold = jnp.zeros(D), jnp.arange(63, dtype=jnp.int32), jnp.float32(1)
    lowered = {
        "of_batch": calibrate.of_batch.lower(sae, batch, K * N + 1),
        "counts": calibrate._counts.lower(sae, batch, bounds),
        "sums": metrics._sums.lower(sae, batch, threshold, center),
    }
    sizes = {}
    for name, program in lowered.items():
        arrays = [dims for line in _COLLECTIVE.findall(program.compile().as_text()) for dims in _dims(line[0])]
        sizes[name] = max([0, *(int(np.prod(dims)) for dims in arrays)])
    return sizes


def _dims(shapes: str) -> list[list[int]]:
    return [[int(n) for n in dims.split(",") if n] or [1] for dims in re.findall(r"[a-z]+\d*\[([\d,]*)\]", shapes)]


def _on(shape: tuple[int, int], x: np.ndarray) -> dict[str, Any]:
    on = make_mesh(shape, (mesh.DATA, mesh.FEATURE))
    params = mesh.stripe_params(random_sae(x, GROUPS, K, 0.0).params, shape[1])
    sae = StripedSae.placed(params, on, GROUPS)
    whole, parts = in_memory(on, x, N), in_memory(on, x, 2100)
    threshold = calibrate.threshold_for_l0(sae, [whole], K)
    measured, density = metrics.evaluate(sae, threshold, [parts])
    return {
        "threshold": threshold,
        "threshold_of_parts": calibrate.threshold_for_l0(sae, [parts], K),
        "measured": measured,
        "whole": metrics.evaluate(sae, threshold, [whole])[0],
        "density": density.tolist(),
        "collectives": _largest_collectives(sae, whole),
    }


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    held_out = activations(N, D)
    json.dump({str(shape): _on(shape, held_out) for shape in MESHES}, sys.stdout)
