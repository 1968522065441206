"""Load and draw with a full-size system of random weights, from the hub's cache to images.

Writes `data/results/benchmark-full-<system>.json`. Loading and drawing happen in a fresh process,
whose memory is watched.

    python -m studies.full --system sdxl-base --dtype bfloat16 --sizes 512 1024 --steps 1

Some minutes for SDXL-Base on two CPU cores; about 7 GB of disk for the weights meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from koala_nb.speed.timing import write_result

CHILD = """
import json, sys
from studies.full import child
name, device, dtype, steps, *sizes = sys.argv[1:]
print(json.dumps(child(name, device, dtype, int(steps), [int(size) for size in sizes])))
"""


@contextmanager
def watched_memory() -> Iterator[list[tuple[float, float]]]:
    """Yield a list that fills with (time, resident memory in MB), fifty a second."""
    import psutil

    process, samples, done = psutil.Process(), [], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            samples.append((time.time(), process.memory_info().rss / 1e6))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def child(system: str, device: str, dtype: str, steps: int, sizes: Sequence[int]) -> dict[str, Any]:
    """Load a system with `kn.load` and draw one image a size; returns seconds and memory in GB.

    `load_ratio` is the peak of resident memory while loading, less that before, by the weights.
    """
    import diffusers  # its own memory is not the weights'
    import transformers

    import koala_nb
    from koala_nb.core.devices import gigabytes

    assert diffusers.StableDiffusionXLPipeline and transformers.CLIPTextModel  # imported lazily
    before = _resident()
    begin = time.perf_counter()
    with watched_memory() as memory:
        pipe = koala_nb.load(
            system, device=device or None, dtype=dtype or None, local_files_only=True
        )
    loaded = time.perf_counter() - begin
    weights = sum(gigabytes(m) for m in pipe.components.values() if hasattr(m, "parameters"))
    peak = max([*(rss for _, rss in memory), _resident()]) - before
    measured: dict[str, Any] = {
        "device": str(pipe._execution_device),
        "dtype": pipe.model_info.dtype,
        "weights_gb": weights,
        "load_seconds": loaded,
        "load_peak_gb": peak / 1e3,
        "load_ratio": peak / 1e3 / weights,
        "notes": pipe.model_info.notes,
        "images": [],
    }
    for size in sizes:
        begin = time.perf_counter()
        with watched_memory() as memory:
            run = koala_nb.generate(
                pipe, "a koala", height=size, width=size, steps=steps, progress=False
            )
        measured["images"].append(
            {
                "size": size,
                "steps": steps,
                "seconds": time.perf_counter() - begin,
                "peak_resident_gb": max([rss for _, rss in memory] or [_resident()]) / 1e3,
                "finite": bool(run.records.finite[0]),
                "decoded_in": str(run.records.decoded_in[0]),
            }
        )
    measured["first_image_seconds"] = loaded + measured["images"][0]["seconds"]
    return measured


def _resident() -> float:
    import psutil

    return psutil.Process().memory_info().rss / 1e6


def write_to_hub_cache(home: Path, system: str, *, small: bool = False) -> Path:
    """Write an SDXL-like system of random weights in float16 as the hub's cache holds it.

    Returns the snapshot's folder below `home`. The tokenizer is the embedded family's, which
    encodes any text. ValueError for a system of another kind or without a repository.
    """
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    from koala_nb.core import catalog
    from koala_nb.models.hub import VARIANT
    from koala_nb.models.load import load
    from koala_nb.speed.timing import filled, parts

    known = catalog.find(system)
    if known.repository is None or known.unet_file or system == "sdm-v2.0":
        raise ValueError(f"{system} is not one repository in SDXL's layout: choose another.")
    place = home / "hub" / f"models--{known.repository.replace('/', '--')}"
    commit = "0" * 40
    snapshot = place / "snapshots" / commit
    tokenizer = load("nano-koala", device="cpu").tokenizer
    tokenizer.model_max_length = 77
    made = parts(system, small=small, tokenizer=tokenizer)
    torch.manual_seed(0)
    pipe = StableDiffusionXLPipeline(
        **{name: filled(module, "float16") for name, module in made.items()},
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
        add_watermarker=False,
    )
    pipe.save_pretrained(snapshot, variant=VARIANT, safe_serialization=True)
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / "main").write_text(commit)  # last: what is half written is not found
    return snapshot


def measure(options: argparse.Namespace, home: Path) -> dict[str, Any]:
    """Write the random weights unless `home` holds them, and measure in a fresh process."""
    from koala_nb.core import catalog

    place = str(catalog.find(options.system).repository).replace("/", "--")
    if not (home / "hub" / f"models--{place}" / "refs" / "main").is_file():
        write_to_hub_cache(home, options.system, small=options.small)
    given = [options.system, options.device or "", options.dtype or "", str(options.steps)]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *given, *map(str, options.sizes)],
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        cwd=Path(__file__).resolve().parent.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        end = "out of memory" if done.returncode < 0 else f"exit status {done.returncode}"
        return {"outcome": f"the process ended: {end}"}
    return {"outcome": "measured", **json.loads(done.stdout.splitlines()[-1])}


def main(argv: Sequence[str]) -> int:
    """Measure and write `data/results/benchmark-full-<system>.json`."""
    parser = argparse.ArgumentParser(prog="python -m studies.full", description=__doc__)
    parser.add_argument("--system", default="koala-lightning-700m")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512], help="pixels per side")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default=None, help="default: the best available")
    parser.add_argument("--dtype", default=None, help="default: float16 on a GPU, else float32")
    parser.add_argument("--home", type=Path, default=None, help="keep the weights there")
    parser.add_argument("--small", action="store_true", help="the same blocks, narrow: for tests")
    parser.add_argument("--out", type=Path, default=None, help="default: data/results")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        measured = measure(options, options.home or Path(scratch))
    print(json.dumps(measured, indent=1))
    settings = {k: v for k, v in vars(options).items() if k != "home"}
    name = f"full-{options.system}{'-small' if options.small else ''}"
    device = measured.get("device") or options.device
    command = " ".join(["python -m studies.full", *argv])
    print(write_result(name, command, settings, options.out, device, result=measured))
    return 0 if measured["outcome"] == "measured" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
