"""The training step, as dictionary_learning takes it: encode, select, gradients, optimiser.

One step is a pure function of the state and a batch; several steps are chained on the device by `lax.scan`, so that
the host never waits for one.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from maira_jax.model.sharding import make_mesh
from maira_jax.run import processes
from sae import autoencoder, mesh
from sae.kernels import nested
from sae.kernels.kth_largest import Search
from sae.training import gradients, loss, optimiser, resample
from sae.training.config import SaeConfig, TrainConfig
from sae.variants import VARIANTS, Selection

# Tokens since a feature fired are counted in int32 and stop here, far above any sensible limit for a dead feature.
_COUNT_LIMIT = 2**30

Metrics = dict[str, jax.Array]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "adam", "threshold", "tokens_since_fired", "step"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and writes.

    Attributes:
      params: the four arrays, see `sae.autoencoder`.
      adam: the state of optax's Adam; its moments are dicts like `params`.
      threshold: running threshold of the normalised activations, -1 before it is first set. float32 []
      tokens_since_fired: tokens since each feature was last selected. int32 [F]
      step: number of steps taken. int32 []
    """

    params: autoencoder.Params
    adam: Any
    threshold: jax.Array
    tokens_since_fired: jax.Array
    step: jax.Array


def _next_threshold(threshold: jax.Array, smallest: jax.Array, step: jax.Array, config: TrainConfig) -> jax.Array:
    beta = config.threshold_beta
    moved = jnp.where(threshold < 0, smallest, beta * threshold + (1 - beta) * smallest)
    return jnp.where(step > config.threshold_start, moved, threshold)


@dataclasses.dataclass(frozen=True)
class Route:
    """The two parts of a step that one CPU computes in another way, with the same result.

    Attributes:
      select: gives, from pre-activations after the ReLU, float32 [B, F], and a guess of the smallest one that is a
        feature, float32 [], what `gradients` takes for the selected ones, and the smallest of these, float32 [].
      gradients: `sae.training.gradients.by_matrices`, or what gives the same.
    """

    select: Callable[[jax.Array, jax.Array], Selection]
    gradients: Callable[..., tuple[autoencoder.Params, gradients.Terms]]


def route(sae: SaeConfig, config: TrainConfig, kept_entries: bool) -> Route:
    """Chooses the functions of a step.

    Args:
      sae: the autoencoder.
      config: the training.
      kept_entries: look for the largest entries among a few candidates, and compute gradients from the kept entries
        alone where a variant bounds their number: faster on one CPU, slower everywhere else.
    """
    variant = VARIANTS.get(sae.kind)

    by_entries = kept_entries and variant.at_most_k

    def select(z: jax.Array, guess: jax.Array) -> Selection:
        order = mesh.stripe(jnp.arange(sae.n_features, dtype=jnp.int32), config.mesh[1])  # [F]
        keep, smallest = variant.select(z, sae.k, order, Search(kept_entries, guess))
        return keep if by_entries else jnp.where(keep, z, 0.0).astype(config.dtype), smallest

    return Route(select, gradients.by_kept_entries if by_entries else gradients.by_matrices)


class StepCarry(NamedTuple):
    """What a step leaves for the next one in the same call of the device.

    Attributes:
      state: the state.
      factors: the two matrices as products take them: whole along the data axis, in the compute dtype. Empty where
        those of the state are that.
      smallest: the smallest selected activation, or a guess. float32 []
    """

    state: TrainState
    factors: autoencoder.Params
    smallest: jax.Array


def _factors(params: autoencoder.Params, config: TrainConfig) -> autoencoder.Params:
    if config.dtype == "float32" and config.mesh[0] == 1:
        return {}
    whole = {"W_enc": (None, mesh.FEATURE), "W_dec": (mesh.FEATURE, None)}
    cast = mesh.place_params({name: param.astype(config.dtype) for name, param in params.items()})
    return {name: mesh.place(cast[name], *axes) for name, axes in whole.items()}


