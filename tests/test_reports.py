"""Reports: strict parameters, a status that tells the truth, a page that stands alone."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import nbformat
import pytest
from bs4 import BeautifulSoup

from koala_nb.core import catalog, files
from koala_nb.report import audit, run
from koala_nb.report.page import NOT_IN_REPORT, render_page
from koala_nb.report.run import ReportFailed

PARAMETERS = (
    'name: str = "a"  # a text\n'
    "count: int = 1  # a whole number\n"
    "rate: float = 0.5  # a number\n"
    "flag: bool = False  # yes or no"
)
FIGURE = """
from PIL import Image
from koala_nb.display import figures

grid = figures.image_grid([Image.new("RGB", (8, 8))], ["$x <b>"], ["seed 0"])
figures.show(grid, "One black image & a <label>.")
figures.show(grid, "A <large> one.", images=[Image.new("RGB", (512, 512))])
"""


@pytest.fixture
def notebook(tmp_path):
    """Write a notebook of the given code cells, with the parameters above; returns its path."""

    def write(*cells, name="tiny"):
        new = nbformat.v4.new_code_cell
        book = nbformat.v4.new_notebook(cells=[new(PARAMETERS), *map(new, cells)])
        book.cells[0].metadata["tags"] = ["parameters"]
        book.cells.insert(0, nbformat.v4.new_markdown_cell("# Try a notebook"))
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(book, path)
        return path

    return write


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"cuont": 2}, ["no parameter 'cuont'", "Did you mean 'count'"]),
        ({"count": "5"}, ["'count'", "'5'", "type int"]),
        ({"count": 5.0}, ["'count'", "5.0", "type int"]),
        ({"count": True}, ["'count'", "True", "type int"]),
        ({"name": 3}, ["'name'", "3", "type str"]),
        ({"rate": "0.5"}, ["'rate'", "type float"]),
        ({"rate": float("nan")}, ["'rate'", "nan", "type float"]),
        ({"flag": 1}, ["'flag'", "1", "type bool"]),
    ],
)
def test_bad_parameters_stop_before_anything_runs(notebook, tmp_path, given, words):
    path = notebook("open('ran', 'w')")
    with pytest.raises(ValueError) as error:
        run.run_report(path, given, out=tmp_path / "out")
    assert all(word in str(error.value) for word in words), error.value
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ({"count": "-3"}, -3),
        ({"rate": "2"}, 2.0),
        ({"rate": "1e-3"}, 0.001),
        ({"flag": "true"}, True),
        ({"name": "5"}, "5"),
    ],
)
def test_text_from_the_command_line_gets_the_type_of_its_parameter(notebook, given, value):
    (name,) = given
    found = run.check(notebook(), given, text=True)[name]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("given", [{"count": "2.0"}, {"count": ""}, {"rate": "nan"}, {"flag": "1"}])
def test_text_of_another_type_is_refused(notebook, given):
    with pytest.raises(ValueError, match="give a value of type"):
        run.check(notebook(), given, text=True)


@pytest.mark.parametrize("line", ["n = 1", "%time n: int = 1", "n: int = 2 * 3", "n: int = 'x'"])
def test_a_parameter_that_is_no_plain_value_is_refused(notebook, line):
    book = nbformat.read(path := notebook(), as_version=4)
    book.cells[1].source = line
    nbformat.write(book, path)
    with pytest.raises(ValueError, match="tiny.ipynb, parameters cell"):
        run.parameters_of(path)


def test_a_run_that_passes(notebook, tmp_path):
    path = notebook(
        "from koala_nb.core import files\n"
        "from koala_nb.report import run\n"
        "files.write_json(run.run_folder() / 'results.json', {'count': count});",
        "print('count is', count)",
        FIGURE,
    )
    page = run.run_report(path, count=7, out=tmp_path / "out")
    assert page.name == "index.html" and page.parent.name.startswith("tiny-")
    assert run.status(page.parent)["state"] == "done"
    assert json.loads((page.parent / "results.json").read_text()) == {"count": 7}
    assert (page.parent / "tiny.ipynb").is_file()
    text = page.read_text("utf-8")
    assert "count is 7" in text and "import" not in text, "outputs are shown, code is not"
    assert "<title>Try a notebook</title>" in text and re.search(
        r"<img[^>]*alt=.One black image &amp; a &lt;label&gt;", text
    )
    assert re.search(r'<img alt="A &lt;large&gt; one." src="data:image/jpeg;', text)
    assert_stands_alone(text)


def assert_stands_alone(page):
    """Nothing in the page makes a browser ask a network."""
    found = re.findall(
        r"<script|<link|<iframe|@import|url\(\s*['\"]?http|src=['\"]?(?!['\"]?data:)[^\s>]+", page
    )
    assert not found, found
    policy = BeautifulSoup(page, "html.parser").find("meta", {"http-equiv": True})["content"]
    assert {"default-src 'none'", "form-action 'none'", "base-uri 'none'"} <= {*policy.split("; ")}


@pytest.mark.parametrize("path", sorted(run.NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.stem[:2])
def test_the_page_of_every_notebook_stands_alone(path):
    page = render_page(path)
    assert_stands_alone(page)
    soup = BeautifulSoup(page, "html.parser")
    assert soup.html["lang"] == "en" and len(soup.title.text) >= 5 and len(soup("h1")) == 1
    assert all(image.get("alt") for image in soup("img")), "a figure without an alternative text"
    ids = [tag["id"] for tag in soup(id=True)]
    assert len(ids) == len(set(ids))
    for verbatim in soup(("code", "pre", "style", "title")):
        verbatim.decompose()
    assert not re.search(r"\$[^\d\s][^$]*\$", soup.text), "a formula left as TeX"
    assert "jp-InputArea-editor" not in page and "Error displaying widget" not in page
    source = path.read_text("utf-8")
    assert source.count("says nothing about KOALA") == 0 or 'class="banner"' in page
    assert ("<math" in page) == any(
        re.search(r"\$[^$]*\\?[a-zA-Z][^$]*\$", cell.source)
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "markdown" and NOT_IN_REPORT not in cell.metadata.get("tags", ())
    )


def page_of(tmp_path, *cells):
    path = tmp_path / "one.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), path)
    return render_page(path)


def test_formulas_become_mathml(tmp_path):
    text = "A price of 5 dollars.\n\n$$\\frac{a}{b}$$\n\nAn $x^2 < 3$, a $\\nosuch{y}$ and `$z$`."
    page = page_of(tmp_path, nbformat.v4.new_markdown_cell(text))
    assert len(re.findall("<mfrac>", page)) == 1 and 'display="block"' in page
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in page and "&lt;</mo>" in page.replace(
        "&#x0003C;", "&lt;"
    )
    assert r"<code>\nosuch{y}</code>" in page and "<code>$z$</code>" in page


def test_widgets_are_left_out_and_the_banner_of_a_hidden_cell_is_not(tmp_path):
    output = nbformat.v4.new_output
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "HBox()"}
    setup = nbformat.v4.new_code_cell("pipe", metadata={"tags": ["not-in-report"]})
    banner = {"text/html": '<p class="banner">A stand-in.</p>'}
    setup.outputs = [output("display_data", data=banner), output("stream", text="setting up")]
    shown = nbformat.v4.new_code_cell("explore()")
    shown.outputs = [output("display_data", data=widget), output("stream", text="a table")]
    page = page_of(tmp_path, nbformat.v4.new_markdown_cell("# A & B"), setup, shown)
    assert "HBox" not in page and "a table" in page and "setting up" not in page
    assert page.count("A stand-in.") == 1 and page.count("<h1") == 1


HOSTILE = {
    "text/markdown": "[click](https://evil.example) <img src=//evil.example/a.png>",
    "text/vnd.mermaid": "graph TD; evil",
    "application/javascript": "evil()",
    "text/html": "<p>a table</p><SCRIPT src='//evil.example'>evil()</SCRIPT ><p>its end</p>",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_output_brings_a_script_or_markup_of_its_own(tmp_path, kind):
    cell = nbformat.v4.new_code_cell("show()")
    data = {kind: HOSTILE[kind], "text/plain": "<evil>"}
    cell.outputs = [nbformat.v4.new_output("display_data", data=data)]
    page = page_of(tmp_path, nbformat.v4.new_markdown_cell("# A page"), cell)
    assert "evil" not in page and ("a table" in page and "its end" in page) == (kind == "text/html")
    assert_stands_alone(page)


def test_the_same_call_finds_the_same_folder_and_starts_afresh(notebook, tmp_path, monkeypatch):
    path = notebook(
        "from koala_nb.report import run",
        "import pathlib",
        "new = pathlib.Path('second').exists()",
        "(run.run_folder() / 'sub').mkdir()",
        "(run.run_folder() / 'sub' / ('new' if new else 'old')).write_text(str(new))",
    )
    page = run.run_report(path, count=2, out=tmp_path)
    (page.parent / "notes.txt").write_text("the user's own")
    (page.parent / "sub" / "notes.txt").write_text("also")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "second").touch()
    assert run.run_report(path, count=2, out=tmp_path) == page
    here = {p.relative_to(page.parent).as_posix() for p in page.parent.rglob("*") if p.is_file()}
    expected = "index.html notes.txt status.json sub/new sub/notes.txt tiny.ipynb"
    assert here == set(expected.split())
    other = run.folder_of(path, run.check(path, {"count": 3}), tmp_path)
    assert other != page.parent == run.folder_of(path, run.check(path, {"count": 2}), tmp_path)


def test_a_failed_run_is_told_and_taken_up_where_it_stopped(notebook, tmp_path):
    path = notebook(
        "from koala_nb.report import run",
        "file = run.run_folder() / 'images'\nassert file.exists() or file.touch(), 'none'",
        "print(2)",
    )
    with pytest.raises(ReportFailed, match="tiny failed at cell 4: AssertionError: none"):
        run.run_report(path, out=tmp_path)
    (folder,) = tmp_path.glob("tiny-*")
    state = run.status(folder)
    assert (state["state"], state["cell"]) == ("failed", "cell 4")
    assert "none" in state["error"] and not (folder / "index.html").exists()
    assert run.status(run.run_report(path, out=tmp_path).parent)["state"] == "done"


def test_a_dead_kernel(notebook, tmp_path):
    path = notebook("print(1)", "import os\nos.kill(os.getpid(), 9)", "print(2)")
    with pytest.raises(ReportFailed, match="kernel died"):
        run.run_report(path, out=tmp_path)
    (folder,) = tmp_path.glob("tiny-*")
    assert run.status(folder)["state"] == "failed"
    assert not (folder / "index.html").exists()


def wait_for(file):
    limit = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.1)


def test_a_kill_leaves_the_finished_report_and_is_told_from_a_running_one(notebook, tmp_path):
    path = notebook(
        "import pathlib, time\nfrom koala_nb.core import files\nfrom koala_nb.report import run",
        "files.write_json(run.run_folder() / 'results.json', {'count': count});",
        "if pathlib.Path('slow').exists():\n    pathlib.Path('began').touch()\n    time.sleep(120)",
    )
    folder = run.run_report(path, out=tmp_path / "out").parent
    (folder / "notes.txt").write_text("the user's own")
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "status.json"}
    assert before.keys() == {"index.html", "results.json", "notes.txt", "tiny.ipynb"}
    (tmp_path / "slow").touch()
    command = [sys.executable, "-m", "koala_nb", "report", str(path), "--out", "out"]
    runner = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        wait_for(tmp_path / "began")
        assert run.status(folder)["state"] == "running"
        with pytest.raises(ValueError, match="is being written by another process: wait for its"):
            run.run_report(path, out=tmp_path / "out")
    finally:
        os.kill(runner.pid, signal.SIGKILL)
        runner.wait()
    state = run.status(folder)
    assert (state["state"], state["error"]) == ("failed", "The run was killed.")
    assert json.loads((folder / "status.json").read_text())["state"] == "running"
    assert {name: (folder / name).read_bytes() for name in before} == before
    (tmp_path / "slow").unlink()
    run.run_report(path, out=tmp_path / "out")
    assert {p.name for p in folder.iterdir()} == {*before, "status.json"}


def test_a_publication_that_was_killed_goes_on(notebook, tmp_path, monkeypatch):
    path = notebook(
        "from koala_nb.report import run", "[(run.run_folder() / name).touch() for name in 'ab'];"
    )
    folder, replace = run.run_report(path, out=tmp_path).parent, os.replace
    state = files.read_json(folder / "status.json")
    files.write_json(folder / "status.json", state | {"files": [*state["files"], "of-old"]})
    (folder / "of-old").touch()

    def kill(source, target):
        if str(target) == str(folder / "b"):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", kill)
        run.run_report(path, out=tmp_path)
    assert run.status(folder)["state"] == "failed" and (folder / "unfinished" / "b").exists()
    run.run_report(path, out=tmp_path, keep_done=True)
    names = {"index.html", "status.json", "tiny.ipynb", "a", "b"}
    assert {p.name for p in folder.iterdir()} == names and run.status(folder)["state"] == "done"


def test_files_outside_the_folder_are_never_removed(notebook, tmp_path):
    folder = run.run_report(path := notebook("1"), out=tmp_path / "out").parent
    state = files.read_json(folder / "status.json")
    (tmp_path / "thesis.txt").touch()
    for name in ("../../thesis.txt", str(tmp_path / "thesis.txt")):
        files.write_json(folder / "status.json", state | {"files": [name]})
        with pytest.raises(ValueError, match="status.json names .*, outside: delete it."):
            run.run_report(path, out=tmp_path / "out")
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_tells_nothing_of_the_machine_or_its_user(notebook, tmp_path, monkeypatch, fails):
    home = tmp_path / "home" / "alice"
    (home / "models" / "koala").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    path = notebook(
        "import os, warnings\nfrom koala_nb.report import run",
        "print(name, os.getcwd(), run.run_folder())",
        "warnings.warn(str(run.ROOT))",
        "1 / count",
    )
    with suppress(ReportFailed):
        given = {"name": str(home / "models" / "koala"), "count": 0 if fails else 1}
        run.run_report(path, given, out=home / "reports")
    (folder,) = (home / "reports").iterdir()
    assert run.status(folder)["state"] == ("failed" if fails else "done")
    assert run.status(folder)["parameters"]["name"] == "koala"
    texts = [p.read_text("utf-8") for p in folder.rglob("*") if p.is_file()]
    assert len(texts) == (2 if fails else 3)
    for text in texts:
        for secret in ("alice", str(tmp_path), str(run.ROOT), socket.gethostname(), '"pid"'):
            assert secret not in text
    book = nbformat.reads(next(text for text in texts if text.startswith('{\n "cells"')), 4)
    assert "koala ~ unfinished" in str(book.cells)


def test_a_run_is_under_way_while_somebody_has_its_lock_whatever_the_clock_says(tmp_path):
    (tmp_path / "status.json").write_text('{"state": "running", "started": "2099-01-01"}')
    assert run.status(tmp_path)["state"] == "failed"
    with files.locked(tmp_path):
        code = f"from koala_nb.report import run; print(run.status({str(tmp_path)!r})['state'])"
        command = [sys.executable, "-c", code]
        assert subprocess.run(command, capture_output=True, text=True).stdout == "running\n"
    assert run.status(tmp_path)["state"] == "failed"


@pytest.mark.parametrize("text", ["{}", '{"state": "running"}', '{"state": 7}'])
def test_a_status_that_says_too_little_is_a_failed_run(tmp_path, text):
    (tmp_path / "status.json").write_text(text)
    assert run.status(tmp_path)["state"] == "failed"
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(OSError, match="status.json is not readable JSON"):
        run.status(tmp_path)


def test_the_prompts_that_come_with_the_project():
    for domain in ("photographic", "emoji-world"):
        frame = audit.read_prompts(domain)
        assert len(frame) >= 16 and frame["id"].is_unique and frame["prompt"].is_unique
        assert (frame["factors"] != "").all()
    card = catalog.find("koala-lightning-700m").recipe.prompt
    assert audit.read_prompts("photographic")["prompt"][0] == card
