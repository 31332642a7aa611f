"""Trains on eight forced host devices, on every mesh, and prints what the mesh tests compare, as JSON."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sae.training.checkpoints import Checkpoints
from sae.training.trainer import Trainer
from tests.helpers.sae import activations, resolved_sae, resolved_train

MESHES = ((1, 1), (8, 1), (4, 2), (2, 4), (1, 8))
D, F, BATCH, STEPS = 24, 256, 64, 50
_COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def trainer_on(shape: tuple[int, int], dtype: str = "float32") -> Trainer:
    """The trainer of a small autoencoder on a mesh of this shape."""
    sae = resolved_sae(d_model=D, n_features=F, k=4, group_sizes=(128, 64, 32, 16, 16), group_weights=(0.2,) * 5)
    config = resolved_train(
        steps=STEPS,
        batch_size=BATCH,
        lr=3e-3,
        warmup_steps=5,
        decay_start=40,
        auxk_alpha=1 / 32,
        dead_tokens=640,
        threshold_beta=0.999,
        threshold_start=5,
        dtype=dtype,
        mesh=shape,
    )
    return Trainer(sae, config)


def _batches() -> np.ndarray:
    x = activations(BATCH * STEPS, D).reshape(STEPS, BATCH, D)
    x[:, 1] = x[:, 0]  # equal tokens give equal activations: ties
    return x


def _listed(metrics: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: np.concatenate([np.asarray(part[name]) for part in metrics]).tolist() for name in metrics[0]}


def _trained(trainer: Trainer, x: np.ndarray) -> tuple[Any, dict[str, list[Any]]]:
    """The state after all batches, taken in two halves, and the metrics of all steps."""
    state, metrics = trainer.init(x[0], 4.0), []
    for half in np.split(x, 2):
        state, measured = trainer.run(state, trainer.place(half), 4.0)
        metrics.append(measured)
    return state, _listed(metrics)


def _on(shape: tuple[int, int], x: np.ndarray) -> dict[str, Any]:
    trainer = trainer_on(shape)
    half = trainer.place(x[: STEPS // 2])
    hlo = trainer.chunk.lower(trainer.init(x[0], 4.0), half, np.float32(4)).compile().as_text().splitlines()
    state, metrics = _trained(trainer, x)
    ordered = trainer.ordered(state)
    return {
        "collectives": [
            line.strip()
            for line in hlo
            if any(f" {kind}(" in line or f" {kind}-start(" in line for kind in _COLLECTIVES)
        ],
        "metrics": metrics,
        "params": {name: np.asarray(value).tolist() for name, value in ordered.params.items()},
        "tokens_since_fired": np.asarray(ordered.tokens_since_fired).tolist(),
    }


def _resumed(first: tuple[int, int], second: tuple[int, int], x: np.ndarray) -> dict[str, Any]:
    """The first half on one mesh and the second half, from its checkpoint, on another."""
    directory, metrics = Path(tempfile.mkdtemp()), {}
    for shape, half in zip((first, second), np.split(x, 2), strict=True):
        trainer = trainer_on(shape)
        checkpoints = Checkpoints(directory, trainer)
        state, scale = checkpoints.load_latest() or (trainer.init(x[0], 4.0), 4.0)
        state, metrics = trainer.run(state, trainer.place(half), scale)
        checkpoints.save(state, scale)
        checkpoints.close()
    return {"metrics": _listed([metrics])}


def _all_meshes() -> dict[str, Any]:
    jax.config.update("jax_num_cpu_devices", 8)
    x = _batches()
    results = {str(shape): _on(shape, x) for shape in MESHES}
    for first, second in (((1, 1), (4, 2)), ((4, 2), (1, 1))):
        results[f"from {first} to {second}"] = _resumed(first, second, x)
    for shape in MESHES[:2]:
        trainer = trainer_on(shape, "bfloat16")
        state, _ = _trained(trainer, x)
        results[f"{shape} bfloat16"] = {name: np.asarray(value).tolist() for name, value in state.params.items()}
    return results


if __name__ == "__main__":
    json.dump(_all_meshes(), sys.stdout)
