"""`generate` by many processes, GPUs or machines: over any `dask.distributed.Client`.

A run is cut into chunks of whole batches by the work alone, so that workers, however many and in
whatever order, write the bytes that one process would. What is on the disk is never drawn again.
Dask schedules the chunks, watches the workers, and gives what a lost one had to another.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from koala_nb.core import catalog, files
from koala_nb.core.devices import empty_cache
from koala_nb.core.files import short
from koala_nb.generation import generate as generation
from koala_nb.generation import run_folder
from koala_nb.generation.plan import Plan, Settings, make_plan
from koala_nb.models import load

if TYPE_CHECKING:
    from distributed import Client

    from koala_nb.models.load import Pipeline

_DRAWING = threading.Lock()  # a pipeline cannot draw in two threads
Source = tuple[str, str | None, str | None, str | None]  # model, device, dtype, revision
_LOADED: dict[Source, Pipeline] = {}  # in each worker's process: its one pipeline


def generate(
    model: str | Path,
    prompts: str | Sequence[str],
    seeds: Sequence[int] | Sequence[Sequence[int]] = (0,),
    *,
    out: str | Path,
    client: Client,
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Path:
    """Draw every prompt with every seed on the client's workers; returns the run's folder.

    `model`, `device`, `dtype` and `revision` as for `load`, which each worker calls once;
    `settings` as for `generate.generate`. Client and workers must see the same folder `out`, whose
    layout `run_folder` tells. The work of a lost worker is done by another, and the same call goes
    on after any interruption. Raises ValueError for a bad argument or a folder with other
    settings, and OSError, naming the worker, where weights are missing or differ.
    """
    distributed = _distributed()
    if not isinstance(client, distributed.Client):
        raise ValueError(
            f"client must be a dask.distributed.Client, not {short(client)}: use `with "
            "cluster.local(2) as client`."
        )
    known = [setting.name for setting in fields(Settings)]
    if unknown := settings.keys() - known:
        raise ValueError(f"generate has no argument {min(unknown)}: use {', '.join(known)}.")
    folder = run_folder.folder_at(out).resolve()
    source = (_name(model), device, dtype, revision)
    with _sentences(distributed):
        arguments = (source, prompts, seeds, Settings(**settings))
        plan, base, common, messages = client.submit(_prepare, *arguments, pure=False).result()
        for message in messages:
            warnings.warn(message, stacklevel=2)
        run_folder.open_folder(folder, {**base, "device": common["device"]}, plan)
        chunks = run_folder.split_plan(plan)
        todo = {i: chunks[i] for i in run_folder.unfinished_chunks(folder, chunks)}
        left = sum(len(chunk.requests) for chunk in todo.values())
        run_folder.check_space(folder, plan, left)
        shared = {"source": source, "common": common, "folder": folder}
        futures = client.map(_draw, [*todo], [*todo.values()], **shared, pure=False)
        _wait(client, futures, len(plan.requests), left, progress)
    run_folder.clean(folder)  # of what killed workers left
    return folder


def _wait(client: Client, futures: list[Any], total: int, left: int, progress: bool) -> None:
    from distributed import as_completed
    from tqdm import tqdm

    try:
        with tqdm(total=total, initial=total - left, unit="image", disable=not progress) as bar:
            for future in as_completed(futures, loop=client.loop):
                bar.update(future.result())
    finally:
        client.cancel(futures)  # what has not begun, where this was interrupted


@contextmanager
def local(workers: int, *, threads: int = 1) -> Iterator[Client]:
    """Yield a client of so many worker processes on this machine; they end with the block.

    Where there are GPUs, each worker sees one, in turn. On CPUs each computes with `threads`
    threads: not with a share of the cores, because rounding, and so the bytes of an image, can
    change with the number of threads. A script must call this under `if __name__ == "__main__":`.
    Raises ValueError for no worker or where dask is not installed.
    """
    distributed = _distributed()
    for name, value in {"workers": workers, "threads": threads}.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {short(value)}.")
    gpus = _gpus()
    specification = {}
    for i in range(workers):
        env = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = gpus[i % len(gpus)]
        # No limit of memory: most of it are weights, which no worker could give back.
        options = {"nthreads": 1, "memory_limit": 0, "env": env, "silence_logs": logging.ERROR}
        specification[i] = {"cls": distributed.Nanny, "options": options}
    scheduler = {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"}
    with (
        distributed.SpecCluster(
            specification,
            {"cls": distributed.Scheduler, "options": scheduler},
            silence_logs=logging.ERROR,
        ) as machines,
        distributed.Client(machines, set_as_default=False) as client,
    ):
        client.wait_for_workers(workers)
        client.register_plugin(_threads(threads))  # also where a worker is started again
        yield client


def _threads(number: int) -> Any:
    """A plugin that sets torch's threads: too late for OMP_NUM_THREADS where a script has torch."""
    from distributed import WorkerPlugin

    class Threads(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            import torch

            torch.set_num_threads(number)

    return Threads()


def _gpus() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]


