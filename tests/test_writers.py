"""Two writers of one folder at once: one works, the other waits or gets one sentence.

KOALA_NB_TRIALS sets the number of trials of each kind.
"""

import json
import os
import subprocess
import sys
import threading
from functools import partial

import nbformat
import pytest

from koala_nb import generate
from koala_nb.core import files
from koala_nb.report import run

TRIALS = int(os.environ.get("KOALA_NB_TRIALS", "3"))
SMALL = {"seeds": range(4), "height": 64, "width": 64, "batch_size": 2, "progress": False}
forks = pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has loaded torch")


def together(*works):
    """Fork a child for each work, let all begin at once; the error of each, or None."""
    (ready, go), children = os.pipe(), []
    for work in works:
        error, say = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(go)
            os.read(ready, 1)  # until the parent closes its end
            try:
                work()
            except Exception as failure:
                os.write(say, f"{type(failure).__name__}: {failure}".encode())
            finally:
                os._exit(0)
        os.close(say)
        children.append((child, error))
    os.close(ready), os.close(go)
    errors = []
    for child, error in children:
        with os.fdopen(error) as pipe:
            errors.append(pipe.read() or None)
        assert os.waitpid(child, 0)[1] == 0
    return errors


@forks
def test_two_settings_never_mix_in_one_folder(loaded, tmp_path, one_thread):
    for trial in range(TRIALS):
        out = tmp_path / str(trial)
        works = [partial(generate, loaded, "a koala", out=out, steps=n, **SMALL) for n in (1, 2)]
        errors = together(*works)
        (refusal,) = (error for error in errors if error)
        assert "ValueError: " in refusal and "\n" not in refusal
        assert "holds a run with other settings: steps was" in refusal or "is being w" in refusal
        steps = 1 + errors.index(None)
        assert files.read_json(out / "settings.json")["steps"] == steps
        records = [files.read_record(file) for file in sorted(out.glob("images/*.png"))]
        assert [record["steps"] for record in records] == [steps] * 4
        assert files.read_lines(out / "records.jsonl") == sorted(records, key=lambda r: r["seed"])
        assert not list(out.rglob(".*"))


@forks
def test_two_equal_calls_draw_each_image_once(loaded, tmp_path, one_thread):
    work = partial(generate, loaded, "a koala", out=tmp_path, steps=1, **SMALL)
    assert together(work, work) == [None, None]  # the second waits: they are quick
    assert len(files.read_lines(tmp_path / "records.jsonl")) == 4


REPORT = """
import os
from koala_nb.report import run

for k in range(30):
    (run.run_folder() / f"{k}.txt").write_text(str(os.getpid()))
"""


def test_two_reports_of_one_run_never_mix(tmp_path):
    cells = [nbformat.v4.new_code_cell(REPORT)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "tiny.ipynb")
    command = [sys.executable, "-m", "koala_nb", "report", "tiny.ipynb", "--out", "out"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for _ in range(max(1, TRIALS // 5)):
        both = [subprocess.Popen(command, cwd=tmp_path, **pipes) for _ in range(2)]
        errors = [process.communicate()[1].splitlines() for process in both]
        codes = [process.returncode for process in both]
        assert sorted(codes) in ([0, 0], [0, 2])  # quick ones run one after the other
        for code, lines in zip(codes, errors):
            assert code == 0 or lines[-1].endswith("or name another folder.")
        (folder,) = (tmp_path / "out").iterdir()
        assert run.status(folder)["state"] == "done"
        assert len({(folder / f"{k}.txt").read_text() for k in range(30)}) == 1
        assert len(list(folder.iterdir())) == 33


def test_a_folder_is_locked_for_threads_too_and_free_again_afterwards(tmp_path):
    began, end = threading.Event(), threading.Event()

    def hold():
        with files.locked(tmp_path):
            began.set()
            end.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert began.wait(60) and files.is_locked(tmp_path)
    with pytest.raises(ValueError, match="is being written by another process: wait for its end"):
        with files.locked(tmp_path, wait=0):
            pass
    end.set()
    thread.join()
    assert not files.is_locked(tmp_path) and not list(tmp_path.iterdir())
    with files.locked(tmp_path, wait=0):
        assert files.is_locked(tmp_path)


def test_a_file_that_is_there_stays_where_it_is_asked_to(tmp_path):
    for value in (1, 2):
        files.write_json(tmp_path / "a.json", {"value": value}, exclusive=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"value": 1}
