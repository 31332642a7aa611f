"""An autoencoder whose features devices share: each encodes all tokens for its own features, without the others."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maira_jax.model.sharding import make_mesh
from sae.autoencoder import Params, Sae, encode
from sae.kernels.kth_largest import row_top_k

FEATURES = "features"  # the mesh axis
# Matrix products on a processor go by this many columns (without AVX-512 by 16), and sum what is left over of them in
# another order.
_COLUMNS = 64


def devices_of(mesh: tuple[int, ...]) -> list[jax.Device]:
    """The devices of this host that share the features: as many as the run's mesh has, or all if it is to be chosen.

    Raises:
      UserError: there are fewer.
    """
    devices = jax.local_devices()
    if not mesh:
        return devices
    data, model = mesh
    return list(make_mesh((data, model), devices=devices).devices.flat)


def feature_mesh(devices: Sequence[jax.Device], n_features: int) -> Mesh:
    """A mesh of as many of the devices as can hold equal shares of the features, whatever their number bit for bit."""
    n = max(n for n in range(1, len(devices) + 1) if n == 1 or can_be_shared(n_features, n))
    return Mesh(np.array(devices[:n]), (FEATURES,))


def can_be_shared(n_features: int, n_devices: int) -> bool:
    """Whether devices can compute equal shares of the features and have the bits of one that computes all of them."""
    return n_features % (_COLUMNS * n_devices) == 0


def by_features(mesh: Mesh, ndim: int) -> NamedSharding:
    """The sharding of an array of `ndim` axes, the last of which are the features."""
    return NamedSharding(mesh, PartitionSpec(*[None] * (ndim - 1), FEATURES))


def everywhere(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device has."""
    return NamedSharding(mesh, PartitionSpec())


@dataclasses.dataclass(frozen=True)
class SharedSae:
    """What encodes, on the devices.

    Attributes:
      mesh: the devices.
      params: `W_enc [d_model, F]` and `b_enc [F]`, which the devices share, and `b_dec [d_model]`.
      threshold: one per feature, shared too. float32 [F]
    """

    mesh: Mesh
    params: Params
    threshold: jax.Array

    @classmethod
    def of(cls, sae: Sae, devices: Sequence[jax.Device]) -> "SharedSae":
        """Shares the features of an autoencoder."""
        mesh = feature_mesh(devices, sae.n_features)
        threshold = np.broadcast_to(np.asarray(sae.threshold, np.float32), sae.n_features)
        places = {"W_enc": by_features(mesh, 2), "b_enc": by_features(mesh, 1), "b_dec": everywhere(mesh)}
        params = {name: jax.device_put(sae.params[name], place) for name, place in places.items()}
        return cls(mesh, params, jax.device_put(threshold, by_features(mesh, 1)))


def features(params: Params, x: jax.Array, threshold: jax.Array, top_k: int | None) -> jax.Array:
    """`sae.autoencoder.encode` of activations in any dtype, which are not moved between devices.

    Args:
      params, threshold: of a `SharedSae`.
      x: activations, on every device. [T, d_model]
      top_k: as for `encode`; the devices count together which features of a token are the largest.

    Returns:
      float32 [T, F], which the devices share.
    """
    f = encode(params, x.astype(jnp.float32), threshold)  # [T, F]
    return f if top_k is None else jnp.where(row_top_k(f, top_k)[0], f, 0.0)  # [T, F]
