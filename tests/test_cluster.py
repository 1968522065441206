"""Generation by several real worker processes: the bytes of one process, whoever is killed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError
from urllib.request import urlopen

import dask
import distributed
import pytest
from dask.sizeof import sizeof
from hub_layout import COMMIT, REPOSITORY, write_hub_layout

from koala_nb import generate, load
from koala_nb.core import files as provenance
from koala_nb.generation import cluster, run_folder
from koala_nb.generation import plan as plans
from koala_nb.generation.generate import Drawing
from koala_nb.models import load as pipelines

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = [f"{n} koalas" for n in range(8)]
ASKED = {"seeds": range(12), "batch_size": 3, "height": 64, "width": 64, "steps": 2}
LONG = "koala " * 40  # the tiny tokenizer reads bytes


@pytest.fixture(scope="module")
def single(one_thread, snapshot, tmp_path_factory):
    """The run as one process draws it."""
    out = tmp_path_factory.mktemp("single") / "run"
    return generate(load(snapshot, device="cpu"), PROMPTS, out=out, progress=False, **ASKED)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with dask.config.set({"temporary-directory": str(tmp_path_factory.mktemp("dask"))}):
        with cluster.local(3) as client:
            yield client


def draw(snapshot, out, client, prompts=PROMPTS, **other):
    how = {"device": "cpu", "progress": False, **ASKED, **other}
    return cluster.generate(snapshot, prompts, out=out, client=client, **how)


def images(folder):
    files = sorted(p for p in (folder / "images").rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def rows(table):
    """A table's columns and values, whichever sign for nothing they hold."""
    return table.astype(object).where(table.notna(), None).to_dict("list")


def assert_same(folder, single):
    assert images(folder) == images(single.folder)
    assert (folder / "settings.json").read_bytes() == (single.folder / "settings.json").read_bytes()
    assert not list(folder.rglob(".*"))
    run = run_folder.open_run(folder)
    assert rows(run.records) == rows(single.records)
    assert run.images[40].tobytes() == single.images[40].tobytes()


def count_loads():
    """Let a worker's process count what it loads."""
    whole = pipelines.load
    pipelines.loads = 0
    cluster._LOADED.clear()

    def load(*given, **named):
        pipelines.loads += 1
        return whole(*given, **named)

    pipelines.load = load


def environment(scratch):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": paths, "DASK_TEMPORARY_DIRECTORY": str(scratch)}


def wait_for_images(folder, number, seconds=300):
    until = time.monotonic() + seconds
    while len(list(folder.glob("images/0*.png"))) < number:
        assert time.monotonic() < until, "no images"
        time.sleep(0.005)


def test_a_killed_worker_loses_nothing(client, snapshot, single, tmp_path):
    processes = client.run(os.getpid)
    out = tmp_path / "run"
    running = threading.Thread(target=draw, args=(snapshot, out, client))
    running.start()
    wait_for_images(out, 8)
    os.kill(next(iter(processes.values())), signal.SIGKILL)
    at_kill = len(list((out / "records").glob("*.parquet")))
    running.join(300)
    assert at_kill < 32, "the kill must fall amid the work"
    assert_same(out, single)
    client.wait_for_workers(3)
    assert set(client.run(os.getpid).values()) != set(processes.values())


CLIENT = """
import sys
from koala_nb.generation import cluster
from test_cluster import draw
if __name__ == "__main__":
    with cluster.local(1) as client:
        draw(sys.argv[1], sys.argv[2], client)
"""


def test_a_killed_client_goes_on_from_the_disk(client, snapshot, single, tmp_path):
    script, out = tmp_path / "script.py", tmp_path / "run"
    script.write_text(CLIENT)
    command = [sys.executable, str(script), str(snapshot), str(out)]
    with open(tmp_path / "log", "wb") as log:
        alone = subprocess.Popen(command, env=environment(tmp_path), stdout=log, stderr=log)
    wait_for_images(out, 10)
    alone.kill()
    alone.wait()
    time.sleep(0.5)  # its worker ends when it sees that its parent is gone
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.p*") if not p.name.startswith(".")}
    done = [p for p in before if p.suffix == ".parquet"]
    assert 0 < len(done) < 32, "the kill must fall amid the work"
    draw(snapshot, out, client)
    assert_same(out, single)
    assert all(p.stat().st_mtime_ns == at for p, at in before.items()), "drawn twice"


