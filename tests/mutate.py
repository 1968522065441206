"""Do the tests notice? One small change of the code at a time: `make mutate` (about a minute each).

A random sample of changed operators, constants, conditions, returned values and dropped calls is
tried in a copy of the tree, each against the tests of its module. A survivor is a change that no
test noticed: a missing test, or a change that means the same.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NUMBERS = "stats_exact stats stats_refusals"
TESTS = {  # the longest beginning of a module's path counts
    "stats/": NUMBERS,
    "stats/misclassification": "stats_exact misclassification stats_refusals",
    "stats/simulation": "stats_exact simulation",
    "generation/": "generation bad_inputs",
    "generation/cluster": "cluster",
    "attention/": "attention_view attention",
    "distillation/": "distillation similarity train_student",
}
SWAPS = {"Lt": "LtE", "LtE": "Lt", "Gt": "GtE", "GtE": "Gt", "Eq": "NotEq", "NotEq": "Eq"}
SWAPS |= {"Is": "IsNot", "IsNot": "Is", "In": "NotIn", "NotIn": "In", "And": "Or", "Or": "And"}
SWAPS |= {"Add": "Sub", "Sub": "Add", "Mult": "Div", "Div": "Mult", "Pow": "Mult"}
SWAPS |= {"FloorDiv": "Mult", "Mod": "Mult", "BitAnd": "BitOr", "BitOr": "BitAnd"}


def changes(node: ast.AST) -> Iterator[str]:
    """Yield the code of each change of one node."""
    swap = lambda op: getattr(ast, SWAPS[type(op).__name__])()  # noqa: E731
    match node:
        case ast.Compare(left, [op], right) if type(op).__name__ in SWAPS:
            yield ast.unparse(ast.Compare(left, [swap(op)], right))
        case ast.BinOp(left, op, right) if type(op).__name__ in SWAPS:
            yield ast.unparse(ast.BinOp(left, swap(op), right))
        case ast.BoolOp(op, values):
            yield ast.unparse(ast.BoolOp(swap(op), values))
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield ast.unparse(operand)
        case ast.Constant(bool(value)):
            yield str(not value)
        case ast.Constant(int(value) | float(value)):
            yield repr(value + 1)
        case ast.Return(value) if value is not None:
            yield "return None"
        case ast.Expr(ast.Call()):
            yield "pass"


def mutations(module: Path) -> Iterator[tuple[Path, int, str, str, str]]:
    """Yield (module, line, code, changed code, changed text) of all changes of a module.

    Messages of errors, types and defaults of a class's fields are left as they are.
    """
    text = module.read_text("utf-8")
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    stack: list[ast.AST] = [ast.parse(text)]
    while stack:
        node = stack.pop()
        for change in changes(node):
            first = starts[node.lineno - 1] + node.col_offset
            last = starts[node.end_lineno - 1] + node.end_col_offset
            raw, code = text.encode(), text.encode()[first:last].decode()
            change = change if isinstance(node, ast.stmt) else f"({change})"
            whole = raw[:first] + change.encode() + raw[last:]
            yield module, node.lineno, code, change, whole.decode()
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns") and not isinstance(
                node, ast.Raise | ast.JoinedStr
            ):
                stack += [v for v in (value if isinstance(value, list) else [value])
                          if isinstance(v, ast.AST)]  # fmt: skip


def tests_of(module: Path) -> list[str]:
    """Return the test files of a module."""
    place = module.relative_to(ROOT / "koala_nb").as_posix()
    best = max((key for key in TESTS if place.startswith(key)), key=len)
    return [f"tests/test_{name}.py" for name in TESTS[best].split()]


def passes(copy: Path, tests: list[str], limit: float) -> bool:
    """Return whether the tests pass in the copy; too slow is no pass."""
    command = [sys.executable, "-m", "pytest", "-xq", "-m", "not long", "-p", "no:cacheprovider"]
    env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [*command, *tests], cwd=copy, env=env, capture_output=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def main() -> None:
    """Try a sample and print a table per module and the survivors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "rooms", nargs="*", default=["stats", "generation", "attention", "distillation"]
    )
    parser.add_argument("--n", type=int, default=25, help="changes per room")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, tried, survivors = random.Random(options.seed), {}, []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for path in ROOT.iterdir():
            if path.name in ("koala_nb", "tests", "studies"):
                shutil.copytree(
                    path, copy / path.name, ignore=shutil.ignore_patterns("__pycache__")
                )
            elif path.name != ".git":
                (copy / path.name).symlink_to(path)
        limits: dict[str, float] = {}
        for room in options.rooms:
            every = [
                m for f in sorted((ROOT / "koala_nb" / room).glob("*.py")) for m in mutations(f)
            ]
            for module, line, code, change, text in rng.sample(every, min(options.n, len(every))):
                name, tests = module.relative_to(ROOT).as_posix(), tests_of(module)
                if (key := " ".join(tests)) not in limits:
                    start = time.monotonic()
                    assert passes(copy, tests, 3600), f"{key} fail without any change"
                    limits[key] = 60 + 5 * (time.monotonic() - start)
                (copy / name).write_text(text, "utf-8")
                survived = passes(copy, tests, limits[key])
                shutil.copy(module, copy / name)
                tried.setdefault(name, []).append(not survived)
                if survived:
                    survivors.append(f"{name}:{line}: {code} -> {change}")
                    print(survivors[-1], flush=True)
    for name, noticed in sorted(tried.items()):
        print(f"{name:45}{sum(noticed):4} of {len(noticed):3}")
    results = sum(tried.values(), [])
    print(f"noticed {sum(results)} of {len(results)} ({sum(results) / len(results):.0%})")


if __name__ == "__main__":
    main()
