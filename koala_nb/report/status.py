"""What became of a run of a report: under way, done or failed, told also from other machines."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from koala_nb.models.hub import read_json

PULSE, SILENT = 60, 600  # seconds: a status is touched so often; its run is dead where it was not
STATES = ("running", "done", "failed")


def process() -> dict[str, Any]:
    """What tells this process from all others: number, start in seconds, and machine."""
    import psutil

    started = psutil.Process().create_time()
    return {"pid": os.getpid(), "born": started, "host": socket.gethostname()}


def status(folder: str | Path) -> dict[str, Any]:
    """Read what became of a run: its `status.json` with the state `running`, `done` or `failed`.

    `absent` where there is no run; a run that was killed, so that its process on this machine is
    gone, or that has been silent on another one, reads as `failed`. OSError for a damaged file.
    """
    file = Path(folder) / "status.json"
    if not file.is_file():
        return {"state": "absent"}
    state = read_json(file)
    silent = "host" not in state or time.time() - file.stat().st_mtime > SILENT
    dead = not _alive(state) if is_here(state) else silent
    if state.get("state") not in STATES or state["state"] == "running" and dead:
        state |= {"state": "failed", "cell": "an unknown cell", "error": "The run was killed."}
    return state


def is_here(state: Mapping[str, Any]) -> bool:
    """Whether the process of a run, by its status, is one of this machine."""
    return state.get("host") == socket.gethostname()


def _alive(state: Mapping[str, Any]) -> bool:
    """Whether the process that began a run is there: a later one may have its number."""
    import psutil

    try:
        process = psutil.Process(state["pid"])
        is_same = abs(process.create_time() - state["born"]) < 2
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


@contextmanager
def pulse(file: Path) -> Iterator[None]:
    """Touch a run's status now and then, so that other machines see that it is under way."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(PULSE):
            os.utime(file)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
