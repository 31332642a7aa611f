"""What the tests of all formats share: a small autoencoder and its metrics, and comparisons."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch

from maira_jax.run import files
from maira_jax.run.stages.stage import Stage
from sae.autoencoder import Sae
from sae.saved import save_sae

D, F, GROUPS, FACTOR = 24, 96, (48, 24, 12, 6, 6), 5.5
META = {
    "normalization": FACTOR,
    "source": {"site": "language.3.resid_post", "checkpoint": "phantom", "token_filter": "paper"},
    "train": {"lr": 1e-3, "steps": 10, "batch_size": 64},
    "sae": {"group_weights": [0.2] * 5},
}
METRICS = {
    "tokens": 1200, "fvu": 0.125, "explained_variance": 0.875, "cosine": 0.9, "l0": 4.0, "dead": 3, "dense": 1,
    "prefixes": [{"features": 48, "fvu": 0.25, "l0": 2.5}, {"features": 96, "fvu": 0.125, "l0": 4.0}],
}  # fmt: skip


def finished_sae(workdir: Path, folder: str, sae: Sae) -> None:
    """A finished `train` stage in `workdir/folder` that holds `sae`."""
    with Stage(workdir, folder, {"sae": {"k": sae.k}}) as stage:
        save_sae(stage.dir, sae)
        files.write_json(stage.dir / "metrics.json", METRICS)
        stage.finish({})


def check_same(found: Sae, expected: Sae, rtol: float = 0.0) -> None:
    """Everything that decides the features is the same, except for the relative error `rtol` of numbers."""
    assert (found.k, found.group_sizes, found.per_token) == (expected.k, expected.group_sizes, expected.per_token)
    np.testing.assert_allclose(found.threshold, expected.threshold, rtol=rtol)
    for name, value in expected.params.items():
        np.testing.assert_allclose(found.params[name], value, rtol=rtol, err_msg=name)


def check_same_features(ours: Sae, x: np.ndarray, features: torch.Tensor, reconstruction: torch.Tensor) -> None:
    """Another program's features and reconstruction of activations `x [B, D]` are ours."""
    f = ours.encode(jnp.asarray(x))
    assert 200 < (features.numpy() > 0).sum() < features.numel()
    np.testing.assert_allclose(f, features, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.decode(f), reconstruction, rtol=1e-4, atol=1e-4)
