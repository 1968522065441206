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
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from koala_nb.core import catalog, files
from koala_nb.core.devices import empty_cache
from koala_nb.core.errors import whole_number
from koala_nb.core.files import Record, short
from koala_nb.generation import run_folder
from koala_nb.generation.generate import Drawing
from koala_nb.generation.plan import Plan, Settings, make_plan
from koala_nb.models import load
from koala_nb.models.fingerprint import summary
from koala_nb.models.given import is_given
from koala_nb.models.load import Pipeline

if TYPE_CHECKING:
    from distributed import Client, Worker, WorkerPlugin

# Dask's pages ask nobody who they are: none are served.
NO_PAGES: Record = {f"distributed.{role}.http.routes": [] for role in ("scheduler", "worker")}
_DRAWING = threading.Lock()  # a pipeline cannot draw in two threads
# model, device, dtype, revision, offload
Source = tuple[str, str | None, str | None, str | None, str | None]
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
    offload: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Path:
    """Draw every prompt with every seed on the client's workers; returns the run's folder.

    `model`, `device`, `dtype`, `revision` and `offload` as for `load`, called once by each worker;
    `settings` as for `generate.generate`. Client and workers must see the same folder `out`, whose
    layout `run_folder` tells. The work of a lost worker is done by another, and the same call goes
    on after any interruption. Raises ValueError for a bad argument or a folder with other
    settings, and OSError, naming the worker, where weights are missing or differ.
    """
    distributed = run_folder.extra("distributed")
    if not isinstance(client, distributed.Client):
        raise ValueError(
            f"client must be a dask.distributed.Client, not {short(client)}: use `with "
            "cluster.local(2) as client`."
        )
    refuse_given(model)
    folder = run_folder.folder_at(out).resolve()
    source = (_name(model), device, dtype, revision, offload)
    if settings.get("batch_size") is None:
        settings["batch_size"] = run_folder.batch_size_of(folder)
    with _sentences(distributed):
        arguments = (source, prompts, seeds, Settings(**settings))
        plan, base, common, messages = client.submit(_prepare, *arguments, pure=False).result()
        for message in messages:
            warnings.warn(message, stacklevel=2)
        with run_folder.open_folder(folder, base, plan):
            chunks = run_folder.split_plan(plan)
            unfinished = run_folder.unfinished_chunks(folder, chunks, base)
            todo = {i: chunks[i] for i in unfinished}
            total, left = len(plan.requests), sum(len(chunk.requests) for chunk in todo.values())
            run_folder.check_space(folder, plan, left)
            shared = {"source": source, "common": common, "folder": folder}
            futures = client.map(_draw, [*todo], [*todo.values()], **shared, pure=False)
            bar = tqdm(total=total, initial=total - left, unit="image", disable=not progress)
            try:
                for future in distributed.as_completed(futures, loop=client.loop):
                    bar.update(future.result())
            finally:
                bar.close()
                client.cancel(futures)  # what has not begun, where this was interrupted
            run_folder.clean(folder)  # of what killed workers left
    return folder


@contextmanager
def local(workers: int, *, threads: int = 1) -> Iterator[Client]:
    """Yield a client of so many worker processes on this machine; they end with the block.

    Where there are GPUs, each worker sees one, in turn. On CPUs each computes with `threads`
    threads: not with a share of the cores, because rounding, and so the bytes of an image, can
    change with the number of threads. A script must call this under `if __name__ == "__main__":`.
    Only this client and its workers can talk to them: other users of the machine lack the
    certificate, which is made for the block. Raises ValueError for no worker or where dask is not
    installed.
    """
    dask, distributed = run_folder.extra("dask"), run_folder.extra("distributed")
    run_folder.extra("cryptography")  # makes the certificate
    for name, value in {"workers": workers, "threads": threads}.items():
        whole_number(name, value, 1)
    with (
        dask.config.set(NO_PAGES),
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=0,  # most of it are weights, which no worker could give back
            host="127.0.0.1",
            security=distributed.Security.temporary(),  # encryption required, for both sides
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            silence_logs=logging.ERROR,
        ) as machines,
        distributed.Client(machines, set_as_default=False) as client,
    ):
        client.wait_for_workers(workers)
        client.register_plugin(_set_up(threads))  # also where a worker is started again
        yield client


