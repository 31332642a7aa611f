"""What the vision tower and the language model share: parameters, and the scan over stacked blocks.

A part of the model is an `nnx.Module` whose constructor (configuration, key) states every parameter once: shape,
initialiser, and the logical names of its axes, from which `sharding` derives where it lies on a mesh and
`checkpoint.layout` its shape in a checkpoint. What runs is a pure function of a plain nested dict of arrays: `bind`
builds the module under `jax.eval_shape`, where nothing is computed or allocated, and puts the dict's arrays in the
place of its parameters, all while the function is traced. `nnx.jit`, or an `nnx.State` as an argument of `jax.jit`,
would take the module apart and rebuild it in Python at every call: 1 to 66 ms for this model, against 0.04 for a dict.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, Self, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx, struct

from maira_jax.model.int8 import product
from maira_jax.model.sites import Layer, Site

Params = dict[str, Any]  # a nested dict of arrays
Stack = Params | tuple[Params, ...]  # parameters of blocks: [layers, ...] each, or those of each layer (`unstack`)
Hook = Callable[[jax.Array, jax.Array], jax.Array]  # (residual stream, site code) -> residual stream
Axes = tuple[str, ...]  # logical names
ParameterPath = tuple[str, ...]  # the keys that lead to a parameter
M = TypeVar("M", bound=nnx.Module)
S = TypeVar("S")  # what blocks carry along, such as a key-value cache
P = ParamSpec("P")
R = TypeVar("R")
Make = Callable[[Any, jax.Array], M]  # a module's constructor: (configuration, key) -> module

LAYERS = "layers"  # the logical axis of stacked blocks
FUSED = "fused"  # the logical axis, the next to last one, along which linear layers of one input lie side by side


class ParameterSpec(NamedTuple):
    """A parameter as its module states it: its shape, and the logical name of each axis."""

    shape: tuple[int, ...]
    axes: Axes


def parameter(
    init: jax.nn.initializers.Initializer, key: jax.Array | None, shape: tuple[int, ...], axes: Axes
) -> nnx.Param:
    """States a float32 parameter. key: None for an initialiser that draws nothing."""
    return nnx.Param(init(key, shape, jnp.float32), axes=axes)  # type: ignore[arg-type]


def linear(d_in: int, d_out: int, axes: Axes, rngs: nnx.Rngs) -> nnx.Linear:
    """States a linear layer. axes: the names of the input's and of the output's axis."""
    return nnx.Linear(d_in, d_out, rngs=rngs, kernel_metadata={"axes": axes}, bias_metadata={"axes": axes[1:]})


class NormalLinear(nnx.Module):
    """States a linear layer with a kernel of normally distributed values and a bias of zeros; axes as in `linear`."""

    def __init__(self, d_in: int, d_out: int, axes: Axes, stddev: float, key: jax.Array):
        self.kernel = parameter(nnx.initializers.normal(stddev), key, (d_in, d_out), axes)
        self.bias = parameter(nnx.initializers.zeros, None, (d_out,), axes[1:])


class BiasFreeLinear(nnx.Module):
    """States a linear layer without a bias, or several of one input that are computed as one product.

    Args:
      d_out: the axes of the output; `FUSED` names the one that tells several layers apart.
      axes: the names of the input's axis and of the output's axes.
    """

    def __init__(self, d_in: int, d_out: tuple[int, ...], axes: Axes, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal(in_axis=0, out_axis=tuple(range(1, 1 + len(d_out))))
        self.kernel = parameter(init, rngs.params(), (d_in, *d_out), axes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., d_in] -> [..., *d_out]."""
        return product(x, self.kernel.get_value())


def exact_float32(run: Callable[P, R]) -> Callable[P, R]:
    """Products of a model with float32 parameters, the first argument of `run`, are of float32.

    Left alone, a GPU rounds their factors to 10 bits and a TPU to 7.
    """

    @functools.wraps(run)
    def traced(*args: P.args, **kwargs: P.kwargs) -> R:
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(args[0])} - {jnp.dtype("int8")}
        with jax.default_matmul_precision("highest") if dtypes == {jnp.dtype("float32")} else contextlib.nullcontext():
            return run(*args, **kwargs)

    return traced


def stacked(make: Make[M], cfg: Any, n_layers: int, key: jax.Array) -> M:
    """States `n_layers` blocks as one module, whose parameters have the leading axis `LAYERS`."""
    keys = jax.random.split(key, n_layers)
    stack = jax.vmap(lambda key: nnx.state(make(cfg, key), nnx.Param))(keys)
    stack = jax.tree.map(
        lambda leaf: nnx.Param(leaf[...], axes=(LAYERS, *leaf.axes)), stack, is_leaf=lambda x: isinstance(x, nnx.Param)
    )
    return nnx.merge(_structure(make, cfg), stack)


@functools.cache
def _structure(make: Make[M], cfg: Any) -> nnx.GraphDef[M]:
    return nnx.split(nnx.eval_shape(lambda: make(cfg, jax.random.key(0))))[0]


def bind(make: Make[M], cfg: Any, params: Params) -> M:
    """The module that `make` builds, with `params` in the place of its own parameters."""
    return nnx.merge(_structure(make, cfg), params)


