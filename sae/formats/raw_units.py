"""What all formats share: the conversion to raw units, and the checks of an autoencoder that was read."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from maira_jax.errors import UserError, first_line
from sae import autoencoder
from sae.autoencoder import Sae

ARRAYS = ("W_enc", "b_enc", "W_dec", "b_dec")


def exported(sae: Sae, fold_normalization: bool) -> tuple[dict[str, np.ndarray], float | np.ndarray, float]:
    """What a format writes of an autoencoder.

    Args:
      sae: the autoencoder, in raw units.
      fold_normalization: whether the written autoencoder takes raw activations, not normalised ones.

    Returns:
      The four arrays of `ARRAYS`, float32; the threshold, one number or float32 [F]; and the factor that raw
      activations are divided by to normalise them.
    """
    factor = float(sae.meta.get("normalization", 1.0))
    params, threshold = autoencoder.fold(sae.params, sae.threshold, 1.0 if fold_normalization else 1.0 / factor)
    return {name: np.array(params[name], order="C") for name in ARRAYS}, threshold, factor


def imported(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    *,
    threshold: float | np.ndarray,
    k: int,
    group_sizes: Sequence[int] = (),
    per_token: bool = False,
    factor: float = 1.0,
    folded: bool = True,
    meta: Mapping[str, Any],
) -> Sae:
    """Checks what was read from `path` and turns it into an autoencoder of raw activations.

    Args:
      path: the file, for messages.
      arrays: W_enc [d, F], b_enc [F], W_dec [F, d] and b_dec [d], of any floating-point dtype.
      threshold: one number, or one number per feature [F].
      k: number of features kept per token; 0 where the file does not say.
      group_sizes: number of features of each Matryoshka group; empty for a single group.
      per_token: whether the k largest features of each token are kept; see `Sae`.
      factor: what activations were divided by in training.
      folded: whether the file's autoencoder takes raw activations, not divided ones.
      meta: what the file says about its origin.

    Raises:
      UserError: shapes do not fit, or a value is not finite.
    """
    if np.ndim(arrays.get("W_enc", 0.0)) != 2:
        raise UserError(f"{path} has no W_enc of two dimensions: give a whole autoencoder")
    d, f = arrays["W_enc"].shape
    threshold = np.asarray(threshold, np.float32)
    shapes = {"W_enc": (d, f), "b_enc": (f,), "W_dec": (f, d), "b_dec": (d,)}
    for name, shape in shapes.items():
        if name not in arrays or arrays[name].shape != shape:
            raise UserError(f"{path} has no {name} of shape {shape}: give a whole autoencoder")
    if threshold.shape not in ((), (f,)):
        raise UserError(f"{path} has thresholds of shape {threshold.shape} for {f} features: copy the file again")
    for name, array in {**arrays, "threshold": threshold}.items():
        if not np.isfinite(np.asarray(array, np.float32)).all():
            raise UserError(f"{path} holds values in {name} that are not finite: copy the file again")
    sizes = tuple(int(size) for size in group_sizes) or (f,)
    if sum(sizes) != f or min(sizes) < 1:
        raise UserError(f"{path} has groups of {sizes} features, but {f} features: copy the file again")
    if not 0 <= k <= f or not factor > 0:
        raise UserError(f"{path} says k = {k} and a factor of {factor} for {f} features: copy the file again")
    if threshold.ndim and (threshold == threshold[0]).all():
        threshold = threshold[0]
    params, raw_threshold = autoencoder.fold(
        {name: arrays[name] for name in ARRAYS}, threshold, 1.0 if folded else factor
    )
    return Sae(
        params={name: jnp.asarray(params[name]) for name in ARRAYS},
        threshold=raw_threshold,
        k=k,
        group_sizes=sizes,
        meta=dict(meta) | {"normalization": factor},
        per_token=per_token,
    )


def centred(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Turns an encoder that takes x into one that takes x - `b_dec`, with the same features: only `b_enc` changes."""
    wide = {name: np.asarray(arrays[name], np.float64) for name in ("W_enc", "b_enc", "b_dec")}
    b_enc = wide["b_enc"] + wide["b_dec"] @ wide["W_enc"]  # [F]
    return dict(arrays) | {"b_enc": b_enc.astype(np.float32)}


def unit_decoder(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Decoder rows of norm 1, their norms folded into the encoder: the same reconstruction without a threshold."""
    norms = np.maximum(np.linalg.norm(np.asarray(arrays["W_dec"], np.float32), axis=1), 1e-8)  # [F]
    return dict(arrays) | {
        "W_enc": arrays["W_enc"] * norms,  # [d, F]
        "b_enc": arrays["b_enc"] * norms,  # [F]
        "W_dec": arrays["W_dec"] / norms[:, None],  # [F, d]
    }


def refuse_missing(path: Path, arrays: Iterable[str], required: Iterable[str]) -> None:
    """Refuses a file that lacks one of the `required` arrays.

    Raises:
      UserError: an array is missing.
    """
    missing = sorted(set(required) - set(arrays))
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: give a whole autoencoder")


def damaged(path: Path, error: Exception) -> UserError:
    """The error for a file that a library cannot read, to be raised from the library's own `error`."""
    return UserError(f"{path} is truncated or damaged ({first_line(error)}): copy the file again")


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All arrays of a safetensors file, floating-point ones as float32, and its metadata.

    Raises:
      UserError: the file is damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise damaged(path, error) from error
    return {name: as_float32(array) for name, array in arrays.items()}, metadata


def as_float32(array: np.ndarray) -> np.ndarray:
    """The array as float32 if its values are of another floating-point dtype; its strides stay."""
    return array if np.issubdtype(array.dtype, np.integer) else array.astype(np.float32, order="K", copy=False)
