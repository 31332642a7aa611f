"""What benchmarks train autoencoders on: synthetic activations whose features are known, and arrays of real ones."""

from pathlib import Path
from typing import Protocol

import numpy as np

from launch.benches.synthetic import SyntheticFeatures
from maira_jax.errors import UserError
from sae.evaluation import probing

_HELD_OUT = 20_000
_PROBED = (1, 4)  # features that a probe reads
# A label is probed if it has this many tokens, and as many without it, in either half of the held-out ones.
_MIN_TOKENS = 20


class TokenStream(Protocol):
    """Activations in batches, and held-out ones that autoencoders are measured on.

    Attributes:
      batch_size: tokens in a batch.
      held_out: float32 [n, d_model].
    """

    batch_size: int
    held_out: np.ndarray

    def batches(self, first: int, n: int) -> np.ndarray:
        """The `n` batches from number `first` on, float32 [n, batch_size, d_model]."""

    def measures(self, w_dec: np.ndarray, features: np.ndarray) -> dict[str, float]:
        """What is known of the held-out tokens, measured in an autoencoder.

        Args:
          w_dec: decoder directions. [F, d_model]
          features: features of the held-out tokens. float32 [n, F]
        """


class SyntheticStream:
    """A `TokenStream` of synthetic features; its measures are the features recovered, and their mean cosine."""

    def __init__(self, features: SyntheticFeatures, batch_size: int, seed: int):
        self.batch_size, self._features, self._seed = batch_size, features, seed
        self.held_out = features.sample(_HELD_OUT, (seed, 2))

    def batches(self, first: int, n: int) -> np.ndarray:
        """See `TokenStream`."""
        return np.stack([self._features.sample(self.batch_size, (self._seed, 1, i)) for i in range(first, first + n)])

    def measures(self, w_dec: np.ndarray, features: np.ndarray) -> dict[str, float]:
        """See `TokenStream`."""
        recovered, cosine = self._features.recovered(w_dec, np.any(features > 0, axis=0))
        return {"recovered": recovered, "cosine": cosine}


class ArrayStream:
    """A `TokenStream` of an array's rows, shuffled anew for each pass; its measures are those of k-sparse probes.

    The last rows are held out, a tenth or 20,000, in their order, so that few documents are on both sides.

    Args:
      source: a .npy file of [tokens, d_model].
      labels: a .npy file of bool [tokens, labels]; None: there are none.
      batch_size: tokens in a batch.
      seed: seed of the order.

    Raises:
      UserError: a file cannot be read, or holds something else.
    """

    def __init__(self, source: Path, labels: Path | None, batch_size: int, seed: int):
        array = _array(source)
        n_held_out = min(len(array) // 10, _HELD_OUT)
        if not np.issubdtype(array.dtype, np.floating) or n_held_out < 2:
            raise UserError(
                f"--source={source} holds {array.dtype} {array.shape}: give floats [tokens, width], 20 tokens or more"
            )
        self.batch_size, self._seed = batch_size, seed
        self._tokens, self.held_out = array[:-n_held_out], array[-n_held_out:].astype(np.float32)
        self._labels = None
        if labels is not None:
            value = _array(labels)
            if len(value) != len(array):
                raise UserError(f"--labels={labels} has {len(value)} rows for {len(array)} tokens: give one for each")
            self._labels = value[-n_held_out:].astype(bool)  # [n, labels]

    def batches(self, first: int, n: int) -> np.ndarray:
        """See `TokenStream`."""
        size, rows = self.batch_size, len(self._tokens)
        begin, end = first * size, (first + n) * size
        passes = range(begin // rows, -(-end // rows))
        orders = [np.random.default_rng((self._seed, epoch)).permutation(rows) for epoch in passes]
        order = np.concatenate(orders)[begin - passes[0] * rows :][: end - begin]
        return self._tokens[order].astype(np.float32).reshape(n, size, -1)

    def measures(self, w_dec: np.ndarray, features: np.ndarray) -> dict[str, float]:
        """See `TokenStream`: the mean AUROC over the labels of probes on 1 and on 4 features; none without labels."""
        return {} if self._labels is None else probe_auroc(features, self._labels)


def _array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a .npy array ({error}): give one of [tokens, columns]") from error
    if array.ndim != 2:
        raise UserError(f"{path} has the shape {array.shape}: give an array of [tokens, columns]")
    return array


def probe_auroc(features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How well labels are read from few features: the mean area under the ROC curve over the labels.

    The features are those with the largest correlation with the label on the first half of the tokens, on which
    the probes are fitted too; they are scored on the second half.

    Args:
      features: float32 [n, F].
      labels: bool [n, labels].

    Returns:
      `probe_1` and `probe_4`, by the number of features.

    Raises:
      UserError: no label has enough tokens with and without it.
    """
    half = len(features) // 2
    counts = np.stack([labels[:half].sum(0), (~labels[:half]).sum(0), labels[half:].sum(0), (~labels[half:]).sum(0)])
    y = labels[:, counts.min(0) >= _MIN_TOKENS]  # [n, probed labels]
    if not y.shape[1]:
        raise UserError(
            f"no label has {_MIN_TOKENS} tokens with and without it in either half of the held-out ones: give more"
        )
    x, centred = features[:half] - features[:half].mean(0), y[:half] - y[:half].mean(0)
    spread = np.maximum(x.std(0), 1e-9)  # [F]
    order = np.argsort(-np.abs((x / spread).T @ centred), axis=0, kind="stable")  # [F, labels]
    found = {}
    for k in _PROBED:
        chosen = np.stack([features[:, order[:k, label]] for label in range(y.shape[1])])  # [labels, n, k]
        counted = np.ones((y.shape[1], half), bool)
        weights, bias = probing.fit_sparse(chosen[:, :half], y[:half].T, counted)
        scores = np.einsum("lnk,lk->ln", chosen[:, half:], weights) + bias[:, None]  # [labels, n / 2]
        found[f"probe_{k}"] = float(np.mean([_auroc(*pair) for pair in zip(scores, y[half:].T, strict=True)]))
    return found


def _auroc(score: np.ndarray, positive: np.ndarray) -> float:
    (wins,) = probing.pair_wins(score, positive, np.zeros(len(score), np.int64), 1)[0]
    return float(wins / (positive.sum() * (~positive).sum()))
