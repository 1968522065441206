"""Images per second of `kn.generate` and of shortcuts beside diffusers' loop, and one long run.

Writes `data/results/benchmark-generation-<model>.json`: what `koala-nb benchmark generation` does,
with `SHORTCUTS`, which trade likeness for time, and a run with records in
hundreds of images: seconds per image and resident memory.

    python -m studies.generation --threads 1 2 --images 16 --repeats 5 --run 1000

Some minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from koala_nb.generation.generate import generate
from koala_nb.speed.throughput import SHORTCUTS, benchmark_prompts, measure
from koala_nb.speed.timing import write_result
from studies.full import watched_memory

if TYPE_CHECKING:
    from koala_nb.models.load import Pipeline

BLOCK = 100  # images


def long_run(pipe: Pipeline, images: int, size: int | None) -> list[dict[str, Any]]:
    """Return one row per hundred images of a run: seconds per image, resident memory."""
    prompts, seeds = benchmark_prompts(pipe, images)
    with tempfile.TemporaryDirectory() as folder, watched_memory() as memory:
        begin = time.time()
        generate(pipe, prompts, seeds, height=size, width=size, out=folder, progress=False)
        ends = np.sort([p.stat().st_mtime for p in Path(folder, "images").rglob("*.png")])
    rows: list[dict[str, Any]] = []
    before = begin
    for last in range(min(BLOCK, images), images + 1, BLOCK):
        end = float(ends[last - 1])
        inside = [rss for at, rss in memory if before <= at <= end]
        row = {"images": last, "seconds_an_image": (end - before) / min(BLOCK, images)}
        rows.append(row | {"resident_mb": float(np.median(inside)) if inside else None})
        before = end
    return [*rows, {"images": len(ends), "seconds": float(ends[-1]) - begin}]


def main(argv: Sequence[str]) -> int:
    """Measure and write `data/results/benchmark-generation-<model>.json`."""
    parser = argparse.ArgumentParser(prog="python -m studies.generation", description=__doc__)
    parser.add_argument("--model", default="nano-koala", help="a model whose weights are here")
    parser.add_argument("--device", default=None, help="default: the best available")
    parser.add_argument("--dtype", default=None, help="default: float16 on a GPU, else float32")
    parser.add_argument("--images", type=int, default=32, help="images a variant and round")
    parser.add_argument("--size", type=int, default=None, help="pixels per side")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--out", type=Path, default=None, help="default: data/results")
    parser.add_argument("--run", type=int, default=0, help="one run of so many images")
    options = parser.parse_args(argv)
    settings = {k: v for k, v in vars(options).items() if k not in ("out", "run")}
    pipe, results = measure(**settings, shortcuts=SHORTCUTS)
    if options.run:
        results["run"] = long_run(pipe, options.run, options.size)
        print(*results["run"], sep="\n")
    command = " ".join(["python -m studies.generation", *argv])
    name, device = f"generation-{Path(options.model).name}", str(pipe._execution_device)
    print(write_result(name, command, vars(options), options.out, device, **results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
