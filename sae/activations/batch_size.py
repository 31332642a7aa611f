"""The batch sizes of a harvest that its configuration leaves open."""

import numpy as np
from jax.typing import DTypeLike

from maira_jax.model.config import Maira2Config

# Without a limit of memory to fill, as on a CPU.
DEFAULT_BATCH_SIZE = 16
# Tokens on one device that keep it as busy as it gets: more of them only take more memory.
_MAX_TOKENS = 2**15
_MAX_BATCH = 64
# Of the memory that the parameters leave, the part that is planned for; the rest is for what XLA adds.
_USED = 0.8
# What a pass of an image encoder takes on one device so that it is as busy as it gets.
_IMAGE_BYTES = 2**32


def automatic_batch_size(
    model: Maira2Config,
    length: int,
    dtype: DTypeLike,
    parameter_bytes: int,
    memory: int | None,
    mesh: tuple[int, int] = (1, 1),
) -> int:
    """The number of studies in a pass: a power of two on each part of the mesh's `data`.

    Args:
      model: the model's configuration.
      length: the longest padded length, in tokens.
      dtype: dtype of the parameters.
      parameter_bytes: bytes of the parameters on one device.
      memory: bytes of one device, None where it has no limit.
      mesh: number of devices along `data` and `model`.
    """
    data, split = mesh
    if memory is None:
        return -(-DEFAULT_BATCH_SIZE // data) * data
    text, size = model.text, np.dtype(dtype).itemsize
    heads = (text.num_attention_heads + 2 * text.num_key_value_heads) * text.head_dim
    # The residual stream with its norms, sums and the copy that is read; queries, keys, values; the MLP's two halves
    # and their product.
    token_bytes = size * (6 * text.hidden_size + (2 * heads + 3 * text.intermediate_size) / split)
    if size > 2:  # flash attention is for 16 bits: logits and probabilities
        token_bytes += 2 * size * text.num_attention_heads * length / split
    fitting = min(_USED * (memory - parameter_bytes) / (length * token_bytes), _MAX_TOKENS / length, _MAX_BATCH)
    return data * 2 ** max(int(np.log2(max(fitting, 1))), 0)


def automatic_image_batch(image_bytes: int, parameter_bytes: int, memory: int | None, data: int) -> int:
    """The number of images in a pass of an encoder: a power of two on each part of the mesh's `data`.

    Args:
      image_bytes: bytes that a pass takes for each image.
      parameter_bytes: bytes of the parameters on one device.
      memory: bytes of one device, None where it has no limit.
      data: number of devices along `data`.
    """
    if memory is None:
        return -(-DEFAULT_BATCH_SIZE // data) * data
    fitting = min(_USED * (memory - parameter_bytes), _IMAGE_BYTES) / image_bytes
    return data * 2 ** max(int(np.log2(max(fitting, 1))), 0)
