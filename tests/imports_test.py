"""Which package may import which, and that nothing is imported that a user would not have."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the ground up: a package imports itself and those before it.
ORDER = ("maira_jax", "sae", "interp", "steer", "launch")
# Imported inside the functions that need them, by users who installed the extra of that name.
OPTIONAL = {"torch": "bench", "transformers": "bench"}
FILES = sorted(path for package in (*ORDER, "configs") for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Top-level name of every imported module, its line, and whether importing the file imports it."""
    tree = ast.parse(path.read_text(), str(path))
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            names = [node.module or ""]
        else:
            continue
        for name in names:
            yield name.split(".")[0], node.lineno, id(node) not in inner


def outside(path: Path) -> Iterator[tuple[str, int, bool]]:
    """The imports that neither Python nor the repository brings."""
    for name, line, at_import in imports(path):
        if name not in sys.stdlib_module_names and name not in (*ORDER, "configs"):
            yield name, line, at_import


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    package = path.relative_to(ROOT).parts[0]
    # Configurations are data: they import only one another, and nothing imports them but by file name.
    allowed = ("configs",) if package == "configs" else ORDER[: ORDER.index(package) + 1]
    for name, line, _ in imports(path):
        assert name not in (*ORDER, "configs") or name in allowed, f"{path}:{line}: {package} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_optional_packages_are_imported_only_where_they_are_used(path):
    for name, line, at_import in outside(path):
        assert not (at_import and name in OPTIONAL), f"{path}:{line} imports {name} for everybody"


def requirements(lines: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~ ]", line)[0].lower().replace("_", "-") for line in lines}


def test_dependencies_are_what_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    declared = requirements(project["dependencies"])
    distributions = importlib.metadata.packages_distributions()
    used = set()
    for path in FILES:
        for name, line, _ in outside(path):
            assert name in distributions, f"{path}:{line} imports {name}, which is not installed"
            names = {distribution.lower().replace("_", "-") for distribution in distributions[name]}
            if name in OPTIONAL:
                assert names & requirements(optional[OPTIONAL[name]])
            else:
                assert names & declared, f"{path}:{line} imports {name}, which pyproject.toml does not name"
                used |= names
    assert declared <= used, f"pyproject.toml names {declared - used}, which nothing imports"
