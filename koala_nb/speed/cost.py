"""`koala-nb plan`: hours, money and disk that many images take, and what their records take."""

import json
from collections.abc import Sequence
from numbers import Real
from pathlib import Path

import pandas as pd

from koala_nb.core.catalog import data_file, find
from koala_nb.core.files import Record, short

SYSTEM, GPU = "koala-lightning-700m", "RTX 4090 24GB"  # the example where nothing was measured
OURS = "koala_nb.generate"  # the variant of that name in benchmark-generation-*.json
MOST = 1e15  # images, dollars, pixels: more is a slip of the keyboard
NEEDED = {"way", "count", "seconds", "low", "high", "n", "bytes"}  # of a row of benchmark-records


def run_cost(
    system: str = SYSTEM,
    images: int = 1_000_000,
    *,
    rate: float | None = None,
    gpus: Sequence[int] = (1,),
    price: float | None = None,
) -> pd.DataFrame:
    """Return what drawing images with a system takes: one row per kind of GPU and number of GPUs.

    rate: images per second that one GPU of yours draws; without it the authors' published seconds
    an image count, for each GPU that they give. gpus: numbers of GPUs, each as fast beside others
    as alone. price: of a GPU-hour.

    Columns: GPU, GPUs, seconds per image, peak memory (GB), images/s, hours, GPU-hours and, with
    `price`, price. `attrs` hold images, download_gb and the source. ValueError for a system
    without published times where no rate is given.
    """
    for name, value in {"images": images, "rate": rate, "price": price}.items():
        is_number = isinstance(value, Real) and 0 <= value < 1e15 and (value or name == "price")
        if value is not None and not is_number:
            raise ValueError(f"{name} is {short(value)}: give a number above 0.")
    record = find(system)
    times = {gpu: values for gpu, values in record.published.items() if gpu != "source" and values}
    if rate is not None:
        times = {"yours": (1 / rate, float("nan"))}
    if not times:
        raise ValueError(f"There are no published times of {system}: give the rate of a GPU.")
    rows = []
    for gpu, (seconds, memory) in times.items():
        for number in gpus:
            hours = images * seconds / number / 3600
            row = {"GPU": gpu, "GPUs": number, "seconds per image": seconds}
            row |= {"peak memory (GB)": memory, "images/s": number / seconds, "hours": hours}
            row["GPU-hours"] = hours * number
            rows.append(row if price is None else row | {"price": price * hours * number})
    table = pd.DataFrame(rows)
    source = "as given" if rate is not None else record.published["source"]
    table.attrs = {"images": images, "download_gb": record.download_gb, "source": source}
    return table


def record_cost(images: int, rate: float, measured: Sequence[Record]) -> list[Record]:
    """Return one row per variant of `studies.records`: seconds of one process, and GPUs as fast.

    Seconds at the largest count measured, with the 95 % interval of their median over n rounds.
    """
    by_size = sorted(measured, key=lambda row: (row["count"], row.get("size", 0)))
    rows = []
    for name, row in {row["way"]: row for row in by_size}.items():
        size = f", {row['size']} px" if "size" in row else ""
        times = {key: images * row[key] / row["count"] for key in ("seconds", "low", "high")}
        gpus = images / (rate * times["seconds"])
        rows.append({"way": f"{name}{size}", **times, "n": row["n"], "GPUs": gpus})
    return rows


def rate_in(file: Path) -> float:
    """Images per second of `generate` in a benchmark-generation-*.json. ValueError for another."""
    rows = [row for row in _rows(file, "koala-nb benchmark", {"way"}) if row["way"] == OURS]
    if not rows or not all(isinstance(row.get("images_a_second"), int | float) for row in rows):
        raise ValueError(f"{file} holds no rate: give a file of `koala-nb benchmark generation`.")
    return max(float(row["images_a_second"]) for row in rows)


