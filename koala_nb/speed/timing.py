"""What the benchmarks share: taking turns, medians with intervals, memory, files of results.

Ways that are compared take turns in one process, so that the machine's moods hit all alike.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from koala_nb.core.catalog import data_folder
from koala_nb.core.files import environment, write_json
from koala_nb.stats.estimates import Estimate

Calls = Mapping[str, Callable[[], Any]]


def seconds_of(call: Callable[[], Any], device: str = "cpu") -> float:
    """Return the seconds that a call takes; on a GPU all of its work is included."""
    place = torch.device(device)
    if place.type != "cuda":
        wait = torch.mps.synchronize if place.type == "mps" else lambda: None
        wait()  # a call only gives Apple's GPU its work
        begin = time.perf_counter()
        call()
        wait()
        return time.perf_counter() - begin
    with torch.cuda.device(place):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        call()
        last.record()
        torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3


def take_turns(calls: Calls, repeats: int, device: str = "cpu") -> dict[str, list[float]]:
    """Return each call's seconds, one a round; rounds start with another call each time.

    Every call runs once before, uncounted. Where one runs out of memory, in whatever round, its
    list is empty.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    alive = [name for name in calls if _seconds_or_none(calls[name], device) is not None]
    for turn in range(repeats):
        at = turn % max(1, len(alive))
        for name in alive[at:] + alive[:at]:
            if (taken := _seconds_or_none(calls[name], device)) is None:
                alive.remove(name)
            else:
                seconds[name].append(taken)
    return {name: values if name in alive else [] for name, values in seconds.items()}


def _seconds_or_none(call: Callable[[], Any], device: str) -> float | None:
    """The seconds of a call; None where it runs out of memory."""
    from koala_nb.core.devices import empty_cache, is_out_of_memory

    try:
        return seconds_of(call, device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    empty_cache()
    return None


def median_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Estimate:
    """Return the median with its bootstrap interval (percentiles); the least is two values."""
    found = np.asarray(values, dtype=float)
    middle = float(np.median(found))
    if np.ptp(found) == 0:
        return Estimate(middle, middle, middle, len(found))
    interval = stats.bootstrap(
        (found,), np.median, method="percentile", confidence_level=confidence, rng=0
    ).confidence_interval
    return Estimate(middle, float(interval.low), float(interval.high), len(found))


def ratio_interval(values: Sequence[float], base: Sequence[float]) -> Estimate:
    """Return the median ratio of two lists of the same rounds, with its interval."""
    return median_interval(np.array(values) / np.array(base))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors made inside it, and their peak; scratch in kernels is not.

    A process' resident memory moves by tens of MB from run to run, which hides what is looked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in self._storages((args, kwargs)):
            self.known[storage] = True  # weights, of which an operation may return a view
        found = func(*args, **(kwargs or {}))
        for storage in self._storages(found):
            if storage not in self.known:
                self.known[storage] = True
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return found

    def _storages(self, values: Any) -> list[Any]:
        return [x.untyped_storage() for x in tree_leaves(values) if isinstance(x, torch.Tensor)]

    def _freed(self, size: int) -> None:
        self.now -= size


def peak_gb(call: Callable[[], Any], device: str = "cpu") -> float:
    """Return the peak of what a call allocates beyond what was there before, in GB.

    On a GPU the allocator's own count; elsewhere the live tensors, without scratch in kernels.
    """
    place = torch.device(device)
    if place.type == "cuda":
        with torch.cuda.device(place):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            return (torch.cuda.max_memory_allocated() - before) / 1e9
    with LiveBytes() as live:
        call()
    return live.peak / 1e9


@contextmanager
def watched_memory() -> Iterator[list[tuple[float, float]]]:
    """Yield a list that fills with (time, resident memory in MB), fifty a second."""
    import psutil

    process, found, done = psutil.Process(), [], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            found.append((time.time(), process.memory_info().rss / 1e6))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def write_result(
    name: str,
    given: Sequence[str],
    options: Mapping[str, Any],
    out: Path | None,
    device: str | None,
    **found: Any,
) -> Path:
    """Write `<out>/benchmark-<name>.json`: command, options, environment, what was found.

    `device` is the one measured; None: the best available.
    """
    what = name.partition("-")[0]
    result = {
        "command": " ".join(["koala-nb benchmark", what, *given]),
        "options": {k: v for k, v in options.items() if k != "out"},
        "environment": environment(device) | {"cores": os.cpu_count()},
        **found,
    }
    folder = out or data_folder() / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return write_json(folder / f"benchmark-{name}.json", result)
