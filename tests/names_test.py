"""Names that a reader can rely on: a class's name occurs once, and the words are the field's."""

import ast
import re
import subprocess
from collections import defaultdict

import pytest

from configs import base
from tests.helpers.paths import ROOT

PACKAGES = ("maira_jax", "sae", "interp", "steer", "configs", "launch")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FIELDS = {f"{section.section}.{field}" for section in base.SECTIONS for field in section.model_fields}
# The vocabulary of radiology reports has words of its own.
PROSE = [path for path in SOURCES if not {"vocabulary", "world"} & set(path.parts)]
# Words that this code once used for things that have a name, and the name.
INSTEAD = {
    r"\barms?\b": "method, control or baseline",
    r"\bbeside\b": "next to, compared with, companion",
    r"\bmend\b": "fix",
    r"\bvanish": "removed",
    r"\bpulls?\b": "cotangent",
    r"\btaps?\b": "hook",
    r"\bsilent\b": "non-activating, has not fired",
    r"\bso many (?:as|of)?\b": "at most N, this many",
    r"\bgoes on\b": "resumes, continues",
    r"\btold apart\b": "distinguished",
    r"\bof no account\b": "ignored",
    r"\ba (?:line|row|file|folder) a\b": "one line per",
    r"\bn_(?:least|most)\b": "min_, max_",
}
# Sentences in which such a word is the ordinary one.
ORDINARY = ("so many small ones are faster", "as many as there are", "as many words have begun")


def test_class_names_are_unique():
    found = defaultdict(list)
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(str(path.relative_to(ROOT)))
    assert not {name: paths for name, paths in found.items() if len(paths) > 1}


@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_words_are_those_of_the_field(path):
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if any(sentence in line for sentence in ORDINARY):
            continue
        for word, instead in INSTEAD.items():
            assert not re.search(word, line), f"{path}:{number} says {word!r}: write {instead}"


def test_nothing_names_a_module_that_does_not_exist():
    """Paths of files and dotted names of modules in docstrings, comments and documents."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = "|".join((*PACKAGES, "tests"))
    for name in tracked:
        if not name.endswith((".py", ".md", ".sh", ".toml")) or name == "CHANGELOG.md":
            continue
        text = (ROOT / name).read_text()
        for path in re.findall(rf"(?<![\w/.])((?:{folders})/[\w/]+\.(?:py|sh|txt))", text):
            assert "/my_" in path or (ROOT / path).exists(), f"{name} names {path}, which does not exist"
        for dotted in re.findall(rf"`((?:{folders})(?:\.[a-z_0-9]+)+)", text):
            if dotted.endswith((".safetensors", ".json", ".parquet")):  # files of a run
                continue
            assert dotted in FIELDS or exists(dotted), f"{name} names {dotted}, which does not exist"


def exists(dotted):
    """Whether a module, or a module's attribute, has this dotted name (or begins with one that has it)."""
    parts = dotted.split(".")
    for stop in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:stop])
        if path.with_suffix(".py").is_file():
            attribute = parts[stop : stop + 1]
            return not attribute or re.search(rf"\b{attribute[0]}\b", path.with_suffix(".py").read_text()) is not None
        if path.is_dir():
            rest = parts[stop : stop + 1]
            face = path / "__init__.py"
            return not rest or (face.is_file() and re.search(rf"\b{rest[0]}\b", face.read_text()) is not None)
    return False
