"""`koala-nb benchmark latency`: seconds and memory by part, for systems with or without weights.

Weights are random but for the embedded family: speed does not depend on their values. All cases
take turns in one run. An image is the sum text encoders + steps x U-Net + VAE.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from koala_nb.core import catalog
from koala_nb.core.devices import pick_device, pick_dtype
from koala_nb.core.options import at_least, positive, writable
from koala_nb.generation.decoding import decoded, decoding_dtype
from koala_nb.models import random_weights
from koala_nb.models.load import load, silence_logging
from koala_nb.speed.roofline import inputs_like, limit_seconds, machine_rates, unet_work
from koala_nb.speed.timing import median_interval, peak_gb, ratio_interval, take_turns, write_result

PARTS = ("text encoders", "U-Net, one step", "VAE")
Case = dict[str, Any]


def parts_of(system: str, device: str, dtype: str) -> dict[str, Any]:
    """Return a system's modules on a device; random weights but for an embedded system."""
    if catalog.find(system).embedded:
        pipe = load(system, device=device, dtype=dtype)
        found = {k: v for k, v in pipe.components.items() if isinstance(v, torch.nn.Module)}
        return found
    made = random_weights.parts(system)
    return {name: random_weights.filled(module, dtype, device) for name, module in made.items()}


def cases_of(
    system: str, modules: dict[str, Any], sizes: Sequence[int], batches: Sequence[int]
) -> list[tuple[Case, Callable[[], Any]]]:
    """Return each case to measure, with the call that does the work."""
    unet, vae = modules["unet"], modules["vae"]
    encoders = [m for name, m in modules.items() if name.startswith("text_encoder")]
    tokens, device, kind = _tokens(modules), _device_of(unet), unet.dtype
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    decode = partial(decoded, dtype=decoding_dtype(vae, "text_encoder_2" in modules))
    ids = torch.full((1, tokens), 300, device=device)
    found: list[tuple[Case, Callable[[], Any]]] = []
    told: Case = {"system": system, "part": PARTS[0], "size": None, "batch": 1, "guided": False}
    found.append((told, lambda: [encoder(ids) for encoder in encoders]))
    for size in sizes:
        for batch in batches:
            told = {"system": system, "size": size, "batch": batch}
            for guided in (True, False):
                inputs = inputs_like(
                    unet, size // factor, batch * (1 + guided), tokens, device, kind
                )
                found.append(
                    ({**told, "part": PARTS[1], "guided": guided}, partial(unet, **inputs))
                )
            latents = torch.randn(batch, 4, size // factor, size // factor).to(device, kind)
            found.append(
                ({**told, "part": PARTS[2], "guided": False}, partial(decode, vae, latents))
            )
    return found


def _device_of(part: Any) -> str:
    """The device that a part computes on, also where it waits elsewhere."""
    hooks = (getattr(module, "_hf_hook", None) for module in part.modules())
    found = (getattr(hook, "execution_device", None) for hook in hooks)
    return str(torch.device(next((device for device in found if device is not None), part.device)))


def _tokens(modules: dict[str, Any]) -> int:
    return modules["text_encoder"].config.max_position_embeddings


def measure(
    cases: list[tuple[Case, Callable[[], Any]]], repeats: int, device: str
) -> list[dict[str, Any]]:
    """Return a row a case: median seconds with interval, ratio to the first system, peak in GB."""
    calls = {str(at): _no_gradients(call) for at, (_, call) in enumerate(cases)}
    seconds = take_turns(calls, repeats, device)
    first: dict[tuple, list[float]] = {}
    rows = []
    for (case, _), (at, call) in zip(cases, calls.items()):
        key = tuple(v for k, v in case.items() if k != "system")
        values = seconds[at]
        if not values:
            rows.append({**case, "outcome": "out of memory"})
            continue
        base = first.setdefault(key, values)
        time, ratio = median_interval(values), ratio_interval(values, base)
        rows.append({
            **case, "outcome": "measured", "seconds": time.value, "low": time.low,
            "high": time.high, "n": repeats, "ratio": ratio.value, "ratio_low": ratio.low,
            "ratio_high": ratio.high, "peak_gb": peak_gb(call, device),
        })  # fmt: skip
    return rows


def _no_gradients(call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with torch.no_grad():
            return call()

    return run


def whole_images(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a system, size and batch: the sum of its parts at the recipe's steps."""
    measured = [row for row in rows if row["outcome"] == "measured"]
    found = []
    for vae in (row for row in measured if row["part"] == PARTS[2]):
        recipe = catalog.find(vae["system"]).recipe
        steps, guidance = recipe.steps or 50, recipe.guidance
        guided = guidance is None or guidance > 1
        here = [row for row in measured if row["system"] == vae["system"]]
        text = sum(row["seconds"] for row in here if row["part"] == PARTS[0])
        same = [r for r in here if r["part"] == PARTS[1] and r["guided"] == guided]
        same = [r for r in same if (r["size"], r["batch"]) == (vae["size"], vae["batch"])]
        if not same:
            continue
        halves = 1 + guided  # the negative prompt is encoded, too
        total = halves * text + steps * same[0]["seconds"] + vae["seconds"]
        told = {key: vae[key] for key in ("system", "size", "batch")}
        found.append(
            {**told, "steps": steps, "guided": guided, "seconds_an_image": total / vae["batch"]}
        )
    return found


def rooflines(
    rows: list[dict[str, Any]],
    rates: dict[str, Any],
    tokens: dict[str, int],
    factors: dict[str, int],
) -> list[dict[str, Any]]:
    """Return a row a measured, guided U-Net case: work, least seconds, share of the limit."""
    found = []
    for row in rows:
        if row["part"] != PARTS[1] or row["outcome"] != "measured" or not row["guided"]:
            continue
        name, images = row["system"], row["batch"] * (1 + row["guided"])
        work = unet_work(name, row["size"] // factors[name], images, rates["dtype"], tokens[name])
        least = limit_seconds(work, rates)
        told = {key: row[key] for key in ("system", "size", "batch", "guided", "seconds")}
        share = least / row["seconds"]
        found.append({**told, **work, "limit_seconds": least, "share_of_limit": share})
    return found


def fits(weights_gb: float, peak: float, limit_gb: float) -> bool:
    """Whether weights and the largest activations together stay below a limit, all in GB."""
    return weights_gb + peak <= limit_gb


def main(argv: Sequence[str]) -> int:
    """Measure and write `data/results/benchmark-latency-<name>.json`."""
    parser = argparse.ArgumentParser(prog="koala-nb benchmark latency", description=__doc__)
    parser.add_argument("--systems", nargs="+", default=["nano-sdxl", "nano-koala"])
    parser.add_argument("--sizes", type=at_least(1), nargs="+", default=[64], help="pixels a side")
    parser.add_argument("--batches", type=at_least(1), nargs="+", default=[1])
    parser.add_argument("--device", default=None, help="default: the best available")
    parser.add_argument("--dtype", default=None, help="default: float16 on a GPU, else float32")
    parser.add_argument("--repeats", type=at_least(2), default=9)
    parser.add_argument("--limit-gb", type=positive, default=None, help="would it run in so much?")
    parser.add_argument("--name", default=None, help="of the file; default: the first system")
    parser.add_argument("--out", type=writable, default=None, help="default: data/results")
    options = parser.parse_args(argv)
    silence_logging()
    where = pick_device(options.device)
    dtype = str(pick_dtype(options.dtype, where)).removeprefix("torch.")
    device = str(where)
    if options.limit_gb and where.type == "cuda":
        if len(options.systems) > 1:
            parser.error("--limit-gb: give one system, since the weights of all would count")
        total = torch.cuda.get_device_properties(where).total_memory / 1e9
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.limit_gb / total), where.index)
    modules = {name: parts_of(name, device, dtype) for name in options.systems}
    cases = [
        case
        for name, own in modules.items()
        for case in cases_of(name, own, options.sizes, options.batches)
    ]
    rows = measure(cases, options.repeats, device)
    weights = {name: _gigabytes(own) for name, own in modules.items()}
    for row in rows:
        row["weights_gb"] = weights[row["system"]]
        if options.limit_gb and "peak_gb" in row:
            row["fits"] = fits(row["weights_gb"], row["peak_gb"], options.limit_gb)
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
    rates = machine_rates(device, dtype)
    tokens = {name: _tokens(own) for name, own in modules.items()}
    factors = {n: 2 ** (len(m["vae"].config.block_out_channels) - 1) for n, m in modules.items()}
    name = f"latency-{options.name or options.systems[0]}"
    found = {
        "rows": rows,
        "images": whole_images(rows),
        "machine": rates,
        "roofline": rooflines(rows, rates, tokens, factors),
    }
    told = {**vars(options), "dtype": dtype}
    print(write_result(name, argv, told, options.out, device, **found))
    return 0


def _gigabytes(modules: dict[str, Any]) -> float:
    held = [p for module in modules.values() for p in module.parameters()]
    return sum(p.numel() * p.element_size() for p in held) / 1e9