def batch_gradients(
    carry: StepCarry, x: jax.Array, sae: SaeConfig, config: TrainConfig, route: Route
) -> tuple[autoencoder.Params, jax.Array, jax.Array, Metrics]:
    """Gradients of the loss on normalised activations `x [B, d]`, and what the step learns on the way.

    The features are selected from the pre-activations of the whole batch; everything after that, the bulk of the work
    and of the memory, may be done in parts.

    Returns:
      Gradients, the smallest selected activation [], the tokens since each feature was last selected [F], metrics.
    """
    state, factors, smallest = carry
    params = mesh.place_params(state.params) | factors
    x = mesh.place(x, mesh.DATA, None)
    with jax.named_scope("encode"):
        pre = nested.contract("bd,df->bf", x - params["b_dec"], params["W_enc"], config.dtype) + params["b_enc"]
        # Held apart, or compilers store it before and after the ReLU.
        z = lax.optimization_barrier(jax.nn.relu(pre))  # [B, F]
    with jax.named_scope("select"):
        selected, smallest = route.select(z, smallest)  # [B, F], []
        fired = (selected != 0).sum(0, dtype=jnp.float32)  # [F]
    unfired = jnp.minimum(state.tokens_since_fired + x.shape[0], _COUNT_LIMIT)
    tokens_since_fired = jnp.where(fired > 0, 0, unfired)  # [F]
    dead = tokens_since_fired >= config.dead_tokens  # [F]
    with jax.named_scope("gradients"):
        found, terms = route.gradients(params, x, z, selected, dead, sae, config)
    errors = terms["level_errors"]  # [G]
    main = (jnp.array(sae.group_weights, jnp.float32) * errors).sum()
    metrics = {
        "loss": loss.weighted_sum(main, terms["auxk"], terms["l1"], sae, config),
        "main": main,
        "auxk": terms["auxk"],
        "level_errors": errors,
        "fvu": errors[-1] / loss.total_variance(x),
        "l0": fired.sum() / x.shape[0],
        "l1": terms["l1"],
        "dead": dead.sum(),
    }
    return found, smallest, tokens_since_fired, metrics


def _resampled(state: TrainState, x: jax.Array, config: TrainConfig) -> TrainState:
    dead = state.tokens_since_fired >= config.dead_tokens

    def replace() -> TrainState:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        params, adam, replaced = resample.replace_dead(state.params, state.adam, dead, x, key, config.mesh[1])
        return TrainState(params, adam, state.threshold, jnp.where(replaced, 0, state.tokens_since_fired), state.step)

    def replace_any() -> TrainState:
        return lax.cond(dead.any(), replace, lambda: state)

    due = (state.step % config.resample_every == 0) & (state.step < config.decay_start)
    # Apart from the other condition, since all members of a sweep are at the same step.
    return lax.cond(due, replace_any, lambda: state)


def step(
    carry: StepCarry, x: jax.Array, sae: SaeConfig, config: TrainConfig, route: Route
) -> tuple[StepCarry, Metrics]:
    """One update on normalised activations `x [B, d]`, float32: encode, select, gradients, optimiser."""
    state = carry.state
    gradients, smallest, tokens_since_fired, metrics = batch_gradients(carry, x, sae, config, route)
    with jax.named_scope("optimiser"):
        params, adam, measured = optimiser.update(state.params, gradients, state.adam, state.step, config)
    threshold = _next_threshold(state.threshold, smallest, state.step, config)
    metrics |= measured | {"threshold": threshold}
    state = TrainState(params, adam, threshold, tokens_since_fired, state.step + 1)
    if config.resample_every:
        state = _resampled(state, x, config)
    with jax.named_scope("optimiser"):
        return StepCarry(state, _factors(state.params, config), smallest), metrics


def take_steps(
    state: TrainState, batches: jax.Array, scale: jax.Array, sae: SaeConfig, config: TrainConfig, route: Route
) -> tuple[TrainState, Metrics]:
    """One update for each of `batches [steps, B, d]`, raw activations, which are divided by `scale []`."""

    def body(carry: StepCarry, x: jax.Array) -> tuple[StepCarry, Metrics]:
        return step(carry, x.astype(jnp.float32) / scale, sae, config, route)

    first = StepCarry(state, _factors(state.params, config), jnp.maximum(state.threshold, 0.0))
    carry, metrics = lax.scan(body, first, batches)
    return carry.state, metrics


