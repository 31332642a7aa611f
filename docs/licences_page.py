"""The page of the licences of what the package depends on.

python -m docs.licences_page > docs/reference/licences.md
"""

import importlib.metadata
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ("dicom", "figures")  # those that a user installs for a stage; the others are for tests, devices and stores
HEAD = """# Licences

What `pip install -e '.[dicom,figures]'` installs, with the licences that the packages declare. maira-jax itself
is under Apache-2.0. The page is made by `python -m docs.licences_page`.

| package | licence |
|---|---|"""


def dependencies() -> list[str]:
    """The packages that are installed here and that the package depends on, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [
        *project["dependencies"],
        *(each for extra in EXTRAS for each in project["optional-dependencies"][extra]),
    ]
    found = set()
    while waiting:
        name, asked = re.match(r"([\w.-]+)(?:\[(.*?)\])?", waiting.pop()).groups()
        name = re.sub(r"[-_.]+", "-", name).lower()
        try:
            wanted = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:  # of another system
            continue
        if name not in found or asked:
            found.add(name)
            waiting += [each for each in wanted if "extra ==" not in each or re.search(f"== ['\"]{asked}['\"]", each)]
    return sorted(found)


def licence(package: str) -> str:
    """What a package declares: an expression, classifiers, or the first line of a text."""
    data = importlib.metadata.metadata(package)
    classified = [line.split(" :: ")[-1] for line in data.get_all("Classifier", []) if line.startswith("License ::")]
    text = (data.get("License") or "").strip().partition("\n")[0]
    return (data.get("License-Expression") or ", ".join(classified) or text or "see the package").strip()


if __name__ == "__main__":
    print(HEAD)
    for package in dependencies():
        print(f"| {package} | {licence(package)} |")