def _name(model: str | Path) -> str:
    """A model's name as any worker understands it, whatever folder it works in."""
    name = str(model)
    if name not in {s.name for s in catalog.SYSTEMS} and Path(name).is_dir():
        return str(Path(name).resolve())
    return name if "/" in name else catalog.find(name).name


def _load(source: Source) -> Pipeline:
    """The pipeline of a source; there is never a second one beside it in a worker's memory."""
    if source not in _LOADED:
        _LOADED.clear()
        empty_cache()
        model, device, dtype, revision = source
        try:
            _LOADED[source] = load.load(model, device=device, dtype=dtype, revision=revision)
        except (OSError, ValueError) as error:
            kind = OSError if isinstance(error, OSError) else ValueError
            raise kind(f"{_worker()}: {error}") from None
    return _LOADED[source]


def _worker() -> str:
    from distributed import get_worker

    worker = get_worker()
    return f"Worker {worker.name} at {worker.address}"


def _prepare(
    source: Source, prompts: Any, seeds: Any, settings: Settings
) -> tuple[Plan, dict[str, Any], dict[str, Any], list[str]]:
    """On a worker: the plan, the run's settings, what workers must agree on, and warnings."""
    with _DRAWING:
        pipe = _load(source)
        plan = make_plan(pipe, prompts, seeds, settings)
        base, _, messages = _look(pipe, plan)
    return plan, base, _common(base), messages


def _look(pipe: Pipeline, plan: Plan) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Settings, what the encoder does not read of which prompts, and the warning of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        unread = generation.find_unread(pipe, plan)
    with generation.spacing(pipe, plan.timestep_spacing):
        base = generation.settings_of(pipe, plan)
    return base, unread, [str(warning.message) for warning in caught]


def _common(base: dict[str, Any]) -> dict[str, Any]:
    """What all workers must have in common, since it can change an image."""
    import torch

    device = base["device"].split(":")[0]
    threads = {"threads": torch.get_num_threads()} if device == "cpu" else {}
    return {**base, "device": device, **threads, **files.versions()}


def _draw(number: int, plan: Plan, *, source: Source, common: dict[str, Any], folder: Path) -> int:
    """On a worker: draw what is missing of a chunk and write its records; returns its length."""
    with _DRAWING:
        pipe = _load(source)
        base, unread, _ = _look(pipe, plan)
        here = _common(base)
        for key in common:
            if here.get(key) != common[key]:
                raise OSError(
                    f"{_worker()} has {key} {short(here.get(key))} where another has "
                    f"{short(common[key])}: give all workers the same, or images would differ."
                )
        with generation.spacing(pipe, plan.timestep_spacing):
            drawn, _ = generation.generate_missing(pipe, plan, base, unread, folder, False)
    records = [drawn.get(r) or files.read_record(folder / r.file) for r in plan.requests]
    run_folder.write_chunk(folder, number, records)
    return len(records)


@contextmanager
def _sentences(distributed: Any) -> Iterator[None]:
    """Say what dask's own errors mean here."""
    from concurrent.futures import CancelledError

    try:
        yield
    except distributed.scheduler.KilledWorker as error:
        raise OSError(
            f"One chunk ended several workers, the last {error.last_worker.address}: its memory "
            "may not suffice; give fewer workers a machine or a smaller batch_size."
        ) from None
    except CancelledError:
        raise OSError("The scheduler was lost: connect again and repeat the call.") from None


def _distributed() -> Any:
    try:
        import distributed
        import distributed.scheduler
    except ImportError:
        raise ValueError(
            f"Several workers need dask.distributed, which is missing: {run_folder.INSTALL}."
        ) from None
    return distributed
