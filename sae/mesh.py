"""Where an SAE's arrays live on a (data, feature) mesh, and the striped order of features.

With n devices along the feature axis, feature i is stored at device i mod n. Every prefix of the features is then
spread evenly, so each nested group is a static slice on every device and nothing moves between devices to form it.
Inside the training program arrays are striped; everywhere else (checkpoints, exports) features are in order.

The two matrices, their gradients and Adam's moments are also split along d over the data axis, whose devices would
otherwise all take the same update. What multiplies the batch is gathered once for a step, in the dtype of the products.
"""

from collections.abc import Callable, Sequence

import jax
from jax import lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

DATA, FEATURE = "data", "feature"
_FEATURE_AXIS = {"W_enc": 1, "b_enc": 0, "W_dec": 0, "b_dec": None}


def sharding(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """The sharding that lays an array's axes along the named mesh axes."""
    return NamedSharding(mesh, PartitionSpec(*axes))


def local_part(place: NamedSharding, shape: tuple[int, ...], axis: int) -> slice:
    """The part of one axis of an array that the devices of this process hold."""
    places = place.addressable_devices_indices_map(shape).values()
    held = [index[axis].indices(shape[axis]) for index in places if index is not None]
    return slice(min(start for start, _, _ in held), max(stop for _, stop, _ in held))


def param_specs(on: Mesh | AbstractMesh, d_model: int, n_features: int) -> dict[str, PartitionSpec]:
    """How the parameters lie on a mesh while they train."""
    return {
        "W_enc": _spec(on, (d_model, n_features), (DATA, FEATURE)),
        "b_enc": PartitionSpec(FEATURE),
        "W_dec": _spec(on, (n_features, d_model), (FEATURE, DATA)),
        "b_dec": PartitionSpec(),
    }


def _spec(on: Mesh | AbstractMesh, shape: tuple[int, ...], axes: Sequence[str | None]) -> PartitionSpec:
    """Splits each axis of a shape over the mesh axis named for it, where that divides it."""
    sizes = [1 if name is None else on.shape[name] for name in axes]
    return PartitionSpec(
        *(name if not length % size else None for name, length, size in zip(axes, shape, sizes, strict=True))
    )


def place(x: jax.Array, *axes: str | None) -> jax.Array:
    """Lays an array's axes along the named axes of the mesh that is in use, where they divide it."""
    on = jax.sharding.get_abstract_mesh()
    return lax.with_sharding_constraint(x, _spec(on, x.shape, axes)) if on.size > 1 else x


def place_params(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Lays gradients along the mesh in use as their parameters lie: each device gets the sums that it needs."""
    on = jax.sharding.get_abstract_mesh()
    if on.size <= 1:
        return params
    specs = param_specs(on, *params["W_enc"].shape)
    return {name: lax.with_sharding_constraint(value, specs[name]) for name, value in params.items()}


def splits_tokens() -> bool:
    """Whether the batch is split over devices of the mesh in use."""
    on = jax.sharding.get_abstract_mesh()
    return not on.empty and on.shape[DATA] > 1


def total(counts: Callable[..., jax.Array], matrix: jax.Array, *others: jax.Array) -> jax.Array:
    """`counts(matrix [B, F], *others)`, where counts of a matrix are the sums of those of its parts.

    On a mesh each device counts in its own part, and one all-reduce adds them up.
    """
    if jax.sharding.get_abstract_mesh().size <= 1:
        return counts(matrix, *others)

    def of_part(*arguments: jax.Array) -> jax.Array:
        return lax.psum(counts(*arguments), (DATA, FEATURE))

    in_specs = (PartitionSpec(DATA, FEATURE), *(PartitionSpec(),) * len(others))
    return jax.shard_map(of_part, in_specs=in_specs, out_specs=PartitionSpec())(matrix, *others)


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
