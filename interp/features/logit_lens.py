"""The logit lens: which tokens each feature's decoder row promotes and suppresses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_ROWS = 1024  # decoder rows multiplied with the unembedding together


def extreme_tokens(
    w_dec: np.ndarray, scale: np.ndarray, lm_head: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The tokens whose logits each decoder row raises and lowers the furthest.

    A row is multiplied with the final norm's weights and the unembedding; the norm's division only scales all logits by
    one factor. The mean over the vocabulary is subtracted from the logits, to which no softmax is sensitive.

    Args:
      w_dec: decoder. float32 [F, d_model]
      scale: weights of the final norm. [d_model]
      lm_head: unembedding. [d_model, vocab]
      count: number of tokens of each kind.

    Returns:
      Promoted token ids int32 [F, count] and their logits float32 [F, count], by falling logit; and the same of
      suppressed tokens, by rising logit.
    """
    head = jnp.asarray(lm_head, jnp.float32) * jnp.asarray(scale, jnp.float32)[:, None]  # [d_model, vocab]
    head = head - head.mean(1, keepdims=True)
    count = min(count, head.shape[1])
    parts = [_extremes(jnp.asarray(w_dec[i : i + _ROWS]), head, count) for i in range(0, len(w_dec), _ROWS)]
    high, high_id, low, low_id = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in range(4))
    return high_id, high, low_id, -low


@functools.partial(jax.jit, static_argnames="count")
def _extremes(rows: jax.Array, head: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    logits = jnp.matmul(rows, head, precision=jax.lax.Precision.HIGHEST)  # [rows, vocab]
    return *jax.lax.top_k(logits, count), *jax.lax.top_k(-logits, count)
