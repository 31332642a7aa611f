"""The training loop of all phases: resumable at any moment, with the same result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from maira_jax.phantom.pretraining.batch_streams import BatchStream, prefetch
from maira_jax.run.progress import progress

_LOG_EVERY = 20


def fit(
    directory: Path,
    state: Any,
    stream: BatchStream,
    step: Callable[[Any, Any], tuple[Any, jax.Array]],
    n_steps: int,
    checkpoint_every: int,
    desc: str,
) -> tuple[Any, list[list[float]]]:
    """Runs `step` over the stream from the newest checkpoint in `directory`, or from `state`.

    Args:
      directory: folder of this phase's checkpoints.
      state: tree of arrays (parameters and optimiser state) before the first step.
      stream: batches of the phase, from their start.
      step: function (state, batch) -> (state, loss); it may donate the state.
      n_steps: number of steps of the phase.
      checkpoint_every: steps between checkpoints.
      desc: name of the progress bar.

    Returns:
      The last state, and [step, loss] of every 20th step.
    """
    history: list[list[float]] = []
    start = 0
    with ocp.training.Checkpointer(
        directory.absolute(),
        save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
        preservation_policy=ocp.training.preservation_policies.LatestN(1),
        cleanup_tmp_directories=True,
    ) as checkpointer:
        if checkpointer.latest is not None:
            start = checkpointer.latest.step
            state = checkpointer.load(start, jax.tree.map(_abstract, state))
            saved = checkpointer.metadata(start).custom_metadata
            assert isinstance(saved, dict)
            history = saved["history"]
            stream.seek(saved["position"])
        batches = prefetch(stream)
        bar = progress(total=n_steps, unit="step", desc=desc, initial=start)
        for number in range(start + 1, n_steps + 1):
            batch, position = next(batches)
            state, loss = step(state, batch)
            bar.update()
            if number % _LOG_EVERY == 0:
                history.append([number, float(loss)])
                bar.set_postfix(loss=f"{float(loss):.4f}", refresh=False)
            if number % checkpoint_every == 0 or number == n_steps:
                checkpointer.save(number, state, custom_metadata={"history": history, "position": position})
        bar.close()
    return state, history


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
