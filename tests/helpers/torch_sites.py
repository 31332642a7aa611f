"""Where a PyTorch model has the sites of `maira_jax.model.sites`, for any version of transformers."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack, contextmanager

import numpy as np
import torch


def names(vision_layers: int, projector_layers: int, language_layers: int) -> list[str]:
    """Every site of a model, in the order of a pass."""

    def tower(name: str, depth: int) -> list[str]:
        places = ("resid_mid", "resid_post")
        return [f"{name}.embed", *(f"{name}.{layer}.{place}" for layer in range(depth) for place in places)]

    projector = [f"projector.{layer}" for layer in range(projector_layers)]
    return [*tower("vision", vision_layers), "vision.output", *projector, *tower("language", language_layers)]


def attach(
    name: str,
    action: Callable[[torch.Tensor], object],
    vision: torch.nn.Module,
    projector: Iterable[torch.nn.Module],
    language: torch.nn.Module,
) -> torch.utils.hooks.RemovableHandle:
    """Calls `action` with the activations of a site whenever they are computed; it may change them in place.

    What follows an attention is read off the norm before the MLP: there the block's own residual is the same tensor.

    Args:
      vision: Dinov2Backbone. projector: its linear layers. language: LlamaForCausalLM.
    """
    tower, *place = name.split(".")
    blocks = vision.encoder.layer if tower == "vision" else language.model.layers
    if tower == "projector":
        module, before = list(projector)[int(place[0])], False
    elif place == ["output"]:
        module, before = vision.layernorm, False
    elif place == ["embed"]:
        module, before = blocks[0], True
    elif place[1] == "resid_post":
        module, before = blocks[int(place[0])], False
    else:
        norm = "norm2" if tower == "vision" else "post_attention_layernorm"
        module, before = getattr(blocks[int(place[0])], norm), True

    def on_input(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        action(args[0] if args else kwargs["hidden_states"])

    def on_output(module: torch.nn.Module, args: tuple, output: torch.Tensor | tuple) -> None:
        action(output[0] if isinstance(output, tuple) else output)

    if before:
        return module.register_forward_pre_hook(on_input, with_kwargs=True)
    return module.register_forward_hook(on_output)


def left_padded(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """x [batch, positions] with the tokens of a `mask` at the end of each row, where transformers generates from."""
    return np.take_along_axis(x, np.argsort(mask, axis=1, kind="stable"), axis=1)


@contextmanager
def recorded(wanted: list[str], *parts):
    """A dict that takes the activations of `wanted` sites during the first pass. parts: those of `attach`."""
    seen: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        for name in wanted:
            stack.callback(attach(name, lambda x, name=name: seen.setdefault(name, x.detach().clone()), *parts).remove)
        yield seen


def answer(inputs: str, outputs: str, run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    """Runs every case of `inputs` (npz: `<case>/tokens`, `<case>/mask`, `<case>/pixels`) and writes what `run` gives.

    `outputs` (npz) gets it under `<case>/<name>`.
    """
    results: dict[str, np.ndarray] = {}
    with np.load(inputs) as arrays:
        for case in sorted({key.split("/")[0] for key in arrays}):
            found = run({name: arrays[f"{case}/{name}"] for name in ("tokens", "mask", "pixels")})
            results |= {f"{case}/{name}": value for name, value in found.items()}
    np.savez(outputs, **results)
