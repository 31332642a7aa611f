"""Promoted and suppressed tokens against the logits of the whole vocabulary."""

import numpy as np

from interp.features import logit_lens


def test_promoted_tokens_are_the_largest_centred_logits():
    rng = np.random.default_rng(2)
    w_dec, scale, head = rng.normal(size=(1100, 7)), rng.uniform(0.5, 2, 7), rng.normal(size=(7, 30)) + 3
    up, high, down, low = logit_lens.extreme_tokens(w_dec.astype(np.float32), scale, head, 4)
    for i in (0, 1023, 1024, 1099):
        logits = (w_dec[i] * scale) @ head
        order = np.argsort(logits)
        assert up[i].tolist() == order[::-1][:4].tolist() and down[i].tolist() == order[:4].tolist()
        np.testing.assert_allclose(high[i], logits[up[i]] - logits.mean(), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(low[i], logits[down[i]] - logits.mean(), rtol=1e-3, atol=1e-3)
