"""What every notebook promises: its limits, its outputs, its parameters, its solutions."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from solutions import solutions

from koala_nb.core.catalog import data_folder
from koala_nb.report import run

PATHS = sorted(run.NOTEBOOKS.glob("*.ipynb"))
TYPED = re.compile(r"\w+: (str|int|float|bool) = \S.*  # \S.*")
SKIPS = {"nbval-skip", "nbval-ignore-output", "nbval-check-output"}
HERE = Path(__file__).parent
HOOK = """
from solutions import with_solutions

def pytest_collection_modifyitems(items):
    items[:] = with_solutions(items)
"""
TINY = {"model": "koala-lightning-700m", "size": 64, "seeds": 1}

LONG = pytest.mark.long
HUB = [p if p.name[:2] in ("01", "09", "11") else pytest.param(p, marks=LONG) for p in PATHS]
every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def tags(cell):
    return set(cell.metadata.get("tags", ()))


def code(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def outputs(path):
    return [output for cell in code(path) for output in cell.outputs]


def test_there_are_notebooks():
    assert "11_write_the_audit_report" in [path.stem for path in PATHS]


@every_notebook
def test_size(path):
    cells = read(path).cells
    assert len(cells) <= 60
    assert path.stat().st_size <= 1_000_000
    for cell in code(path):
        assert len(cell.source.splitlines()) <= 25, cell.source
    prose = sum(cell.cell_type == "markdown" for cell in cells) / len(cells)
    assert 0.5 <= prose <= 0.65, f"{prose:.0%} of the cells are prose"


@every_notebook
def test_opening(path):
    cells = read(path).cells
    assert re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem)
    assert cells[0].source.startswith("# ")
    assert sum(cell.source.startswith("# ") for cell in cells if cell.cell_type == "markdown") == 1
    opening = "".join(cell.source for cell in cells[:3])
    for promise in ("will do", "will learn", "need"):
        assert promise in opening
    (parameters,) = [cell for cell in cells[:6] if "parameters" in tags(cell)]
    for line in parameters.source.splitlines():
        assert TYPED.fullmatch(line), f"not typed and explained: {line}"
    assert run.parameters_of(path)


@every_notebook
def test_every_code_cell_was_executed_in_order(path):
    counts = [cell.execution_count for cell in code(path) if "nbval-skip" not in tags(cell)]
    assert counts == list(range(1, len(counts) + 1))


@every_notebook
def test_outputs_are_clean(path):
    for cell in code(path):
        for output in cell.outputs:
            assert output.output_type != "error" or "raises-exception" in tags(cell)
            assert output.get("name") != "stderr", output.text
    book = read(path)
    assert "widgets" not in book.metadata
    assert not any("execution" in cell.metadata for cell in book.cells), "times are recorded"


@every_notebook
def test_every_image_has_an_alternative_text(path):
    for output in outputs(path):
        for form in {"image/png", "image/jpeg"} & set(output.get("data", {})):
            alt = output.metadata.get(form, {}).get("alt", "")
            assert len(alt) > 20 and alt == output.data["text/plain"], alt


@every_notebook
def test_few_cells_are_kept_from_the_comparison(path):
    skipped = [cell for cell in code(path) if tags(cell) & SKIPS]
    assert len(skipped) <= 0.05 * len(code(path))


@every_notebook
def test_no_absolute_path_is_committed(path):
    assert str(run.ROOT) not in path.read_text("utf-8")


# --- other parameters, the real path ------------------------------------------------------------


BLOCK_NANO = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("koala_nb.nano"):
            raise ModuleNotFoundError(f"{name} belongs to the embedded family")

sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture
def without_the_embedded_family(tmp_path, monkeypatch):
    """Kernels find neither `koala_nb.nano` nor `data/models`: real models need none of it."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCK_NANO)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    shutil.copytree(data_folder(), tmp_path / "data", ignore=shutil.ignore_patterns("models"))
    monkeypatch.setenv("KOALA_NB_DATA", str(tmp_path / "data"))


@pytest.mark.parametrize("path", HUB, ids=lambda path: path.stem)
def test_it_runs_on_the_hubs_layout(
    path, hub_home, tmp_path, monkeypatch, without_the_embedded_family
):
    monkeypatch.setenv("HF_HOME", str(hub_home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = {k: v for k, v in TINY.items() if k in run.parameters_of(path)}
    assert "model" in given
    page = run.run_report(path, given, out=tmp_path)
    assert run.status(page.parent)["state"] == "done"
    assert "Embedded teaching model" not in page.read_text("utf-8")


# --- exercises ----------------------------------------------------------------------------------


@every_notebook
def test_every_exercise_has_a_solution(path):  # `with_solutions` has nbval run them
    assert bool(solutions(read(path))) == ("<details>" in path.read_text("utf-8"))


def test_a_wrong_solution_is_noticed(tmp_path):
    new = nbformat.v4
    exercise = new.new_code_cell("answer = None", metadata={"tags": ["exercise"]})
    details = "<details>\n\n```python\nassert None == 42\n```\n\n</details>"
    book = new.new_notebook(cells=[exercise, new.new_markdown_cell(details)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(book, tmp_path / "wrong.ipynb")
    shutil.copy(HERE / "solutions.py", tmp_path)
    (tmp_path / "conftest.py").write_text(HOOK)
    command = [sys.executable, "-m", "pytest", "-q", "--nbval", "--nbval-current-env", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "1 failed, 1 passed" in done.stdout, done.stdout


def test_executing_twice_gives_the_same_bytes(tmp_path):
    new = nbformat.v4
    cells = [new.new_code_cell(f"print({i})\nprint('again')\n{i}") for i in range(3)]
    nbformat.write(new.new_notebook(cells=cells), path := tmp_path / "same.ipynb")
    run.execute_in_place(path)
    first = path.read_bytes()
    run.execute_in_place(path)
    assert path.read_bytes() == first and b'"execution_count": 3' in first


def test_a_failing_notebook_stays_as_it_was(tmp_path):
    cells = [nbformat.v4.new_code_cell("assert False")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path := tmp_path / "wrong.ipynb")
    before = path.read_bytes()
    with pytest.raises(Exception, match="AssertionError"):
        run.execute_in_place(path)
    assert path.read_bytes() == before
