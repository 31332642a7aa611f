"""Runs the code of notebooks and of Markdown pages: `python -m tests.helpers.python_cells FILE...`, in one process.

Each file has names of its own. What ends a cell of a notebook is shown as a notebook would show it.
"""

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any


def cells(path: Path) -> list[str]:
    """The code cells of a notebook, or the Python blocks of a Markdown page."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        return ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run(path: Path) -> None:
    """Runs all cells of a file, one after the other."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(cells(path)):
        tree = ast.parse(source)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        where = f"{path.name}, cell {number}"
        exec(compile(tree, where, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), where, "eval"), names)
            getattr(value, "_repr_html_", value.__repr__)()


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run(Path(name))
