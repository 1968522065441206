"""`koala-nb benchmark records`: what it takes to write and read the records of many images.

The records are synthetic: that of one drawn image, with prompts, seeds and files of a large run.
Beside them, reading the records back out of the images themselves, as resuming a run does.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from koala_nb.core import files as provenance
from koala_nb.core.options import at_least, writable
from koala_nb.generation import run_folder, shards
from koala_nb.generation.generate import generate
from koala_nb.generation.plan import PER_PART, Request
from koala_nb.models.load import load, model_info
from koala_nb.speed.timing import median_interval, ratio_interval, take_turns, write_result

LINES = "write JSON lines"
COLUMNS = ("file", "prompt_index", "seed")
SEEDS = 1000  # a prompt


def records_like(record: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Return so many records like one, a thousand seeds a prompt."""
    found = []
    for i in range(count):
        index, prompt = i // SEEDS, f"{record['prompt']}, {i // SEEDS}"
        asked = Request(index, prompt, i % SEEDS, i // PER_PART)
        told = {"file": asked.file, "prompt_index": index, "prompt": prompt, "seed": asked.seed}
        found.append(record | told)
    return found


def compare(record: dict[str, Any], count: int, repeats: int) -> list[dict[str, Any]]:
    """Return a row a way: seconds with interval, ratio of the first way's to it, bytes on disk."""
    records = records_like(record, count)
    with tempfile.TemporaryDirectory() as place:
        lines, parts = Path(place, "lines"), Path(place, "parts")
        for folder in (lines, parts):
            folder.mkdir()
            provenance.write_json(folder / run_folder.SETTINGS, {"seeds": [list(range(count))]})

        def write_parts() -> None:
            for at in range(0, count, shards.CHUNK):
                shards.write(parts, at // shards.CHUNK, records[at : at + shards.CHUNK])

        ways: dict[str, Callable[[], Any]] = {
            LINES: lambda: provenance.write_lines(lines / run_folder.RECORDS, records),
            "write Parquet": write_parts,
            "read JSON lines": lambda: shards.read(lines),
            "read Parquet": lambda: shards.read(parts),
            f"read {len(COLUMNS)} columns of Parquet": lambda: shards.read(parts, COLUMNS),
        }
        seconds = take_turns(ways, repeats)
        size = {"JSON": (lines / run_folder.RECORDS).stat().st_size}
        size["Parquet"] = sum(f.stat().st_size for f in (parts / shards.FOLDER).iterdir())
    rows = []
    for way, values in seconds.items():
        middle, faster = median_interval(values), ratio_interval(seconds[LINES], values)
        rows.append({
            "way": way, "count": count, "seconds": middle.value, "low": middle.low,
            "high": middle.high, "n": repeats, "ratio": faster.value,
            "bytes": size["JSON" if "JSON" in way else "Parquet"],
        })  # fmt: skip
    return rows


def out_of_images(record: dict[str, Any], size: int, repeats: int) -> list[dict[str, Any]]:
    """Return a row a kind of picture, (size, size): seconds to read one record, bytes of the PNG.

    Real pictures lie between the two kinds, one colour and noise.
    """
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    kinds = {"one colour": Image.new("RGB", (size, size)), "noise": Image.fromarray(noise)}
    rows = []
    with tempfile.TemporaryDirectory() as place:
        files = {
            kind: provenance.save_png(image, Path(place, f"{kind}.png"), record)
            for kind, image in kinds.items()
        }
        ways = {kind: partial(provenance.read_record, file) for kind, file in files.items()}
        for kind, values in take_turns(ways, repeats).items():
            middle = median_interval(values)
            rows.append({
                "way": f"read out of PNGs of {kind}", "size": size, "count": 1,
                "seconds": middle.value, "low": middle.low, "high": middle.high, "n": repeats,
                "bytes": files[kind].stat().st_size,
            })  # fmt: skip
    return rows


def main(argv: Sequence[str]) -> int:
    """Measure and write `data/results/benchmark-records.json`."""
    parser = argparse.ArgumentParser(prog="koala-nb benchmark records", description=__doc__)
    parser.add_argument("--model", default="nano-koala", help="whose record is the pattern")
    parser.add_argument(
        "--counts", type=at_least(1), nargs="+", default=[10_000, 100_000, 1_000_000]
    )
    parser.add_argument(
        "--sizes", type=at_least(1), nargs="+", default=[512, 1024], help="pixels a side"
    )
    parser.add_argument("--repeats", type=at_least(2), default=3)
    parser.add_argument("--out", type=writable, default=None, help="default: data/results")
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
    for row in rows:
        print({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()})
    print(write_result("records", argv, vars(options), options.out, "cpu", rows=rows))
    return 0
