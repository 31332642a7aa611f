"""The bootstrap over studies: whole studies are drawn, since what comes from one study is not independent."""

import functools

import numpy as np

LEVEL = 0.95  # of every interval


@functools.lru_cache(maxsize=64)
def study_weights(n_studies: int, n_resamples: int, seed: tuple[int, ...]) -> np.ndarray:
    """How often each study is in each resample, float64 [n_resamples, n_studies]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_studies, np.full(n_studies, 1 / max(n_studies, 1)), size=n_resamples).astype(np.float64)


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """The percentile interval of a measure from its values in the resamples, [n_resamples]; NaN is left out."""
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(values, (tail, 1 - tail))
    return float(low), float(high)