def test_what_is_lost_or_damaged_later_is_drawn_again(client, snapshot, single, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(single.folder, out)
    (out / "records.jsonl").unlink()
    draw(snapshot, out, client)
    lost = out / single.records.file[40]
    lost.unlink()
    damaged = out / single.records.file[50]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    (out / "records" / "00016.parquet").unlink()  # of the damaged one: have it looked at
    with pytest.raises(ValueError, match="records of 93 of 96 images: call the same `generate`"):
        run_folder.open_run(out)
    draw(snapshot, out, client)
    assert_same(out, single)


def small_parts(flat, part):
    plans.FLAT, plans.PER_PART = flat, part


def test_many_images_lie_in_the_same_sub_folders(client, snapshot, one_thread, loaded, tmp_path):
    prompts = [*PROMPTS[:3], LONG]
    few = {"seeds": range(3), "steps": 1, "batch_size": 16, "height": None, "width": None}
    before = plans.FLAT, plans.PER_PART
    small_parts(10, 4)
    client.run(small_parts, 10, 4)
    try:
        with pytest.warns(UserWarning, match="tokens: it does not read"):
            more = {"out": tmp_path / "one", "progress": False, "steps": 1}
            whole = generate(loaded, prompts, range(3), **more)
        with pytest.warns(UserWarning, match="tokens: it does not read"):
            many = draw(snapshot, tmp_path / "many", client, prompts, **few)
    finally:
        small_parts(*before)
        client.run(small_parts, *before)
    assert [len(list(p.iterdir())) for p in sorted(many.glob("images/*"))] == [4, 4, 4]
    assert whole.records.file[4].startswith("images/00001/00001-1-koalas-1")
    records = run_folder.read_records(many)
    assert images(many) == images(whole.folder)
    assert records.prompt_unread.isna().tolist() == [True] * 9 + [False] * 3
    assert rows(records) == rows(whole.records)
    columns = ["seed", "file"]
    for folder in (many, whole.folder):
        assert rows(run_folder.read_records(folder, columns)) == rows(whole.records[columns])


def test_workers_with_other_or_no_weights_are_refused(tmp_path):
    good, other = tmp_path / "good", tmp_path / "other"
    write_hub_layout(good)
    specification = {}
    for name, home in (("good", good), ("other", other)):
        env = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        env["HF_HUB_CACHE"] = str(home / "hub")
        options = {"nthreads": 1, "memory_limit": 0, "env": env}
        specification[name] = {"cls": distributed.Nanny, "options": options}
    scheduler = {"cls": distributed.Scheduler, "options": {"port": 0, "dashboard_address": ":0"}}
    with (
        dask.config.set({"temporary-directory": str(tmp_path)}),
        distributed.SpecCluster(specification, scheduler) as machines,
        distributed.Client(machines, set_as_default=False) as client,
    ):
        client.wait_for_workers(2)
        with pytest.raises(OSError, match=r"^Worker other at tcp://\S+: The weights of .* are not"):
            draw(REPOSITORY, tmp_path / "missing", client)
        snapshot = write_hub_layout(other)
        newer = COMMIT[::-1]
        snapshot.rename(snapshot.with_name(newer))
        (snapshot.parent.parent / "refs" / "main").write_text(newer)
        with pytest.raises(OSError, match=r"^Worker (good|other) at \S+ has revision '\w{40}' wh"):
            draw(REPOSITORY, tmp_path / "other-revision", client)


def test_a_chunk_that_ends_every_worker_is_one_sentence(client):
    scheduler = client.cluster.scheduler
    before, scheduler.allowed_failures = scheduler.allowed_failures, 0
    with pytest.raises(OSError, match=r"ended several workers, the last tls://\S+: its memory"):
        with cluster._sentences(distributed):
            client.submit(os._exit, 1).result()
    scheduler.allowed_failures = before
    client.wait_for_workers(3)


def test_an_interrupt_calls_back_what_has_not_begun(client, snapshot, tmp_path, monkeypatch):
    class Interrupted(cluster.tqdm):
        def update(self, n=1):
            raise InterruptedError if n > 0 else ValueError  # images of a chunk

    monkeypatch.setattr(cluster, "tqdm", Interrupted)
    with pytest.raises(InterruptedError) as interrupt:
        draw(snapshot, tmp_path / "run", client)
    deadline = time.monotonic() + 60
    while tasks := [k for k in client.cluster.scheduler.tasks if f"{k}".startswith("_draw")]:
        assert time.monotonic() < deadline, tasks
        time.sleep(0.1)
    del interrupt  # until here its frames held the futures, which are called back all the same
    assert len(list((tmp_path / "run" / "records").glob("*.parquet"))) < 32
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(OSError, match="0 MB free"):
        draw(snapshot, tmp_path / "run", client)


def test_a_second_pipeline_is_loaded_when_the_first_is_gone(monkeypatch):
    made = []

    def load(model, **_):
        assert all(other() is None for other in made)
        if model == "broken":
            raise UnicodeDecodeError("utf-8", b"x", 0, 1, "bad")
        made.append(weakref.ref(pipe := type("Pipe", (), {})()))
        return pipe

    monkeypatch.setattr(pipelines, "load", load)
    monkeypatch.setattr(cluster, "_LOADED", {})
    monkeypatch.setattr(cluster, "_worker", lambda: "Worker 1")
    for model in "aab":
        cluster._load((model, None, None, None, None))
    with pytest.raises(ValueError, match="^Worker 1: .*utf-8"):
        cluster._load(("broken", None, None, None, None))
    assert len(made) == 2


THREADS = """
import os, signal, torch
from koala_nb.generation import cluster
def given():
    return f"{torch.get_num_threads()} threads, GPU {os.environ['CUDA_VISIBLE_DEVICES']}"
if __name__ == "__main__":
    with cluster.local(1, threads=2) as client:
        print(client.submit(given).result())
        os.kill(*client.run(os.getpid).values(), signal.SIGKILL)  # it is started again
        print(client.submit(given, pure=False).result())
"""


def test_a_worker_has_its_threads_and_its_gpu_where_a_script_has_torch_already(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(THREADS)
    command = [sys.executable, str(script)]
    env = {**environment(tmp_path), "CUDA_VISIBLE_DEVICES": "3,5"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["2 threads, GPU 3"] * 2, done.stderr


STRANGER = """
import os, sys
from distributed import Client, Security
address, form, certificate, key = sys.argv[1:]
roles = {"tls_ca_file": certificate, "tls_client_cert": certificate, "tls_client_key": key}
given = {"none": Security(), "other": Security.temporary(), "same": Security(**roles)}[form]
try:
    with Client(address, security=given, timeout=4, set_as_default=False) as client:
        print(client.run(os.getpid))
except (OSError, ValueError, TypeError) as error:
    print("refused")
"""


def test_only_who_has_the_certificate_reaches_the_workers(client, tmp_path):
    address, security = client.scheduler.address, client.security
    assert address.startswith("tls://127.0.0.1:")
    files = [tmp_path / "certificate.pem", tmp_path / "key.pem"]
    for file, text in zip(files, (security.tls_ca_file, security.tls_client_key)):
        file.write_text(text)
    everyone = [address, *(w["nanny"] for w in client.scheduler_info()["workers"].values())]

    def run(to, form):
        command = [sys.executable, "-c", STRANGER, to, form, *map(str, files)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout

    assert run(address, "same") == f"{client.run(os.getpid)}\n"
    assert run(address, "other") == "refused\n"
    for to in everyone:
        assert run(to.replace("tls://", "tcp://"), "none") == "refused\n"


def test_no_page_of_dask_is_served(client):
    port = client.cluster.scheduler.http_server.port
    for page in ("info/main/workers.html", "json/identity.json", "status"):
        with pytest.raises(HTTPError, match="404"):
            urlopen(f"http://127.0.0.1:{port}/{page}", timeout=10)


DRAW = """
import sys
from distributed import Client, Security
with Client(scheduler_file=sys.argv[1]) as client:
    client.wait_for_workers(1)
    address = client.scheduler.address.replace("tls://", "tcp://")
    try:
        Client(address, security=Security(require_encryption=False), timeout=4)
    except OSError:
        print("strangers refused")
    client.shutdown()
print("drawn")
"""


def test_the_job_for_slurm_draws_where_another_scheduler_has_the_usual_port(tmp_path):
    """With a stand-in for srun: it starts one worker, on this machine."""
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\n[ "$SRUN_CPUS_PER_TASK" = 4 ] && exec "$@"\n')
    srun.chmod(0o755)
    (tmp_path / "draw.py").write_text(DRAW)
    places = [str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]]
    env = {**os.environ, "PATH": os.pathsep.join(places), "SLURM_JOB_ID": "1"}
    env |= {"SLURM_CPUS_PER_TASK": "4"}
    with socket.socket() as other:
        try:
            other.bind(("", 8786))
            other.listen()
        except OSError:  # another scheduler, indeed
            pass
        job = ["bash", str(ROOT / "docs" / "slurm" / "koala.sbatch")]
        how = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 500}
        done = subprocess.run(job, env=env, **how)
    assert done.stdout == "strangers refused\ndrawn\n", done.stderr
    assert not list(tmp_path.glob(".tls-*"))


def test_bad_arguments_are_one_sentence_each(client, snapshot, tmp_path):
    with pytest.raises(ValueError, match=r"client must be a dask.distributed.Client, not None"):
        cluster.generate("nano-koala", "a koala", out=tmp_path / "run", client=None)
    cases = {
        "Did you mean 'nano-koala'": {"model": "nano-koalaa"},
        "steps is 0: give a whole number": {"steps": 0},
        "prompts is empty": {"prompts": []},
        "out must be the path of a folder": {"out": 7},
    }
    good = {"model": snapshot, "prompts": "a koala", "out": tmp_path / "run", "device": "cpu"}
    for said, bad in cases.items():
        with pytest.raises(ValueError, match=said):
            cluster.generate(client=client, **{**good, **bad})
    with pytest.raises(TypeError, match="unexpected keyword argument 'stepz'"):
        cluster.generate(client=client, **good, stepz=3)
    assert not (tmp_path / "run").exists()
    for workers in (0, True, 1.5):
        with pytest.raises(ValueError, match="workers is .*: give a whole number of 1 or more"):
            with cluster.local(workers):
                pass
    with pytest.raises(ValueError, match="holds no run"):
        run_folder.read_records(tmp_path)


def test_one_two_or_three_workers_write_the_bytes_of_one(client, snapshot, single, tmp_path):
    client.run(count_loads)
    for workers in (3, 2, 1):
        client.cluster.scale(workers)
        while len(client.scheduler_info()["workers"]) != workers:
            time.sleep(0.05)
        folder = draw(snapshot, tmp_path / str(workers), client)
        assert_same(folder, single)
        assert len(list((folder / "records").iterdir())) == 32  # a batch a chunk, here
    assert set(client.run(lambda: pipelines.loads).values()) == {1}
    # And one process takes up what many drew: it draws nothing, and gathers the same records.
    run = generate(load(snapshot, device="cpu"), PROMPTS, out=folder, progress=False, **ASKED)
    assert run.seconds_per_image is None
    one, many = (place / run_folder.RECORDS for place in (single.folder, folder))
    assert one.read_bytes() == many.read_bytes()
    # Also where the many had not written all of their records.
    next((folder / "records").iterdir()).unlink()
    assert len(run_folder.read_records(folder)) == len(single.records)


def test_what_each_task_carries_is_little(loaded):
    plan = plans.make_plan(loaded, "a koala", [0], plans.Settings())
    carried = cluster._common(Drawing(loaded, plan))
    assert "unet " in carried["parts"] and sizeof(carried) < 20_000  # dask's limit is 100,000


def test_without_dask_or_pyarrow_one_sentence(python_offline):
    code = """
import sys
sys.modules.update({"distributed": None, "pyarrow": None})
from koala_nb.generation import cluster, run_folder
from koala_nb.generation.generate import Drawing
for call in (lambda: cluster.local(1).__enter__(), lambda: run_folder.write_chunk(".", 0, [])):
    try:
        call()
    except ValueError as error:
        print(error)
"""
    said = python_offline(code).stdout.splitlines()
    assert len(said) == 2 and all('by `pip install -e ".[cluster]"`.' in line for line in said)


@pytest.mark.parametrize(
    ("images", "batch", "size", "chunks"),
    [(40, 16, 16, 3), (10_000, 4, 36, 278), (10_000, 1, 39, 257), (300_000, 16, 992, 303)],
)
def test_chunks_are_whole_batches_by_the_work_alone(images, batch, size, chunks):
    requests = tuple(plans.Request(0, "a", seed) for seed in range(images))
    plan = plans.Plan(requests, None, 1, 0.0, 64, 64, batch, None)
    parts = run_folder.split_plan(plan)
    assert len(parts) == chunks and len(parts[0].requests) == size
    assert tuple(r for part in parts for r in part.requests) == requests
    assert list(plan.batches()) == [batch for part in parts for batch in part.batches()]


def test_a_key_that_one_record_lacks_is_null_in_its_shard(tmp_path):
    provenance.write_json(tmp_path / "settings.json", {"seeds": [[0, 1]]})
    records = [{"file": "a", "note": None}, {"file": "b", "note": None, "cut": "ü"}]
    run_folder.write_chunk(tmp_path, 0, records)
    assert rows(run_folder.read_records(tmp_path))["cut"] == [None, "ü"]


def test_a_worker_passes_on_our_warnings_and_no_librarys(pipe):
    """diffusers' sampler calls numpy in a way that numpy deprecates."""
    small = plans.Settings(height=64, width=64, steps=2)
    for prompt, expected in (("a koala", 0), ("koala " * 200, 1)):
        plan = plans.make_plan(pipe, prompt, [0], small)
        with warnings.catch_warnings(action="ignore"):  # as a worker's own filters may
            _, messages = cluster._drawing(pipe, plan)
        assert len(messages) == expected, messages
