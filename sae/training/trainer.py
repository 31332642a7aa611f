"""The training step of a Matryoshka BatchTopK autoencoder, as dictionary_learning takes it.

One step is a pure function of the state and a batch; several steps are chained on the device by `lax.scan`, so that
the host never waits for one.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sae import autoencoder, mesh
from sae.kernels import kth_largest
from sae.training import gradients, loss, resample
from sae.training.config import SaeConfig, TrainConfig
from sae.variants import VARIANTS

_CLIP_NORM = 1.0
# Silent tokens are counted in int32 and stop here, far above any sensible limit for a dead feature.
_COUNT_LIMIT = 2**30

Metrics = dict[str, jax.Array]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "adam", "threshold", "silent", "step"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class State:
    """Everything that a step reads and writes.

    Attributes:
      params: see `sae.autoencoder`.
      adam: optax's state; its moments are dicts like `params`.
      threshold: running threshold of the normalised activations, -1 before it is first set. float32 []
      silent: tokens since each feature was last kept. int32 [F]
      step: steps taken. int32 []
    """

    params: autoencoder.Params
    adam: Any
    threshold: jax.Array
    silent: jax.Array
    step: jax.Array


def _adam(config: TrainConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=1e-8)


def learning_rate(step: jax.Array, config: TrainConfig) -> jax.Array:
    """Linear warmup from 0, constant, and linear to 0 from `decay_start` on."""
    scale = jnp.ones((), jnp.float32)
    if config.decay_start < config.steps:
        left = (config.steps - step) / (config.steps - config.decay_start)
        scale = jnp.where(step >= config.decay_start, left, scale)
    if config.warmup_steps:
        scale = jnp.where(step < config.warmup_steps, step / config.warmup_steps, scale)
    return config.lr * scale


def _without_parallel_part(gradient: jax.Array, w_dec: jax.Array) -> jax.Array:
    """Takes from each row of the decoder's gradient its part along the row of the decoder."""
    directions = w_dec / (jnp.linalg.norm(w_dec, axis=1, keepdims=True) + 1e-6)
    return gradient - (gradient * directions).sum(1, keepdims=True) * directions


def _clip(gradients: autoencoder.Params) -> tuple[autoencoder.Params, jax.Array]:
    norm = optax.global_norm(gradients)
    scale = jnp.minimum(1.0, _CLIP_NORM / (norm + 1e-6))
    return jax.tree.map(lambda g: g * scale, gradients), norm


def _next_threshold(threshold: jax.Array, smallest: jax.Array, step: jax.Array, config: TrainConfig) -> jax.Array:
    beta = config.threshold_beta
    moved = jnp.where(threshold < 0, smallest, beta * threshold + (1 - beta) * smallest)
    return jnp.where(step > config.threshold_start, moved, threshold)


def _gradients(
    state: State, x: jax.Array, sae: SaeConfig, config: TrainConfig, method: kth_largest.Method
) -> tuple[autoencoder.Params, jax.Array, jax.Array, Metrics]:
    """Gradients of the loss on `x [B, d]`, and what the step learns on the way.

    The features are chosen from the pre-activations of the whole batch; everything after that, the bulk of the work
    and of the memory, may be done in parts.

    Returns:
      Gradients, the smallest kept activation, the tokens each feature has been silent [F], metrics.
    """
    params = state.params
    pre = loss.contract("bd,df->bf", x - params["b_dec"], params["W_enc"], config.dtype) + params["b_enc"]
    z = jax.nn.relu(pre)
    variant = VARIANTS.get(sae.kind)
    order = mesh.stripe(jnp.arange(sae.n_features, dtype=jnp.int32), config.mesh[1])
    keep, smallest = variant.select(z, sae.k, order, method)
    silent = jnp.where(keep.any(0), 0, jnp.minimum(state.silent + x.shape[0], _COUNT_LIMIT))
    dead = silent >= config.dead_tokens
    by_entries = method == "candidates" and variant.at_most_k
    if by_entries or config.microbatches == 1:
        found, terms = gradients.of_tokens(params, x, z, keep, dead, None, sae, config, by_entries)
    else:
        found, terms = gradients.in_parts(params, x, z, keep, dead, sae, config)
    errors = terms["level_errors"]
    main = (jnp.array(sae.group_weights, jnp.float32) * errors).sum()
    metrics = {
        "loss": main + config.auxk_alpha * terms["auxk"] + sae.l1 * terms["l1"],
        "main": main,
        "auxk": terms["auxk"],
        "level_errors": errors,
        "fvu": errors[-1] / loss.spread(x),
        "l0": keep.sum(1, dtype=jnp.float32).mean(),
        "l1": terms["l1"],
        "dead": dead.sum(),
    }
    return found, smallest, silent, metrics


def _resampled(state: State, x: jax.Array, config: TrainConfig) -> State:
    dead = state.silent >= config.dead_tokens

    def replace() -> State:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        params, adam, replaced = resample.replace_dead(state.params, state.adam, dead, x, key, config.mesh[1])
        return State(params, adam, state.threshold, jnp.where(replaced, 0, state.silent), state.step)

    return lax.cond((state.step % config.resample_every == 0) & dead.any(), replace, lambda: state)


