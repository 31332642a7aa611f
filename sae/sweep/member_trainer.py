"""Autoencoders of one shape by one program, whose learning rates and L1 weights are its arguments.

M: members.
"""

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp

from sae import mesh
from sae.training.config import SaeConfig, TrainConfig
from sae.training.trainer import Metrics, Trainer, TrainState, take_steps

MemberConfig = tuple[SaeConfig, TrainConfig]


def grouped(configs: Sequence[MemberConfig]) -> list[list[int]]:
    """Indices of those of `configs` that differ in the learning rate and the L1 weight alone, group by group."""
    groups: dict[MemberConfig, list[int]] = {}
    for index, (sae, train) in enumerate(configs):
        shape = dataclasses.replace(sae, l1=0.0), dataclasses.replace(train, lr=0.0)
        groups.setdefault(shape, []).append(index)
    return list(groups.values())


class MemberTrainer(Trainer):
    """A `Trainer` of several autoencoders: arrays of its states have a leading axis of members.

    The counts of steps have none, since all members are at the same step, and neither do the batches: all take the
    same. On one CPU each member takes its steps in the same program, as it would alone, as many at a time as there are
    cores, which one small autoencoder leaves idle between its products; elsewhere all take them in one batched program.

    Args:
      configs: the autoencoders and their trainings, which differ in `l1` and `lr` alone.

    Attributes:
      alone: the trainer of each member alone, for states that `member` gives.
    """

    def __init__(self, configs: Sequence[MemberConfig]):
        self.alone = [Trainer(*config) for config in configs]
        self.count = len(configs)
        self._rates = {
            "l1": jnp.array([sae.l1 for sae, _ in configs], jnp.float32),  # [M]
            "lr": jnp.array([train.lr for _, train in configs], jnp.float32),  # [M]
        }
        super().__init__(*configs[0])
        self._member = jax.jit(_member, out_shardings=self.alone[0].shardings)
        self._joined = jax.jit(_joined, out_shardings=self.shardings)
        self._steps, self._compiled = jax.jit(self._steps_of_member, donate_argnums=0), False

    def member(self, state: TrainState, index: int) -> TrainState:
        """The state of one member, which `alone[index]` takes."""
        return self._member(state, index)

    def run(self, state: TrainState, batches: jax.Array, scale: float) -> tuple[TrainState, Metrics]:
        """As `Trainer.run`; on one CPU it returns when all steps have been taken."""
        if not self.on_one_cpu:
            return super().run(state, batches, scale)

        def steps(index: int) -> tuple[TrainState, Metrics]:
            rates = {name: values[index] for name, values in self._rates.items()}
            # What one thread sends is computed one after the other; what several send, side by side.
            return jax.block_until_ready(self._steps(self.member(state, index), rates, batches, jnp.float32(scale)))

        found = [] if self._compiled else [steps(0)]  # several threads would each compile it
        self._compiled = True
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found += pool.map(steps, range(len(found), self.count))
        states, metrics = zip(*found, strict=True)
        return self._joined(states), {name: jnp.stack([own[name] for own in metrics], 1) for name in metrics[0]}

    def _init_state(self, key: jax.Array, first: jax.Array) -> TrainState:
        one = self.alone[0]._init_state(key, first)
        return _with(one, jax.tree.map(lambda x: jnp.broadcast_to(x, (self.count, *x.shape)), _own(one)))

    def _reorder(self, reorder: Any, state: TrainState) -> TrainState:
        reordered = self.alone[0]._reorder

        def of_member(own: dict[str, Any]) -> dict[str, Any]:
            return _own(reordered(reorder, _with(state, own)))

        return _with(jax.tree.map(jnp.copy, state), jax.vmap(of_member)(_own(state)))

    def _chunk(self, state: TrainState, batches: jax.Array, scale: jax.Array) -> tuple[TrainState, Metrics]:
        def of_member(own: dict[str, Any], rates: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
            return self._steps_of_member(_with(state, own), rates, batches, scale)

        after, metrics = jax.vmap(of_member)(_own(state), self._rates)
        # Of what members share, all have the same.
        shared = jax.tree.map(lambda x: x[0], after)
        return _with(shared, _own(after)), {name: value.swapaxes(0, 1) for name, value in metrics.items()}

    def _steps_of_member(
        self, state: TrainState, rates: dict[str, Any], batches: jax.Array, scale: jax.Array
    ) -> tuple[TrainState, Metrics]:
        sae, config = dataclasses.replace(self.sae, l1=rates["l1"]), dataclasses.replace(self.config, lr=rates["lr"])
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return take_steps(state, batches, scale, sae, config, self._route)

    def _state_shardings(self) -> Any:
        one = self.alone[0].shardings

        def with_members(place: jax.sharding.NamedSharding) -> jax.sharding.NamedSharding:
            return mesh.sharding(self.mesh, None, *place.spec) if place.spec else place

        return _with(one, jax.tree.map(with_members, _own(one)))


def _own(state: TrainState) -> dict[str, Any]:
    """What each member has of its own, of a state of one or of all of them."""
    return {
        "params": state.params,
        "moments": (state.adam.mu, state.adam.nu),
        "threshold": state.threshold,
        "tokens_since_fired": state.tokens_since_fired,
    }


def _with(state: TrainState, own: dict[str, Any]) -> TrainState:
    """A state with the counts of steps of `state`, and `own` as `_own` gives it."""
    mu, nu = own["moments"]
    adam = state.adam._replace(mu=mu, nu=nu)
    return TrainState(own["params"], adam, own["threshold"], own["tokens_since_fired"], state.step)


def _member(state: TrainState, index: jax.Array) -> TrainState:
    return _with(state, jax.tree.map(lambda x: x[index], _own(state)))


def _joined(states: Sequence[TrainState]) -> TrainState:
    """The states of all members as one."""
    return _with(states[0], jax.tree.map(lambda *parts: jnp.stack(parts), *map(_own, states)))
