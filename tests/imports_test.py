"""Which package and which room may import which, and that nothing is imported that a user would not have."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the ground up: a package imports itself and those before it.
ORDER = ("maira_jax", "sae", "interp", "steer", "configs", "launch")
# The rooms of a package, its folders and the modules at its top, from the ground up: a room imports itself and those
# before it. The package's own face, `__init__.py`, is above all of them.
ROOMS = {
    "maira_jax": (
        "errors",
        "run",
        "studies",
        "phantom.world",
        "studies.readers",
        "model",
        "inputs",
        "checkpoint",
        "encoders",
        "generation",
        "reports",
        "phantom",
        "phantom.pretraining",
    ),
    "sae": (
        "mesh",
        "autoencoder",
        "kernels",
        "activations",
        "variants",
        "saved",
        "evaluation",
        "formats",
        "training",
        "import_sae",
        "sweep",
    ),
    "interp": (
        "llm",
        "exemplars",
        "controls",
        "explainers",
        "scorers",
        "features",
        "medsae",
        "coverage",
        "advantage",
        "config",
        "exemplar_batches",
        "interpreters",
        "sets",
        "set_comparison",
        "import_set",
        "scored_set",
        "stage",
        "atlas",
    ),
    "steer": (
        "selection",
        "methods",
        "config",
        "outcome",
        "program",
        "sweep",
        "stage",
        "comparison",
        "reference_metrics",
        "rates",
        "evaluate",
        "stage_words",
        "run_costs",
        "localize",
        "faithfulness",
        "run_summary",
        "study_report",
        "session",
    ),
}
# The package's face hands out what stands on the top floor, and imports it when it is asked for.
FACE, HANDED_OUT = ROOT / "maira_jax" / "__init__.py", "steer.session"
# Imported inside the functions that need them, by users who installed the extra of that name.
OPTIONAL = {"torch": "bench", "transformers": "bench", "pydicom": "dicom", "matplotlib": "figures"}
FILES = sorted(path for package in ORDER for path in (ROOT / package).rglob("*.py"))


def module_of(path: Path) -> str:
    """Dotted name of a file of the repository."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Dotted name of every imported module, its line, and whether importing the file imports it."""
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
            names = [
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in MODULES else node.module or ""
                for alias in node.names
            ]
        else:
            continue
        for name in names:
            yield name, node.lineno, id(node) not in inner


def room_of(module: str) -> int:
    """Floor of a module's room, counted from the ground."""
    package, _, inner = module.partition(".")
    if not inner:
        return len(ROOMS[package])
    matching = [room for room in ROOMS[package] if f"{inner}.".startswith(f"{room}.")]
    assert matching, f"{module} is in no room of {package}: add its room to ROOMS"
    return ROOMS[package].index(max(matching, key=len))


def outside(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Top-level names of the imports that neither Python nor the repository brings."""
    for module, line, at_import in imports(path):
        name = module.split(".")[0]
        if name not in sys.stdlib_module_names and name not in ORDER:
            yield name, line, at_import


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    package = path.relative_to(ROOT).parts[0]
    allowed = ORDER[: ORDER.index(package) + 1]
    for module, line, _ in imports(path):
        name = module.split(".")[0]
        if path == FACE and module.startswith(HANDED_OUT):
            continue
        assert name not in ORDER or name in allowed, f"{path}:{line}: {package} imports {name}"


def test_the_face_imports_nothing_above_it_before_it_is_asked():
    code = f"import sys, maira_jax; assert not {{'jax', *{ORDER[1:]}}} & set(sys.modules); maira_jax.open_run"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.relative_to(ROOT).parts[0] in ROOMS],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_rooms_import_downward(path):
    package, own = path.relative_to(ROOT).parts[0], module_of(path)
    for module, line, _ in imports(path):
        if module.split(".")[0] == package:
            assert room_of(module) <= room_of(own), f"{path}:{line}: {own} imports {module}, which is above it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_optional_packages_are_imported_only_where_they_are_used(path):
    for name, line, at_import in outside(path):
        assert not (at_import and name in OPTIONAL), f"{path}:{line} imports {name} for everybody"
    for module, line, at_import in imports(path):
        slow = at_import and module.startswith("scipy.stats")
        assert not slow, f"{path}:{line}: a second of every command; `import scipy` brings scipy.stats when it is used"


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
