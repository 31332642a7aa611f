"""Whether the tensors of a checkpoint are those of a model: the one sentence that names all that are not."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from maira_jax.checkpoint import shards
from maira_jax.checkpoint.layout import Entry
from maira_jax.errors import UserError


class FoundTensor(NamedTuple):
    """A tensor as a file describes it: name and type ("F32") are those of the file."""

    file: str
    name: str
    code: str
    shape: tuple[int, ...]


def refuse_others(
    origin: Path, model: str, table: list[Entry], found: Mapping[str, FoundTensor], twice: Sequence[str], code: str
) -> None:
    """Refuses tensors that are not exactly those of a model.

    Args:
      origin: the checkpoint's file or folder.
      model: the model's name.
      table: the model's tensors.
      found: the checkpoint's tensors by their published name.
      twice: names of tensors that are there under two names.
      code: the type that all tensors must have.

    Raises:
      UserError: a tensor is missing, extra, misshapen or mistyped; names each that is.
    """
    wanted = {entry.name: entry for entry in table}
    shared = [name for name in wanted if name in found]
    misshapen = defaultdict(list)
    mistyped = defaultdict(list)
    for name in shared:
        if found[name].shape != wanted[name].shape:
            misshapen[f"with shape {found[name].shape} instead of {wanted[name].shape}"].append(found[name].name)
        if found[name].code != code or code not in shards.TYPES:
            instead = f"instead of {code}" if code in shards.TYPES else "not a floating-point type"
            mistyped[f"of type {found[name].code}, {instead}"].append(found[name].name)
    problems = {
        "missing": [name for name in wanted if name not in found],
        f"not of {model}": [tensor.name for name, tensor in found.items() if name not in wanted],
        "there twice, under two names": twice,
        **misshapen,
        **mistyped,
    }
    named = [f"{kind}: {listed(names)}" for kind, names in problems.items() if names]
    if named:
        raise UserError(
            f"{origin} does not hold the tensors of {model}; {'; '.join(named)}; use a whole checkpoint of {model}"
        )


def listed(names: Iterable[str]) -> str:
    """All names, those of a stack of layers as one: a.{0-3,7}.b."""
    groups: dict[str, list[int]] = defaultdict(list)
    for name in names:
        number = re.search(r"\.(\d+)\.", name)
        groups[re.sub(r"\.\d+\.", ".{}.", name, count=1)] += [int(number[1])] if number else []
    return ", ".join(_with_ranges(pattern, sorted(numbers)) for pattern, numbers in groups.items())


def _with_ranges(pattern: str, numbers: list[int]) -> str:
    if not numbers:
        return pattern
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    text = ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return pattern.replace("{}", text if len(numbers) == 1 else f"{{{text}}}", 1)
