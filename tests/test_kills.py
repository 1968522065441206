"""Generation and sweeps killed at random moments and started again, over and over.

KOALA_NB_KILLS sets the number of kills: `make test-all` makes 100.
"""

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial

import nbformat
import pytest

from koala_nb import generate
from koala_nb.core import files as provenance
from koala_nb.core.files import read_json
from koala_nb.report import run
from koala_nb.report import sweep as sweeps

KILLS = int(os.environ.get("KOALA_NB_KILLS", "12"))
ASKED = {"prompts": [f"{n} koalas" for n in range(8)], "seeds": range(4), "batch_size": 3}
ASKED |= {"height": 64, "width": 64, "steps": 2, "progress": False}


def contents(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def kill_child(work, delay, wait=time.sleep):
    """Fork a child that does `work` and kill it when `wait(delay)` ends; whether it was at work."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    wait(delay)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed of itself"
    return os.WIFSIGNALED(status)


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has loaded torch")
def test_killed_at_random_moments_nothing_is_lost_or_there_twice(loaded, tmp_path, one_thread):
    whole, killed = tmp_path / "whole", tmp_path / "0"
    started = time.monotonic()
    generate(loaded, out=whole, **ASKED)
    took = time.monotonic() - started
    chance = random.Random(0)
    kills = rounds = amid = 0
    while kills < KILLS:
        rounds += 1
        assert rounds < 4 * KILLS, "the children end before they are killed"
        delay = chance.uniform(0, 0.4) * took
        kills += kill_child(partial(generate, loaded, out=killed, **ASKED), delay)
        made = len(list((killed / "images").glob("0*.png")))
        amid += 0 < made < 32
        if (killed / "records.jsonl").exists():  # this folder is done: check it, begin another
            (killed / ".lock").unlink(missing_ok=True)  # of a kill after the last record
            assert contents(killed) == contents(whole)
            killed = tmp_path / str(rounds)
    generate(loaded, out=killed, **ASKED)
    assert contents(killed) == contents(whole)  # so no temporary file either
    assert len(provenance.read_lines(killed / "records.jsonl")) == 32
    assert amid >= KILLS // 4, "the kills must fall amid the work"
    print(f"{kills} kills, {amid} of them with some images made")


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path):
    file = tmp_path / "file"
    contents = (b"old" * 7_000_000, b"new" * 8_000_000)  # long enough to be killed amid
    provenance.write_atomic(file, contents[0])

    def write():
        while True:
            for data in contents:
                provenance.write_atomic(file, data)

    def amid(delay):
        """Wait for the child's first temporary file, and then a little."""
        end = time.monotonic() + 60
        while not set(tmp_path.glob(".*.tmp")) - before and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(delay)

    chance, left, before = random.Random(1), 0, set()
    for _ in range(KILLS):
        assert kill_child(write, chance.uniform(0, 0.05), amid)
        left += bool(set(tmp_path.glob(".*.tmp")) - before)
        before = set(tmp_path.glob(".*.tmp"))
        assert file.read_bytes() in contents
    assert left, "no kill fell amid a write"
    provenance.clean_temporary(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


WRITES = """
from koala_nb.core import files
from koala_nb.report import run

for k in range(40):
    files.write_json(run.run_folder() / f"part-{k}.json", {"value": number * k})
files.write_json(run.run_folder() / "results.json", {"number": number})
"""


def killed_sweep(command, delay, whole_group):
    """Start a sweep and kill it after `delay` seconds, with or without the runs that it started."""
    sweep = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        assert sweep.wait(delay) == 0, "the sweep failed of itself"
        return False
    except subprocess.TimeoutExpired:
        (os.killpg if whole_group else os.kill)(sweep.pid, signal.SIGKILL)
        sweep.wait()
        return True


def finished(out):
    """When the pages of finished runs were written."""
    folders = [p for p in out.glob("tiny-*") if run.status(p)["state"] == "done"]
    return {folder: (folder / "index.html").stat().st_mtime_ns for folder in folders}


def kept(out):
    """All that the runs of a sweep wrote: not their pages, whose cells and times may differ."""
    files = {f"{p.parent.name}/{p.name}": p for p in out.glob("tiny-*/*.json")}
    return {k: p.read_bytes() for k, p in files.items() if p.name != "status.json"}


@pytest.mark.skipif(sys.platform == "win32", reason="kills a group of processes")
def test_a_sweep_killed_at_random_moments_ends_as_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = [nbformat.v4.new_code_cell("number: int = 0"), nbformat.v4.new_code_cell(WRITES)]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "tiny.ipynb")
    (tmp_path / "sweep.yaml").write_text("grid: {number: [1, 2, 3, 4]}\nworkers: 2")
    started = time.monotonic()
    assert sweeps.run_sweep("tiny.ipynb", "sweep.yaml", out="whole")[1] == 0
    took = time.monotonic() - started
    out = tmp_path / "0"
    chance, kills, done = random.Random(2), 0, {}
    while kills < max(3, KILLS // 4):
        command = [sys.executable, "-m", "koala_nb", "report", "tiny.ipynb"]
        command += ["--sweep", "sweep.yaml", "--out", str(out)]
        kills += killed_sweep(command, chance.uniform(0.2, 0.9) * took, chance.random() < 0.5)
        assert done.items() <= finished(out).items(), "a finished run was done again"
        done = finished(out)
        if len(done) == 4:  # check it, and begin another
            assert kept(out) == kept(tmp_path / "whole")
            out, done = tmp_path / str(kills), {}
    page, failed = sweeps.run_sweep("tiny.ipynb", "sweep.yaml", out=out)
    assert failed == 0 and read_json(page.with_name("sweep.json"))["counts"]["done"] == 4
    assert kept(out) == kept(tmp_path / "whole") and len(kept(out)) == 4 * 41
    assert not list(out.rglob("*.tmp"))


def test_a_run_ends_though_nobody_reads_what_it_says(tmp_path):
    cells = [nbformat.v4.new_code_cell("import time\ntime.sleep(3)")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "slow.ipynb")
    code = "from koala_nb.report import run; run.run_report('slow.ipynb', out='out')"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE)
    process.stderr.read(1)  # of the bar, which counts images every second from here on
    process.stderr.close()
    process.wait(60)
    (folder,) = (p.parent for p in (tmp_path / "out").glob("*/status.json"))
    assert run.status(folder)["state"] == "done"
