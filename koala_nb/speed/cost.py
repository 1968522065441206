"""`koala-nb plan`: hours, money and disk that many images take, and what their records take."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from koala_nb.core.card import FIGURE_SOURCE, LATENCY_FIGURE, LATENCY_GPUS
from koala_nb.core.catalog import data_folder

EXAMPLE, EXAMPLE_GPU = "KOALA-Lightning-700M", "RTX 4090 24GB"
OURS = "koala_nb.generate"  # the way of that name in benchmark-generation-*.json
MOST = 1e15  # images, dollars, pixels: beyond is a slip of the keyboard
FROM_IMAGES = "read out of PNGs"  # begins the ways that do so, in benchmark-records.json


def cost(
    images: int, rate: float, gpus: Sequence[int], price: float | None = None
) -> list[dict[str, float]]:
    """Return a row a number of GPUs: images a second, hours, GPU-hours and, with `price`, money.

    `rate` in images a second of one GPU; `price` of a GPU-hour. Assumes that each GPU draws as fast
    beside others as alone.
    """
    rows = []
    for number in gpus:
        hours = images / (rate * number) / 3600
        row = {"GPUs": number, "images/s": rate * number, "hours": hours}
        row["GPU-hours"] = hours * number
        rows.append(row if price is None else row | {"price": price * hours * number})
    return rows


def record_cost(images: int, rate: float, measured: Sequence[dict[str, Any]]) -> list[dict]:
    """Return a row a way of `benchmark records`: seconds of one process, and GPUs as fast as it.

    Each way's seconds a record are those at the largest count measured, with the 95 % interval of
    their median over n rounds; "GPUs": how many draw as many images in the same time. With more
    GPUs this way is slower than drawing.
    """
    by_size = sorted(measured, key=lambda row: (row["count"], row.get("size", 0)))
    largest = {row["way"]: row for row in by_size}
    rows = []
    for way, row in largest.items():
        size = f", {row['size']} px" if "size" in row else ""
        times = {key: images * row[key] / row["count"] for key in ("seconds", "low", "high")}
        gpus = images / (rate * times["seconds"])
        rows.append({"way": f"{way}{size}", **times, "n": row["n"], "GPUs": gpus})
    return rows


def rate_in(file: Path) -> float:
    """Images a second of `generate` in a benchmark-generation-*.json. ValueError for another."""
    rows = [row for row in _rows(file) if row.get("way") == OURS]
    if not rows or not all(isinstance(row.get("images_a_second"), int | float) for row in rows):
        raise ValueError(f"{file} holds no rate: give a file of `koala-nb benchmark generation`.")
    return max(float(row["images_a_second"]) for row in rows)


def bytes_an_image(run: Path) -> tuple[float, int]:
    """Mean bytes of the images in a run's folder, and how many. ValueError where there are none."""
    sizes = [file.stat().st_size for file in (run / "images").rglob("*.png")]
    if not sizes:
        raise ValueError(f"{run} holds no images: give a folder that `generate` wrote.")
    return sum(sizes) / len(sizes), len(sizes)


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(file.read_text("utf-8"))["rows"]
    except FileNotFoundError:
        raise ValueError(f"There is no file {file}: measure with `koala-nb benchmark`.") from None
    except (ValueError, KeyError, TypeError):
        rows = None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} is not a result of `koala-nb benchmark`: give another file.")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan; returns 0. ValueError for a bad number or file."""
    parser = argparse.ArgumentParser(prog="koala-nb plan", description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--rate", type=float, help="images a second that one GPU of yours draws")
    rate.add_argument("--benchmark", type=Path, help="a benchmark-generation-*.json with the rate")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 4, 8, 64])
    parser.add_argument("--price", type=float, help="of a GPU-hour, in any currency")
    parser.add_argument("--run", type=Path, help="a run's folder: its images' mean size counts")
    parser.add_argument("--size", type=int, default=1024, help="pixels a side, without --run")
    parser.add_argument("--records", type=Path, help="default: data/results/benchmark-records.json")
    options = parser.parse_args(argv)
    for name in ("images", "rate", "price", "size"):
        value = getattr(options, name)
        if value is not None and not 0 < value < MOST:
            raise ValueError(f"--{name} {value}: give a number above 0 and below {MOST:g}.")
    if min(options.gpus) < 1:
        raise ValueError(f"--gpus {min(options.gpus)}: give whole numbers of at least 1.")
    a_second, source = _rate(options)
    disk = _disk(options)
    measured = _measured(options.records or data_folder() / "results" / "benchmark-records.json")
    print(f"{options.images:,} images at {a_second:.2f} images/s a GPU ({source})\n")
    _print(cost(options.images, a_second, options.gpus, options.price))
    print(f"\nDisk: {disk}")
    _print_records(options.images, a_second, measured)
    return 0


def _measured(file: Path) -> list[dict[str, Any]]:
    rows = _rows(file)
    whole = all({"way", "count", "seconds", "low", "high", "n"} <= row.keys() for row in rows)
    if not whole or not {"write JSON lines", "write Parquet"} <= {row["way"] for row in rows}:
        raise ValueError(f"{file} is not a result of `koala-nb benchmark records`: give that.")
    return rows


def _rate(options: argparse.Namespace) -> tuple[float, str]:
    if options.rate:
        return options.rate, "as given"
    if options.benchmark:
        return rate_in(options.benchmark), options.benchmark.name
    published = LATENCY_FIGURE[EXAMPLE][LATENCY_GPUS.index(EXAMPLE_GPU)]
    assert published
    said = f"{EXAMPLE}, {published[0]} s on an {EXAMPLE_GPU}: {FIGURE_SOURCE}"
    return 1 / published[0], f"{said}; an example, measure your own"


def _disk(options: argparse.Namespace) -> str:
    if options.run:
        size, number = bytes_an_image(options.run)
        total = size * options.images / 1e9
        return (
            f"{total:,.1f} GB of images at {size:,.0f} bytes, the mean of {number} in {options.run}"
        )
    size = 3 * options.size**2
    return (
        f"about {size * options.images / 1e9:,.0f} GB of images at most, {options.size} x "
        f"{options.size} pixels of 3 bytes; give --run for the size of yours"
    )


def _print_records(images: int, rate: float, measured: Sequence[dict[str, Any]]) -> None:
    for form in ("JSON lines", "Parquet"):
        own = [row for row in measured if row["way"] == f"write {form}"]
        most = max(own, key=lambda row: row["count"])
        size = most["bytes"] / most["count"]
        print(f"      {size * images / 1e9:,.2f} GB of records as {form}, {size:.0f} bytes each")
    rows = record_cost(images, rate, measured)
    print("\nThe records, by one process (95 % interval); GPUs: how many draw as fast as it\n")
    _print(rows)
    slow = sorted(row["GPUs"] for row in rows if row["way"].startswith(FROM_IMAGES))
    if slow:
        many = " to ".join(dict.fromkeys(f"{gpus:,.0f}" for gpus in slow))
        print(
            f"\nFrom {many} GPUs on, by what the pictures show, one process needs longer to read "
            "the records\nout of the images than the GPUs need to draw: so the worker of each "
            "chunk writes its records, as Parquet."
        )


def _print(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a table; three digits that count."""
    cells = [[_text(value) for value in row.values()] for row in rows]
    table = [[*rows[0]], *cells]
    widths = [max(map(len, column)) for column in zip(*table)]
    for line in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths)).rstrip())


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
