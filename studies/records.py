"""What it takes to write and read the records of many images.

Writes `data/results/benchmark-records.json`, from which `koala-nb plan` computes.
The records are synthetic: that of one drawn image, with prompts, seeds and files of a large run.
Beside them, reading the records back out of the images themselves, as resuming a run does.

    python -m studies.records --repeats 5

Some minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from koala_nb.core import files
from koala_nb.generation import run_folder
from koala_nb.generation.generate import generate
from koala_nb.generation.plan import PER_PART, Request
from koala_nb.models.load import load, model_info
from koala_nb.speed.timing import print_rows, time_interleaved, write_result
from koala_nb.stats.estimates import median_interval, ratio_interval

LINES = "write JSON lines"
COLUMNS = ("file", "prompt_index", "seed")
SEEDS = 1000  # a prompt


def records_like(record: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Return so many records like one, a thousand seeds a prompt."""
    records = []
    for i in range(count):
        index, prompt = i // SEEDS, f"{record['prompt']}, {i // SEEDS}"
        request = Request(index, prompt, i % SEEDS, i // PER_PART)
        changed = {
            "file": request.file,
            "prompt_index": index,
            "prompt": prompt,
            "seed": request.seed,
        }
        records.append(record | changed)
    return records


def compare(record: dict[str, Any], count: int, repeats: int) -> list[dict[str, Any]]:
    """Return one row per variant: seconds with interval, ratio of the first's, bytes on disk."""
    records = records_like(record, count)
    with tempfile.TemporaryDirectory() as place:
        lines, parts = Path(place, "lines"), Path(place, "parts")
        for folder in (lines, parts):
            folder.mkdir()
            files.write_json(folder / run_folder.SETTINGS, {"seeds": [list(range(count))]})

        def write_parts() -> None:
            for at in range(0, count, run_folder.CHUNK):
                run_folder.write_chunk(
                    parts, at // run_folder.CHUNK, records[at : at + run_folder.CHUNK]
                )

        variants: dict[str, Callable[[], Any]] = {
            LINES: lambda: files.write_lines(lines / run_folder.RECORDS, records),
            "write Parquet": write_parts,
            "read JSON lines": lambda: run_folder.read_records(lines),
            "read Parquet": lambda: run_folder.read_records(parts),
            f"read {len(COLUMNS)} columns of Parquet": lambda: run_folder.read_records(
                parts, COLUMNS
            ),
        }
        seconds = time_interleaved(variants, repeats)
        size = {"JSON": (lines / run_folder.RECORDS).stat().st_size}
        size["Parquet"] = sum(
            f.stat().st_size for f in (parts / run_folder.CHUNK_RECORDS).iterdir()
        )
    rows = []
    for name, values in seconds.items():
        middle, faster = median_interval(values), ratio_interval(seconds[LINES], values)
        times = {"seconds": middle.value, "low": middle.low, "high": middle.high, "n": repeats}
        stored = size["JSON" if "JSON" in name else "Parquet"]
        row = {"way": name, "count": count, **times, "ratio": faster.value, "bytes": stored}
        rows.append(row)
    return rows


def out_of_images(record: dict[str, Any], size: int, repeats: int) -> list[dict[str, Any]]:
    """Return one row per kind of picture, (size, size): seconds per record, bytes of the PNG.

    Real pictures lie between the two kinds, one colour and noise.
    """
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    kinds = {"one colour": Image.new("RGB", (size, size)), "noise": Image.fromarray(noise)}
    rows = []
    with tempfile.TemporaryDirectory() as place:
        paths = {
            kind: files.save_png(image, Path(place, f"{kind}.png"), record)
            for kind, image in kinds.items()
        }
        variants = {kind: partial(files.is_whole_png, file) for kind, file in paths.items()}
        for kind, values in time_interleaved(variants, repeats).items():
            middle = median_interval(values)
            times = {"seconds": middle.value, "low": middle.low, "high": middle.high, "n": repeats}
            way, stored = f"read out of PNGs of {kind}", paths[kind].stat().st_size
            rows.append({"way": way, "size": size, "count": 1, **times, "bytes": stored})
    return rows


def main(argv: Sequence[str]) -> int:
    """Measure and write `data/results/benchmark-records.json`."""
    parser = argparse.ArgumentParser(prog="python -m studies.records", description=__doc__)
    parser.add_argument("--model", default="nano-koala", help="whose record is the pattern")
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024], help="pixels per side")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None, help="default: data/results")
    options = parser.parse_args(argv)
    pipe = load(options.model)
    prompt = model_info(pipe).recipe.prompt
    run = generate(pipe, prompt, steps=1, progress=False)
    record = run.records.astype(object).where(run.records.notna(), None).iloc[0].to_dict()
    rows = []
    for count in sorted(options.counts):
        rows += compare(record, count, options.repeats)
    for size in options.sizes:
        rows += out_of_images(record, size, 10 * options.repeats)
    print_rows(rows)
    command = " ".join(["python -m studies.records", *argv])
    print(write_result("records", command, vars(options), options.out, "cpu", rows=rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
