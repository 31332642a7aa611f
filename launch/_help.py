"""The text of `--help`: the command's flags, and the fields of the configuration that it reads."""

import ast
import io
import runpy
import textwrap
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ml_collections import ConfigDict

_WIDTH = 118
_Path: TypeAlias = tuple[str, ...]
_Functions: TypeAlias = Mapping[str, ast.FunctionDef]


def text(command: str, doc: str, entries: Mapping[str, str], sections: Sequence[str], config_file: Path) -> str:
    """Everything that `--help` prints.

    Args:
      command: how the command is called.
      doc: what it does.
      entries: flag name -> explanation.
      sections: top-level fields of the configuration to explain.
      config_file: the configuration that they are explained by; its comments are the explanations.
    """
    lines = [f"Usage: {command} [--flag=value ...]", "", doc.strip(), "", "Flags:"]
    for name, explanation in entries.items():
        lines += _entry(f"--{name}", explanation)
    lines += ["", f"Fields of the configuration that it reads, with the values of {config_file.name}:"]
    comments: dict[str, str] = {}
    for path, comment in explained(config_file.read_text()):
        comments.setdefault(path, comment)
        comments.setdefault(_kin(path), comment)
    for path, value in _values(runpy.run_path(str(config_file))["get_config"]()):
        if path.split(".")[0] in sections:
            lines += _entry(f"--config.{path}={value!r}", comments.get(path) or comments.get(_kin(path), ""))
    return "\n".join(lines)


def _kin(path: str) -> str:
    """What a field has in common with those of the same name in its section, of which it may be a copy."""
    return f"{path.split('.')[0]} {path.split('.')[-1]}"


def _values(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every field."""
    for name, value in config.items(preserve_field_references=False):
        if isinstance(value, ConfigDict) and len(value):
            yield from _values(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value.to_dict() if isinstance(value, ConfigDict) else value


def _entry(name: str, explanation: str) -> list[str]:
    return [f"  {name}", *textwrap.wrap(explanation, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)]


def explained(source: str) -> Iterator[tuple[str, str]]:
    """The fields that a configuration file sets: dotted name, comment (its own line's, or above)."""
    comments = _comments(source)
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    for path, value in _assignments((), functions["get_config"], functions):
        lines = range(value.lineno, (value.end_lineno or value.lineno) + 1)
        comment = next((comments[line][0] for line in lines if line in comments), "")
        if not comment and comments.get(value.lineno - 1, ("", False))[1]:
            comment = comments[value.lineno - 1][0]
        yield ".".join(path), comment


def _comments(source: str) -> dict[int, tuple[str, bool]]:
    """Line number -> comment, and whether it has the line for itself."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            found[token.start[0]] = (token.string.lstrip("# "), not token.line[: token.start[1]].strip())
    return found


def _assignments(prefix: _Path, function: ast.FunctionDef, functions: _Functions) -> Iterator[tuple[_Path, ast.expr]]:
    """Leaves of `config.a.b = value`, `config.a = ConfigDict(dict(b=value))`, `config.a = get_a()`, in order."""
    for node in function.body:
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = list(zip(target.elts, value.elts, strict=True))
            else:
                pairs = [(target, value)]
            for one, assigned in pairs:
                path = _attributes(one)
                # `a = ConfigDict()` in a function only begins what its next lines fill.
                if path or (path == () and not _is_empty(assigned)):
                    yield from _leaves((*prefix, *path), assigned, functions)
        elif isinstance(node, ast.Return) and node.value is not None:
            yield from _leaves(prefix, node.value, functions)


def _attributes(target: ast.expr) -> _Path | None:
    """("a", "b") of `config.a.b`, () of a bare name, None of anything else."""
    if isinstance(target, ast.Name):
        return ()
    if isinstance(target, ast.Attribute):
        inner = _attributes(target.value)
        return None if inner is None else (*inner, target.attr)
    return None


def _is_empty(value: ast.expr) -> bool:
    """Whether it is `ConfigDict()`."""
    return (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Name)
        and value.func.id == "ConfigDict"
        and not (value.args or value.keywords)
    )


def _leaves(path: _Path, value: ast.expr, functions: _Functions) -> Iterator[tuple[_Path, ast.expr]]:
    if isinstance(value, ast.Call):
        called = value.func.id if isinstance(value.func, ast.Name) else ""
        if called in functions:
            yield from _assignments(path, functions[called], functions)
        elif path and (_is_empty(value) or called == "placeholder"):  # for the user to fill
            yield path, value
        for argument in value.args:  # ConfigDict(...) around something
            yield from _leaves(path, argument, functions)
        for keyword in value.keywords:
            if keyword.arg is not None:
                yield from _leaves((*path, keyword.arg), keyword.value, functions)
    elif isinstance(value, ast.Dict):
        for key, inner in zip(value.keys, value.values, strict=True):
            if isinstance(key, ast.Constant):
                yield from _leaves((*path, str(key.value)), inner, functions)
    elif path and not isinstance(value, ast.Name):
        yield path, value
