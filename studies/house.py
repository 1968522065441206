"""The size and the habits of the code, counted: `python -m studies.house` (2 seconds).

`tests/test_house.py` holds each measure to a ceiling that only falls, and names its goal.
"""

from __future__ import annotations

import ast
import json
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Names that say that someone said, found or held a thing, and not which (names.md of the design).
RIDDLES = frozenset("told found said asked held own seen mine theirs his worth beyond".split())
LONG_FILE, LONG_CELL = 500, 15  # lines
WORDING = frozenset(  # variables of notebooks that hold nothing but what a reader is shown
    "title caption captions labels names units columns rows meaning hint empty missing".split()
)


@cache
def text(path: Path) -> str:
    """Return a file's text."""
    return path.read_text("utf-8")


def files(*folders: str, without: str = "") -> list[Path]:
    """Return the Python files of folders of the repository, sorted."""
    found = {path for folder in folders for path in (ROOT / folder).rglob("*.py")}
    return sorted(path for path in found if not without or ROOT / without not in path.parents)


def lines(paths: list[Path]) -> int:
    """Return the lines of files, blank ones and comments among them."""
    return sum(len(text(path).splitlines()) for path in paths)


def mentions(phrase: str, paths: list[Path]) -> int:
    """Return how often a phrase stands in files."""
    return sum(text(path).count(phrase) for path in paths)


def nodes(paths: list[Path]) -> Iterator[ast.AST]:
    """Yield every node of the files' syntax trees."""
    for path in paths:
        yield from ast.walk(ast.parse(text(path)))


def riddle_stores(paths: list[Path]) -> int:
    """Return how often a variable or parameter is given a name of RIDDLES."""
    stored = (
        node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else
        node.arg if isinstance(node, ast.arg) else ""
        for node in nodes(paths)
    )  # fmt: skip
    return sum(name in RIDDLES for name in stored)


def any_mentions(paths: list[Path]) -> int:
    """Return how often the type Any is named, its imports among them."""
    names = (getattr(node, "id", getattr(node, "name", "")) for node in nodes(paths))
    return sum(name == "Any" for name in names)


def imports_of_nano(paths: list[Path]) -> int:
    """Return the imports of the embedded family, lazy ones among them."""
    modules = (
        node.module or "" if isinstance(node, ast.ImportFrom) else
        node.names[0].name if isinstance(node, ast.Import) else ""
        for node in nodes(paths)
    )  # fmt: skip
    return sum(name.startswith("koala_nb.nano") for name in modules)


def notebook_cells(path: Path) -> list[str]:
    """Return the code cells of a notebook."""
    cells = json.loads(text(path))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def imported_names(path: Path) -> int:
    """Return how many names of `koala_nb` a notebook imports."""
    code = "\n".join(line for cell in notebook_cells(path) for line in cell.splitlines()
                     if not line.lstrip().startswith(("%", "!")))  # fmt: skip
    count = 0
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            count += sum(name.name.split(".")[0] == "koala_nb" for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "koala_nb":
            count += len(node.names)
    return count


def long_cells(path: Path) -> int:
    """Return how many code cells of a notebook are longer than LONG_CELL lines."""
    return sum(len(cell.splitlines()) > LONG_CELL for cell in notebook_cells(path))


def formatting_share(path: Path) -> int:
    """Return the percentage of a notebook's lines of code that only format.

    Counted are the lines of a call that shows or prints after its first, and assignments of
    captions, labels and other wording (`WORDING`), also where a block holds them.
    """
    trees = [ast.parse(cell) for cell in notebook_cells(path)]
    lines = sum(bool(line.strip()) for cell in notebook_cells(path) for line in cell.splitlines())
    return round(100 * sum(formatting_lines(tree.body) for tree in trees) / lines)


def formatting_lines(body: list[ast.stmt]) -> int:
    """Return how many lines of a block only format: see `formatting_share`."""
    count = 0
    for node in body:
        shown = (
            ast.unparse(node.value.func)
            if (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
            else ""
        )
        wording = isinstance(node, ast.Assign) and {ast.unparse(t) for t in node.targets} <= WORDING
        if "show" in shown or shown == "print" or wording:
            count += (node.end_lineno or node.lineno) - node.lineno + wording
        elif not isinstance(node, ast.FunctionDef):
            blocks = (getattr(node, part, []) for part in ("body", "orelse", "finalbody"))
            count += sum(formatting_lines(block) for block in blocks if isinstance(block, list))
    return count


def allowed_violations() -> int:
    """Return how many imports the contract of the floors still lets pass."""
    settings = tomllib.loads(text(ROOT / "pyproject.toml"))["tool"]["importlinter"]
    return sum(len(contract.get("ignore_imports", ())) for contract in settings["contracts"])


def measures() -> dict[str, int]:
    """Return every measure by its name."""
    package, nano = files("koala_nb"), files("koala_nb/nano")
    upper = files("koala_nb", without="koala_nb/nano")
    everything = files("koala_nb", "studies", "tests")
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    return {
        "files over 500 lines": sum(lines([path]) > LONG_FILE for path in everything),
        "koala_nb without nano, lines": lines(upper),
        "koala_nb without nano, files": len(upper),
        "nano, lines": lines(nano),
        "core, models and generation, lines": lines(
            files("koala_nb/core", "koala_nb/models", "koala_nb/generation")
        ),
        "studies, lines": lines(files("studies")),
        "tests, lines": lines(files("tests")),
        "fmt: skip": mentions("# fmt: skip", package),
        "pipe: Any": mentions("pipe: Any", package),
        "mentions of Any": any_mentions(package),
        "stores to riddle names": riddle_stores(package),
        "argument parsers": mentions("ArgumentParser(", package),
        "imports of nano outside it": imports_of_nano(upper),
        "imports against the floors": allowed_violations(),
        "names of ours in a notebook": max(map(imported_names, notebooks)),
        "long cells in a notebook": max(map(long_cells, notebooks)),
        "formatting lines of a notebook, %": max(map(formatting_share, notebooks)),
    }


if __name__ == "__main__":
    for name, value in measures().items():
        print(f"{name:36}{value:7,}")
