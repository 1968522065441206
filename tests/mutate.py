"""Do the tests notice a small change of the code? `make mutate` (10 to 60 seconds per change).

    python tests/mutate.py N SEED [module ...]     # modules: beginnings of paths in koala_nb

A random sample of N changed operators, constants, returned values and dropped calls is tried in a
copy of the tree, each against the tests of its module. A survivor is a change that no test noticed:
a test is missing, or the changed code means the same.
"""

import ast
import importlib
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

# What takes long to import: each change is tried in a process forked after it.
for name in ("scipy.stats", "statsmodels.api", "hypothesis"):  # nothing that starts threads
    importlib.import_module(name)

ROOT = Path(__file__).resolve().parent.parent
TESTS = {  # the last that fits a module's path
    "stats/": "stats_exact stats stats_refusals",
    "stats/double_sampling": "double_sampling stats_refusals",
    "stats/misclassification": "misclassification stats_refusals",
    "stats/simulation": "stats_exact simulation",
    "generation/": "generation benchmark_speed",
    "generation/cluster": "cluster",
    "generation/run_folder": "generation resuming",
    "attention/": "attention_view attention",
    "attention/edits": "attention_edits",
    "distillation/": "train_student",
    "distillation/losses": "distillation",
    "distillation/similarity": "similarity",
    "distillation/loop": "nano_training",
}
SWAPS = {"Lt": "LtE", "Gt": "GtE", "Eq": "NotEq", "Is": "IsNot", "In": "NotIn", "And": "Or"}
SWAPS |= {"Add": "Sub", "Mult": "Div", "BitAnd": "BitOr"}
SWAPS |= {new: old for old, new in SWAPS.items()} | {"Pow": "Mult", "FloorDiv": "Mult"}
LIMIT = 600  # seconds; who waits longer hangs, which is noticed


def change(node: ast.AST) -> str | None:
    """Return the code of a node's change, None for a node that has none."""
    match node:
        case ast.Return(ast.Constant(False)):
            return None  # None would mean the same to a caller; the constant itself is changed
        case ast.Return(value) if value is not None:
            return "return None"
        case ast.Expr(ast.Call()):
            return "pass"
        case ast.Constant(bool(value)):
            return f"{not value}"
        case ast.Constant(int(value) | float(value)):
            return f"({value + 1!r})"
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            return f"({ast.unparse(operand)})"
        case ast.Compare(ops=[op]) | ast.BinOp(op=op) | ast.BoolOp(op=op):
            if new := SWAPS.get(type(op).__name__):
                swapped = getattr(ast, new)()
                parts = {"ops": [swapped]} if isinstance(node, ast.Compare) else {"op": swapped}
                return f"({ast.unparse(type(node)(**{**vars(node), **parts}))})"
    return None


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a tree but those of types and of errors' sentences."""
    for name, value in ast.iter_fields(tree):
        if name not in ("annotation", "returns") and not isinstance(
            tree, ast.Raise | ast.JoinedStr
        ):
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, ast.AST):
                    yield part
                    yield from nodes(part)


def mutations(module: Path) -> Iterator[tuple[Path, str, bytes]]:
    """Yield (module, place and change in words, changed text) of all changes of a module."""
    text = module.read_bytes()
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node in nodes(ast.parse(text)):
        if new := change(node):
            first = starts[node.lineno - 1] + node.col_offset
            last = starts[node.end_lineno - 1] + node.end_col_offset
            words = f"{module}:{node.lineno}: {text[first:last].decode()} -> {new}"
            yield module, words, text[:first] + new.encode() + text[last:]


def tests_of(module: Path) -> list[str]:
    """Return the test files of a module."""
    names = [names for start, names in TESTS.items() if f"{module}".startswith(f"koala_nb/{start}")]
    return [f"tests/test_{name}.py" for name in names[-1].split()]


def passes(copy: Path, tests: list[str]) -> bool:
    """Return whether tests pass in the copy of the tree, in a process forked from this one."""
    process = multiprocessing.get_context("fork").Process(target=run_tests, args=(copy, tests))
    process.start()
    process.join(LIMIT)
    process.kill()
    process.join()
    return process.exitcode == 0


def run_tests(copy: Path, tests: list[str]) -> None:
    """Run tests of the copy without a word, and exit as they do."""
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    os.environ["PYTHONPATH"] = str(copy)
    with open(os.devnull, "w") as nothing:
        for stream in (1, 2):
            os.dup2(nothing.fileno(), stream)
        os._exit(pytest.main(["-xqm", "not long", "-p", "no:cacheprovider", *tests]))


def main(n: int, seed: int, *starts: str) -> None:
    """Try a sample; print each survivor, then a table per module."""
    os.chdir(ROOT)
    sys.dont_write_bytecode = True
    modules = sorted({m for s in starts or TESTS for m in Path("koala_nb").glob(f"{s}*.py")})
    sample = random.Random(seed).sample([m for path in modules for m in mutations(path)], n)
    tried, noticed = Counter(), Counter()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for path in ROOT.iterdir():
            if path.name in ("koala_nb", "tests", "studies"):
                shutil.copytree(path, copy / path.name)
            elif path.name != ".git":
                (copy / path.name).symlink_to(path)
        for tests in {tuple(tests_of(module)) for module, *_ in sample}:
            if not passes(copy, list(tests)):
                raise SystemExit(f"{', '.join(tests)} fail without any change.")
        for module, words, text in sample:
            (copy / module).write_bytes(text)
            survived = passes(copy, tests_of(module))
            shutil.copy(module, copy / module)
            tried[module] += 1
            noticed[module] += not survived
            if survived:
                print(words, flush=True)
    for module in sorted(tried):
        print(f"{module!s:45}{noticed[module]:4} of {tried[module]:3} noticed")
    print(f"{noticed.total()} of {n} noticed, {noticed.total() / n:.0%}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:])