class Trainer:
    """The compiled functions of a training run on its mesh.

    Args:
      sae: the autoencoder.
      config: the training.
      kept_entries: whether the step takes the route of one CPU, see `route`; None for what suits the devices.
      devices: the devices of the mesh; None for the first ones of the run's processes. For devices that are only
        described, `chunk.lower(abstract_state(), abstract_batches(steps), scale)` can be compiled.

    Attributes:
      count: number of autoencoders that a state holds.
      on_one_cpu: whether the mesh is one CPU.
    """

    count = 1

    def __init__(
        self,
        sae: SaeConfig,
        config: TrainConfig,
        kept_entries: bool | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        self.sae, self.config = sae, config
        self.mesh = make_mesh(config.mesh, (mesh.DATA, mesh.FEATURE), devices or processes.devices())
        self.on_one_cpu = self.mesh.size == 1 and self.mesh.devices.flat[0].platform == "cpu"
        self._route = route(sae, config, self.on_one_cpu if kept_entries is None else kept_entries)
        self.shardings = self._state_shardings()
        self._batches = mesh.sharding(self.mesh, None, mesh.DATA, None)
        single = mesh.sharding(self.mesh)
        self._init = jax.jit(self._init_state, out_shardings=self.shardings)
        self._striped = jax.jit(functools.partial(self._reorder, mesh.stripe_params), out_shardings=self.shardings)
        self._ordered = jax.jit(functools.partial(self._reorder, mesh.unstripe_params), out_shardings=self.shardings)
        self.chunk = jax.jit(
            self._chunk,
            donate_argnums=0,
            in_shardings=(self.shardings, self._batches, single),
            out_shardings=(self.shardings, single),
        )

    def init(self, first: jax.Array, scale: float) -> TrainState:
        """The state before the first step. `first [B, d]` are raw activations, whose geometric median is `b_dec`.

        With several processes `first` is a batch that `place` has given, or the same array on all of them.
        """
        key = jax.random.key(self.config.seed)
        return self._init(key, jnp.asarray(first, jnp.float32) / jnp.float32(scale))

    @property
    def rows(self) -> slice:
        """The part of every batch that lies on this process's devices."""
        return mesh.local_part(self._batches, self._batch_shape(1), 1)

    def place(self, batches: np.ndarray) -> jax.Array:
        """Puts raw activations on the devices, the batch along the data axis.

        Args:
          batches: this process's `rows` of the batches. [steps, rows, d]

        Returns:
          The batches of all processes. [steps, B, d]
        """
        return jax.make_array_from_process_local_data(self._batches, batches, self._batch_shape(len(batches)))

    def run(self, state: TrainState, batches: jax.Array, scale: float) -> tuple[TrainState, Metrics]:
        """Takes one step per batch. The given state is consumed.

        Args:
          state: a striped state, as all methods but `ordered` return.
          batches: raw activations. [steps, B, d]
          scale: number that activations are divided by.

        Returns:
          The state, and each metric with a leading axis of steps.
        """
        return self.chunk(state, batches, jnp.float32(scale))

    def ordered(self, state: TrainState) -> TrainState:
        """A copy with the features in order, the same for every mesh: for checkpoints and export."""
        return self._ordered(state)

    def striped(self, state: TrainState) -> TrainState:
        """The inverse of `ordered`."""
        return self._striped(state)

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of a state, for restoring a checkpoint."""
        shapes = jax.eval_shape(
            self._init_state, jax.random.key(0), jax.ShapeDtypeStruct((1, self.sae.d_model), jnp.float32)
        )
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, self.shardings
        )

    def abstract_batches(self, steps: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        """What `place` gives for the raw activations of `steps` steps."""
        return jax.ShapeDtypeStruct(self._batch_shape(steps), dtype, sharding=self._batches)

    def _batch_shape(self, steps: int) -> tuple[int, int, int]:
        return steps, self.config.batch_size, self.sae.d_model

    def _init_state(self, key: jax.Array, first: jax.Array) -> TrainState:
        median = autoencoder.geometric_median(first)
        params = autoencoder.init(key, self.sae.d_model, self.sae.n_features, median)
        return self._reorder(mesh.stripe_params, _fresh(params))

    def _reorder(self, reorder: Any, state: TrainState) -> TrainState:
        n = self.config.mesh[1]
        # The counters lie along the features like a bias.
        tokens_since_fired = reorder({"b_enc": state.tokens_since_fired}, n)["b_enc"]
        adam = state.adam._replace(mu=reorder(state.adam.mu, n), nu=reorder(state.adam.nu, n))
        moved = TrainState(reorder(state.params, n), adam, state.threshold, tokens_since_fired, state.step)
        return jax.tree.map(jnp.copy, moved)

    def _chunk(self, state: TrainState, batches: jax.Array, scale: jax.Array) -> tuple[TrainState, Metrics]:
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return take_steps(state, batches, scale, self.sae, self.config, self._route)

    def _state_shardings(self) -> Any:
        """A `TrainState` of shardings."""
        single = mesh.sharding(self.mesh)
        specs = mesh.param_specs(self.mesh, self.sae.d_model, self.sae.n_features)
        params = {name: mesh.sharding(self.mesh, *spec) for name, spec in specs.items()}
        adam = optax.ScaleByAdamState(count=single, mu=params, nu=dict(params))
        feature = mesh.sharding(self.mesh, mesh.FEATURE)
        leaves: dict[str, Any] = {
            "params": params,
            "adam": adam,
            "threshold": single,
            "tokens_since_fired": feature,
            "step": single,
        }
        return TrainState(**leaves)


def _fresh(params: autoencoder.Params) -> TrainState:
    return TrainState(
        params=params,
        adam=optimiser.init(params),
        threshold=jnp.float32(-1.0),
        tokens_since_fired=jnp.zeros(params["b_enc"].shape, jnp.int32),
        step=jnp.int32(0),
    )
