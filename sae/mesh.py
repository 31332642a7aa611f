"""Where an SAE's arrays live on a (data, feature) mesh, and the striped order of features.

With n devices along the feature axis, feature i is stored at device i mod n. Every prefix of the features is then
spread evenly, so each nested group is a static slice on every device and nothing moves between devices to form it.
Inside the training program arrays are striped; everywhere else (checkpoints, exports) features are in order.
"""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA, FEATURE = "data", "feature"
PARAM_SPECS = {
    "W_enc": PartitionSpec(None, FEATURE),
    "b_enc": PartitionSpec(FEATURE),
    "W_dec": PartitionSpec(FEATURE, None),
    "b_dec": PartitionSpec(),
}
_FEATURE_AXIS = {"W_enc": 1, "b_enc": 0, "W_dec": 0, "b_dec": None}


def sharding(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """The sharding that lays an array's axes along the named mesh axes."""
    return NamedSharding(mesh, PartitionSpec(*axes))


def stripe(x: jax.Array, n: int, axis: int = 0) -> jax.Array:
    """Ordered features along `axis` to striped ones."""
    return _swap(x, (x.shape[axis] // n, n), axis)


def unstripe(x: jax.Array, n: int, axis: int = 0) -> jax.Array:
    """Striped features along `axis` to ordered ones."""
    return _swap(x, (n, x.shape[axis] // n), axis)


def _swap(x: jax.Array, split: tuple[int, int], axis: int) -> jax.Array:
    if 1 in split:
        return x
    parts = x.reshape(*x.shape[:axis], *split, *x.shape[axis + 1 :])  # [..., *split, ...]
    return parts.swapaxes(axis, axis + 1).reshape(x.shape)


def stripe_params(params: dict[str, jax.Array], n: int) -> dict[str, jax.Array]:
    """Stripes a dict of arrays that are named and shaped as the parameters (also Adam's moments)."""
    return {name: x if (axis := _FEATURE_AXIS[name]) is None else stripe(x, n, axis) for name, x in params.items()}


def unstripe_params(params: dict[str, jax.Array], n: int) -> dict[str, jax.Array]:
    """The inverse of `stripe_params`."""
    return {name: x if (axis := _FEATURE_AXIS[name]) is None else unstripe(x, n, axis) for name, x in params.items()}