def _rows(file: Path, command: str, columns: set[str]) -> list[Record]:
    try:
        rows = json.loads(file.read_text("utf-8"))["rows"]
        if all(columns <= row.keys() for row in rows):
            return rows
    except FileNotFoundError:
        raise ValueError(f"There is no file {file}: measure with `{command}`.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # not JSON, or not of this form
    raise ValueError(f"{file} is not a result of `{command}`: give another file.")


def print_plan(
    images: int = 1_000_000,
    rate: float | None = None,
    benchmark: Path | None = None,
    gpus: Sequence[int] = (1, 2, 4, 8, 64),
    price: float | None = None,
    run: Path | None = None,
    size: int = 1024,
    records: Path | None = None,
) -> None:
    """Print what `koala-nb plan` says. ValueError for a bad number or file."""
    for name, value in {"images": images, "rate": rate, "price": price, "size": size}.items():
        if value is not None and not 0 < value < MOST:
            raise ValueError(f"--{name} {value}: give a number above 0 and below {MOST:g}.")
    if min(gpus) < 1:
        raise ValueError(f"--gpus {min(gpus)}: give whole numbers of at least 1.")
    given = rate_in(benchmark) if benchmark else rate
    plan = run_cost(SYSTEM, images, rate=given, gpus=gpus, price=price)
    if given is None:
        plan = plan[plan.GPU == GPU].reset_index(drop=True)
        source = f"{find(SYSTEM).title}, {plan['seconds per image'][0]} s on an {GPU}: "
        source += f"{plan.attrs['source']}; an example, measure your own"
    else:
        source = benchmark.name if benchmark else "as given"
    a_second = given or 1 / plan["seconds per image"][0]
    disk = _disk(images, run, size)
    records = records or data_file("results/benchmark-records.json")
    measured = _rows(records, "studies.records", NEEDED)
    if not {"write JSON lines", "write Parquet"} <= {row["way"] for row in measured}:
        raise ValueError(f"{records} is not a result of `studies.records`: give another file.")
    print(f"{images:,} images at {a_second:.2f} images/s per GPU ({source})\n")
    _print(plan.drop(columns=["GPU", "seconds per image", "peak memory (GB)"]))
    print(f"\nDisk: {disk}")
    _print_records(images, a_second, measured)


def _disk(images: int, run: Path | None, side: int) -> str:
    if run is None:
        total = 3 * side**2 * images / 1e9
        return (
            f"about {total:,.0f} GB of images at most, {side} x {side} pixels of 3 bytes; give "
            "--run for the size of yours"
        )
    sizes = [file.stat().st_size for file in (run / "images").rglob("*.png")]
    if not sizes:
        raise ValueError(f"{run} holds no images: give a folder that `generate` wrote.")
    mean = sum(sizes) / len(sizes)
    taken = f"{mean * images / 1e9:,.1f} GB of images at {mean:,.0f} bytes"
    return f"{taken}, the mean of {len(sizes)} in {run}"


def _print_records(images: int, rate: float, measured: Sequence[Record]) -> None:
    for form in ("JSON lines", "Parquet"):
        written = [row for row in measured if row["way"] == f"write {form}"]
        largest = max(written, key=lambda row: row["count"])
        size = largest["bytes"] / largest["count"]
        print(f"      {size * images / 1e9:,.2f} GB of records as {form}, {size:.0f} bytes each")
    print("\nThe records, by one process (95 % interval); GPUs: how many draw as fast as it\n")
    _print(pd.DataFrame(record_cost(images, rate, measured)))
    from_images = [row for row in measured if "size" in row]  # pixels of the PNG that was read
    if from_images:
        slow = sorted(row["GPUs"] for row in record_cost(images, rate, from_images))
        many = " to ".join(dict.fromkeys(f"{gpus:,.0f}" for gpus in slow))
        print(
            f"\nFrom {many} GPUs on, by what the pictures show, one process needs longer to read "
            "the records\nout of the images than the GPUs need to draw: so the worker of each "
            "chunk writes its records, as Parquet."
        )


def _print(table: pd.DataFrame) -> None:
    def text(value: object) -> str:
        if not isinstance(value, float):
            return str(value)
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    print(table.astype(object).map(text).to_string(index=False))
