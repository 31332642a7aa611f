"""What all formats share: the conversion to raw units, and the checks of an autoencoder that was read."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from maira_jax.errors import UserError, first_line
from sae import autoencoder
from sae.autoencoder import Sae

ARRAYS = ("W_enc", "b_enc", "W_dec", "b_dec")
# What a file says of its origin that is read again, each an object.
_ORIGINS = ("source", "train", "sae", "dictionary_learning", "saelens")
_LARGEST = float(np.finfo(np.float32).max)


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
    arrays: Mapping[str, Any],
    *,
    threshold: Any,
    k: Any,
    group_sizes: Any = (),
    per_token: bool = False,
    factor: Any = 1.0,
    folded: bool = True,
    takes_raw: bool = False,
    unit_rows: bool = False,
    meta: Mapping[str, Any],
) -> Sae:
    """Checks what was read from `path`, as it was read, and turns it into an autoencoder of raw activations.

    Args:
      path: the file, for messages.
      arrays: W_enc [d, F], b_enc [F], W_dec [F, d] and b_dec [d], of any floating-point dtype; others are ignored.
      threshold: one number, or one number per feature [F].
      k: number of features kept per token; 0 or None where the file does not say, which `per_token` needs.
      group_sizes: number of features of each Matryoshka group; empty for a single group.
      per_token: whether the k largest features of each token are kept; see `Sae`.
      factor: what activations were divided by in training.
      folded: whether the file's autoencoder takes raw activations, not divided ones.
      takes_raw: whether the file's encoder takes x, not x - `b_dec`.
      unit_rows: whether features are in units of the norms of the decoder's rows.
      meta: what the file says about its origin.

    Raises:
      UserError: something is missing, of another kind or shape, or not finite.
    """
    arrays = four_arrays(path, arrays)
    f = arrays["b_enc"].size
    threshold = _thresholds(path, threshold, f)
    sizes = tuple(whole(path, "a group size", size) for size in listed(path, "group sizes", group_sizes)) or (f,)
    if sum(sizes) != f or min(sizes) < 1:
        raise UserError(f"{path} has groups of {sizes} features, but {f} features: copy the file again")
    k, factor = whole(path, "k", 0 if k is None else k), _number(path, "factor", factor)
    if not per_token <= k <= f or not factor > 0:
        raise UserError(f"{path} says k = {k} and a factor of {factor} for {f} features: copy the file again")
    meta = {name: part(path, meta, name) if name in _ORIGINS else value for name, value in meta.items()}
    with np.errstate(all="ignore"):  # what becomes infinite is refused
        if takes_raw:
            arrays = _centred(arrays)
        if unit_rows:
            arrays = _unit_decoder(arrays)
        params, raw_threshold = autoencoder.fold(arrays, threshold, 1.0 if folded else factor)
    for name, array in {**params, "threshold": raw_threshold}.items():
        if not np.isfinite(array).all():
            raise UserError(f"{path} holds values in {name} that are not finite: copy the file again")
    return Sae(
        params={name: jnp.asarray(params[name]) for name in ARRAYS},
        threshold=raw_threshold,
        k=k,
        group_sizes=sizes,
        meta=meta | {"normalization": factor},
        per_token=per_token,
    )


def four_arrays(path: Path, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of `ARRAYS`, float32, with their strides.

    Raises:
      UserError: one is missing, holds no numbers or has a shape that does not fit.
    """
    refuse_missing(path, arrays, ARRAYS)
    found = {name: np.asarray(arrays[name]) for name in ARRAYS}
    for name, array in found.items():
        if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
            raise UserError(f"{path} holds {array.dtype} values in {name}: give a whole autoencoder")
    if found["W_enc"].ndim != 2 or not found["W_enc"].size:
        raise UserError(f"{path} has no W_enc of two dimensions: give a whole autoencoder")
    d, f = found["W_enc"].shape
    for name, shape in {"b_enc": (f,), "W_dec": (f, d), "b_dec": (d,)}.items():
        if found[name].shape != shape:
            raise UserError(f"{path} has no {name} of shape {shape}: give a whole autoencoder")
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        return {name: array.astype(np.float32, order="K", copy=False) for name, array in found.items()}


def _thresholds(path: Path, threshold: Any, f: int) -> np.ndarray:
    """One threshold for all features, or one of each. float32 [] or [F]"""
    try:
        found = np.asarray(threshold, np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} has thresholds that are not numbers: copy the file again") from error
    if found.shape not in ((), (f,)):
        raise UserError(f"{path} has thresholds of shape {found.shape} for {f} features: copy the file again")
    return found[0] if found.ndim and (found == found[0]).all() else found


def part(path: Path, config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The object in a field of a configuration; an empty one where it is absent or null.

    Raises:
      UserError: the field holds something else.
    """
    found = config.get(name)
    if not isinstance(found, dict | None):
        raise UserError(f"{path} says {name} = {found!r:.60}, which is no object: copy its folder again")
    return found or {}


def whole(path: Path, name: str, value: Any) -> int:
    """A whole number, of JSON or in an array of one.

    Raises:
      UserError: it is something else.
    """
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UserError(f"{path} says {name} = {value!r:.60}, which is no whole number: copy its folder again")
    return int(value)


def _number(path: Path, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise UserError(f"{path} says {name} = {value!r:.60}, which is no finite number: copy its folder again")
    return float(value)


def listed(path: Path, name: str, value: Any) -> list[Any]:
    """A list, of JSON or an array's values.

    Raises:
      UserError: it is something else.
    """
    if not isinstance(value, list | tuple | np.ndarray):
        raise UserError(f"{path} says {name} = {value!r:.60}, which is no list: copy its folder again")
    return list(np.reshape(value, -1)) if isinstance(value, np.ndarray) else list(value)


def _centred(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Turns an encoder that takes x into one that takes x - `b_dec`, with the same features: only `b_enc` changes."""
    wide = {name: np.asarray(arrays[name], np.float64) for name in ("W_enc", "b_enc", "b_dec")}
    b_enc = wide["b_enc"] + wide["b_dec"] @ wide["W_enc"]  # [F]
    return dict(arrays) | {"b_enc": b_enc.astype(np.float32)}


def _unit_decoder(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
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
    """All arrays of a safetensors file, and its metadata.

    Raises:
      UserError: the file is damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise damaged(path, error) from error
    return arrays, metadata
