"""Flax parameters on disk: an orbax checkpoint beside the model's json and tokenizer files."""

import shutil
from pathlib import Path

import jax
from orbax.checkpoint import v1 as ocp

from maira_jax.errors import UserError
from maira_jax.model import maira2, sharding
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params

_PARAMS = "params"


def save(model_dir: Path, params: Params) -> None:
    """Writes `params` under `model_dir`, whole or not at all."""
    path = (model_dir / _PARAMS).absolute()
    if path.exists():
        shutil.rmtree(path)
    ocp.save(path, params)


def load(model_dir: Path, mesh: jax.sharding.Mesh | None = None) -> tuple[Params, Maira2Config]:
    """Reads parameters, straight to their places on `mesh` (None: the first device alone).

    Raises:
      UserError: `model_dir` holds no converted model, or one that `mesh` does not divide.
    """
    path = (Path(model_dir) / _PARAMS).absolute()
    if not path.is_dir():
        raise UserError(f"{model_dir} holds no converted model: run launch.convert into it first")
    cfg = Maira2Config.from_dir(model_dir)
    mesh = sharding.one_device() if mesh is None else mesh
    sharding.check(cfg, mesh)
    shapes = jax.eval_shape(lambda: maira2.init(cfg, jax.random.key(0)))
    saved = ocp.metadata(path).metadata
    abstract = jax.tree.map(
        lambda leaf, there, place: jax.ShapeDtypeStruct(leaf.shape, there.dtype, sharding=place),
        shapes,
        saved,
        sharding.of_params(shapes, mesh),
    )
    return ocp.load(path, abstract), cfg
