"""The exemplar pass on the device finds what it finds on the processor, by another route."""

import numpy as np
import pytest

from interp.exemplars.index import SPLITS
from tests.helpers.exemplar_world import build, make_world

pytestmark = pytest.mark.gpu


def test_the_same_exemplars(device, host, at_most):
    world = make_world(n_studies=200, d_model=64, n_features=512)
    (found, found_peak), (expected, expected_peak) = (build(world, 1024, devices=[each]) for each in (device, host))
    for split in SPLITS:
        ours, theirs = found[split], expected[split]
        for name in ("top_context", "sample_context"):
            share = float((getattr(ours, name) != getattr(theirs, name)).mean())
            at_most(share, 1e-3, f"{split}: share of others in {name}")
        for name in ("n_contexts", "n_tokens", "position_sum"):
            counts, others = getattr(ours, name), getattr(theirs, name)
            at_most(float(np.abs(counts - others).sum() / others.sum()), 1e-5, f"{split}: {name}")
        np.testing.assert_array_equal(ours.pool, theirs.pool)
        at_most(float((ours.pool_active != theirs.pool_active).mean()), 1e-4, f"{split}: pool")
        at_most(float(np.abs(ours.top_peak - theirs.top_peak).max() / theirs.top_peak.max()), 1e-5, f"{split}: peaks")
    peaks = np.asarray(expected_peak)
    at_most(float(np.abs(np.asarray(found_peak) - peaks).max() / peaks.max()), 1e-5, "peaks of studies")