def step(
    state: State, x: jax.Array, sae: SaeConfig, config: TrainConfig, method: kth_largest.Method
) -> tuple[State, Metrics]:
    """One update on normalised activations `x [B, d]`, float32."""
    gradients, smallest, silent, metrics = _gradients(state, x, sae, config, method)
    gradients["W_dec"] = _without_parallel_part(gradients["W_dec"], state.params["W_dec"])
    gradients, norm = _clip(gradients)
    direction, adam = _adam(config).update(gradients, state.adam)
    rate = learning_rate(state.step, config)
    params = jax.tree.map(lambda p, u: p - rate * u, state.params, direction)
    params["W_dec"] = autoencoder.unit_rows(params["W_dec"])
    threshold = _next_threshold(state.threshold, smallest, state.step, config)
    metrics |= {"lr": rate, "gradient_norm": norm, "threshold": threshold}
    state = State(params, adam, threshold, silent, state.step + 1)
    if config.resample_every:
        state = _resampled(state, x, config)
    return state, metrics


class Trainer:
    """The compiled functions of a training run on its mesh.

    Args:
      sae: the autoencoder.
      config: the training.
      method: how the batch's cut is searched; None for what suits the devices. With "candidates", which is for one
        CPU, the gradients are computed from the kept entries alone.
    """

    def __init__(self, sae: SaeConfig, config: TrainConfig, method: kth_largest.Method | None = None):
        self.sae, self.config = sae, config
        self.mesh = mesh.make_mesh(config.mesh)
        self.method = method or kth_largest.default_method(self.mesh.size)
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

    def init(self, first: jax.Array, scale: float) -> State:
        """The state before the first step. `first [B, d]` are raw activations, which set `b_dec`."""
        key = jax.random.key(self.config.seed)
        return self._init(key, jnp.asarray(first, jnp.float32) / jnp.float32(scale))

    def from_params(self, params: autoencoder.Params) -> State:
        """A fresh state around given parameters of normalised activations, features in order."""
        params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
        return self._striped(_fresh(params))

    def place(self, batches: Any) -> jax.Array:
        """Puts raw activations `[steps, B, d]` on the devices, the batch along the data axis.

        With several processes, each is given the whole batches and keeps its devices' part.
        """
        return jax.make_array_from_callback(batches.shape, self._batches, lambda index: batches[index])

    def run(self, state: State, batches: jax.Array, scale: float) -> tuple[State, Metrics]:
        """Takes a step a batch. The given state is consumed.

        Args:
          state: striped, as every state that this class returns but `ordered`'s.
          batches: raw activations. [steps, B, d]
          scale: what activations are divided by.

        Returns:
          The state, and each metric with a leading axis of steps.
        """
        return self.chunk(state, batches, jnp.float32(scale))

    def ordered(self, state: State) -> State:
        """A copy with the features in order, the same for every mesh: for checkpoints and export."""
        return self._ordered(state)

    def striped(self, state: State) -> State:
        """The inverse of `ordered`."""
        return self._striped(state)

    def abstract_state(self) -> State:
        """Shapes, dtypes and shardings of a state, for restoring a checkpoint."""
        shapes = jax.eval_shape(
            self._init_state, jax.random.key(0), jax.ShapeDtypeStruct((1, self.sae.d_model), jnp.float32)
        )
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, self.shardings
        )

    def _init_state(self, key: jax.Array, first: jax.Array) -> State:
        median = autoencoder.geometric_median(first)
        params = autoencoder.init(key, self.sae.d_model, self.sae.n_features, median)
        return self._reorder(mesh.stripe_params, _fresh(params))

    def _reorder(self, reorder: Any, state: State) -> State:
        n = self.config.mesh[1]
        # The silent counters lie along the features like a bias.
        silent = reorder({"b_enc": state.silent}, n)["b_enc"]
        adam = state.adam._replace(mu=reorder(state.adam.mu, n), nu=reorder(state.adam.nu, n))
        moved = State(reorder(state.params, n), adam, state.threshold, silent, state.step)
        return jax.tree.map(jnp.copy, moved)

    def _chunk(self, state: State, batches: jax.Array, scale: jax.Array) -> tuple[State, Metrics]:
        def body(state: State, x: jax.Array) -> tuple[State, Metrics]:
            return step(state, x.astype(jnp.float32) / scale, self.sae, self.config, self.method)

        return lax.scan(body, state, batches)

    def _state_shardings(self) -> Any:
        """A `State` of shardings."""
        single = mesh.sharding(self.mesh)
        params = {name: mesh.sharding(self.mesh, *spec) for name, spec in mesh.PARAM_SPECS.items()}
        adam = optax.ScaleByAdamState(count=single, mu=params, nu=dict(params))
        feature = mesh.sharding(self.mesh, mesh.FEATURE)
        leaves: dict[str, Any] = {
            "params": params,
            "adam": adam,
            "threshold": single,
            "silent": feature,
            "step": single,
        }
        return State(**leaves)


def _fresh(params: autoencoder.Params) -> State:
    return State(
        params=params,
        adam=optax.scale_by_adam().init(params),
        threshold=jnp.float32(-1.0),
        silent=jnp.zeros(params["b_enc"].shape, jnp.int32),
        step=jnp.int32(0),
    )
