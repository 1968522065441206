"""What became of a run, told by its status: also from other machines and after a restart."""

import json
import os
import time

import psutil
import pytest

from koala_nb.report import run
from koala_nb.report.run import heartbeat, process_identity, status


def write(folder, **state):
    folder.mkdir(exist_ok=True)
    (folder / "status.json").write_text(json.dumps({"state": "running", **state}))
    return status(folder)["state"]


def test_a_run_of_this_very_process_is_under_way(tmp_path):
    assert write(tmp_path, **process_identity()) == "running"


def test_a_later_process_of_the_same_number_is_not_the_run(tmp_path):
    init = {**process_identity(), "pid": 1, "process_start": psutil.Process(1).create_time()}
    assert write(tmp_path, **init) == "running"
    assert write(tmp_path, **init | {"process_start": init["process_start"] - 60}) == "failed"
    assert write(tmp_path, **init | {"pid": 2**22 + 1}) == "failed"


def test_a_run_elsewhere_is_dead_once_it_has_been_silent(tmp_path):
    elsewhere = {**process_identity(), "host": "elsewhere"}
    assert write(tmp_path, **elsewhere) == "running"
    long_ago = time.time() - run.SILENT - 1
    os.utime(tmp_path / "status.json", (long_ago, long_ago))
    assert status(tmp_path)["state"] == "failed"


def test_a_run_gives_a_sign_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "HEARTBEAT", 0.01)
    (file := tmp_path / "status.json").write_text("{}")
    os.utime(file, (0, 0))
    with heartbeat(file):
        limit = time.monotonic() + 30
        while file.stat().st_mtime == 0 and time.monotonic() < limit:
            time.sleep(0.01)
    assert file.stat().st_mtime > 0


@pytest.mark.parametrize("text", ["{}", '{"state": "running"}', '{"state": 7}'])
def test_a_status_that_says_too_little_is_a_failed_run(tmp_path, text):
    (tmp_path / "status.json").write_text(text)
    assert status(tmp_path)["state"] == "failed"


def test_a_damaged_status_is_named(tmp_path):
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(OSError, match="status.json is not readable JSON"):
        status(tmp_path)