def _set_up(threads: int) -> WorkerPlugin:
    """A plugin that gives each worker its GPU and torch's threads."""
    from distributed import WorkerPlugin

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]

    class SetUp(WorkerPlugin):
        def setup(self, worker: Worker) -> None:
            if gpus:
                os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(worker.name) % len(gpus)]
            torch.set_num_threads(threads)

    return SetUp()


def refuse_given(model: str | Path) -> None:
    """Raise ValueError for a folder of images as given, which no worker draws."""
    if str(model) not in catalog.NAMES and is_given(Path(model)):
        raise ValueError(f"{model} holds images as given: nothing is drawn: leave out the workers.")


def _name(model: str | Path) -> str:
    """A model's name as any worker understands it, whatever folder it works in."""
    name = str(model)
    if name not in catalog.NAMES and Path(name).is_dir():
        return str(Path(name).resolve())
    return name if "/" in name else catalog.find(name).name


def _load(source: Source) -> Pipeline:
    """The pipeline of a source; there is never a second one beside it in a worker's memory."""
    if source not in _LOADED:
        _LOADED.clear()
        empty_cache()
        model, device, dtype, revision, offload = source
        where: Record = {"device": device, "dtype": dtype, "offload": offload}
        try:
            _LOADED[source] = load.load(model, revision=revision, **where)
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
) -> tuple[Plan, Record, Record, list[str]]:
    """On a worker: the plan, the run's settings, what workers must agree on, and warnings."""
    with _DRAWING:
        pipe = _load(source)
        drawing, messages = _drawing(pipe, make_plan(pipe, prompts, seeds, settings))
    return drawing.plan, drawing.folder_settings(), _common(drawing), messages


def _drawing(pipe: Pipeline, plan: Plan) -> tuple[Drawing, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)  # others are of libraries, for their authors
        drawing = Drawing(pipe, plan)
    return drawing, [str(w.message) for w in caught if w.category is UserWarning]


def _common(drawing: Drawing) -> Record:
    """What all workers must share, in short: of what is large, dask makes a task for all calls."""
    settings = drawing.folder_settings() | {"parts": summary(drawing.parts)}
    threads = {"threads": torch.get_num_threads()} if settings["device"] == "cpu" else {}
    return {**settings, **threads, **files.versions()}


def _draw(number: int, plan: Plan, *, source: Source, common: Record, folder: Path) -> int:
    """On a worker: draw what is missing of a chunk and write its records; returns its length."""
    with _DRAWING:
        drawing, _ = _drawing(_load(source), plan)
        if difference := run_folder.first_difference(common, _common(drawing)):
            key, other, here = difference
            raise OSError(
                f"{_worker()} has {key} {short(here)} where another has {short(other)}: give all "
                "workers the same, or images would differ."
            )
        drawn = drawing.write_missing(folder, progress=False)
    records = [drawn.get(r) or files.read_record(folder / r.file) for r in plan.requests]
    run_folder.write_chunk(folder, number, records)
    return len(records)


@contextmanager
def _sentences(distributed: ModuleType) -> Iterator[None]:
    """Say what dask's own errors mean here."""
    try:
        yield
    except distributed.scheduler.KilledWorker as error:
        raise OSError(
            f"One chunk ended several workers, the last {error.last_worker.address}: its memory "
            "may not suffice; give fewer workers a machine or a smaller batch_size."
        ) from None
    except CancelledError:
        raise OSError("The scheduler was lost: connect again and repeat the call.") from None
