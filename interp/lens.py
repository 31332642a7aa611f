"""What an autoencoder's weights say about its features."""

import numpy as np


def similar_features(w_dec: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other features of every feature by the cosine of their decoder rows.

    Args:
      w_dec: float32 [F, d_model].
      count: neighbours of each feature; fewer where there are fewer others.

    Returns:
      features int32 [F, count] and cosines float32 [F, count], by falling cosine.
    """
    rows = w_dec / np.maximum(np.linalg.norm(w_dec, axis=1, keepdims=True), 1e-12)
    n = len(rows)
    count = min(count, n - 1)
    features, cosines = np.empty((n, count), np.int32), np.empty((n, count), np.float32)
    for begin in range(0, n, 1024):  # a block of rows at a time: [1024, F] cosines
        cosine = rows[begin : begin + 1024] @ rows.T
        own = np.arange(len(cosine))
        cosine[own, begin + own] = -np.inf
        order = np.argsort(-cosine, axis=1, kind="stable")[:, :count]
        features[begin : begin + 1024] = order
        cosines[begin : begin + 1024] = np.take_along_axis(cosine, order, axis=1)
    return features, cosines