def init(make: Make[nnx.Module], cfg: Any, key: jax.Array) -> Params:
    """Random parameters of a module, float32, as its constructor states them; blocks are stacked on a leading axis."""
    return nnx.to_pure_dict(nnx.state(make(cfg, key), nnx.Param))


def parameter_specs(make: Make[nnx.Module], cfg: Any) -> dict[ParameterPath, ParameterSpec]:
    """Every parameter of a module, by the keys that lead to it in `init`'s nested dict."""
    state = nnx.state(nnx.eval_shape(lambda: make(cfg, jax.random.key(0))), nnx.Param)
    return {tuple(map(str, path)): ParameterSpec(leaf.shape, leaf.axes) for path, leaf in nnx.to_flat_state(state)}


def unstack(stack: Params) -> tuple[Params, ...]:
    """Each layer of a stack, for many short passes: a scan copies each layer out of the stack in every pass."""
    depth = jax.tree.leaves(stack)[0].shape[0]
    return tuple(jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(depth))


def take_layer(stack: Stack, layer: int | jax.Array) -> Params:
    """Layer `layer` of a stack. Slicing the whole stack by a range would copy every weight."""
    if isinstance(stack, tuple):
        return stack[layer]
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), stack)


@struct.dataclass
class Recorder:
    """Residual streams at some sites of a tower, in one buffer that a scan carries.

    Attributes:
      codes: site codes of the streams that are kept; static.
      stop: the largest site code of the pass; static.
      buffer: [codes + 1, batch, positions, d]; the last entry takes the stream at every other site, so that no branch
        is needed. Without codes it is empty.
    """

    codes: tuple[int, ...] = struct.field(pytree_node=False)
    stop: int = struct.field(pytree_node=False)
    buffer: jax.Array

    @classmethod
    def empty(cls, codes: tuple[int, ...], stop: int, x: jax.Array) -> Self:
        """A recorder with nothing in it, for streams of the shape and type of `x`."""
        return cls(codes, stop, jnp.zeros((len(codes) + 1 if codes else 0, *x.shape), x.dtype))

    def record(self, x: jax.Array, code: jax.Array) -> Self:
        """Keeps `x`, the stream at the site `code`, if it is one of `codes`."""
        if not self.codes:
            return self
        n = len(self.codes)
        entries = [self.codes.index(code) if code in self.codes else n for code in range(self.stop + 1)]
        entry = jnp.array(entries, jnp.int32)[code]
        return self.replace(buffer=jax.lax.dynamic_update_index_in_dim(self.buffer, x, entry, 0))  # type: ignore[attr-defined]

    def streams(self) -> dict[int, jax.Array]:
        """The recorded streams by site code, [batch, positions, d] each."""
        return dict(zip(self.codes, self.buffer, strict=False))


def scan_blocks(
    make: Make[Any],
    cfg: Any,
    stack: Stack,
    x: jax.Array,
    stop: int,
    reads: tuple[int, ...],
    *,
    hook: Hook | None = None,
    state: S,
    **inputs: Any,
) -> tuple[jax.Array, dict[int, jax.Array], S]:
    """Runs blocks up to site code `stop`: under `lax.scan` over their indices, or one by one in a tuple (`unstack`).

    Args:
      make: constructor of a block. Its `attend(x, state, layer, **inputs)` gives `x` plus the block's attention, and
        the state for the next block; its `feed_forward(x)` gives `x` plus its MLP.
      stack: the blocks' parameters.
      x: [batch, positions, d], the residual stream before the first block.
      stop: static; the pass ends there, after an attention or a block.
      reads: site codes to keep, none beyond `stop`.
      hook: changes the residual stream at a site code.
      state: what is carried from block to block along with `x`, such as a key-value cache.
      **inputs: what every block's attention takes.

    Returns:
      The residual stream at `stop`, the kept ones by site code, each [batch, positions, d], and the state.
    """
    recorder = Recorder.empty(tuple(sorted(set(reads) - {stop})), stop, x)  # what is read at the end needs no buffer

    def visit(recorder: Recorder, x: jax.Array, code: int | jax.Array) -> tuple[Recorder, jax.Array]:
        code = jnp.asarray(code, jnp.int32)
        x = x if hook is None else hook(x, code)
        return recorder.record(x, code), x

    def run(carry: tuple[Recorder, jax.Array, S], layer: Layer) -> tuple[tuple[Recorder, jax.Array, S], None]:
        recorder, x, state = carry
        block = bind(make, cfg, take_layer(stack, layer))
        x, state = block.attend(x, state, layer, **inputs)  # [B, T, D]
        recorder, x = visit(recorder, x, Site.mid(layer))
        x = block.feed_forward(x)  # [B, T, D]
        recorder, x = visit(recorder, x, Site.post(layer))
        return (recorder, x, state), None

    n_blocks = Site.whole_blocks(stop)
    carry = (*visit(recorder, x, Site.embedding()), state)
    if isinstance(stack, tuple):
        for layer in range(n_blocks):
            carry, _ = run(carry, layer)
    else:
        carry, _ = jax.lax.scan(run, carry, jnp.arange(n_blocks))
    recorder, x, state = carry
    if stop == Site.mid(n_blocks):  # the last block's attention alone
        x, state = bind(make, cfg, take_layer(stack, n_blocks)).attend(x, state, n_blocks, **inputs)
        _, x = visit(recorder, x, stop)
    return x, recorder.streams() | {stop: x}, state
