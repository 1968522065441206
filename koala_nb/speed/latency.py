"""`koala-nb benchmark latency`: seconds and memory by part, for systems with or without weights.

Weights are random but for the embedded family: speed does not depend on their values. All cases
are interleaved in one run. An image is the sum text encoders + steps x U-Net + VAE.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from koala_nb.core import catalog
from koala_nb.core.devices import gigabytes, pick_device, pick_dtype
from koala_nb.generation.generate import decode_latent, decoding_dtype
from koala_nb.models.load import load, silence_logging
from koala_nb.speed import timing
from koala_nb.speed.roofline import inputs_like, limit_seconds, machine_rates, unet_work
from koala_nb.speed.timing import Row, parts
from koala_nb.stats.estimates import median_interval, ratio_interval

ENCODERS, UNET, VAE = PARTS = ("text encoders", "U-Net, one step", "VAE")
Modules = Mapping[str, nn.Module]
Case = tuple[Row, Callable[[], object]]


def parts_of(system: str, device: str, dtype: str) -> dict[str, nn.Module]:
    """Return a system's modules on a device; random weights but for an embedded system."""
    if catalog.find(system).embedded:
        pipe = load(system, device=device, dtype=dtype)
        return {k: v for k, v in pipe.components.items() if isinstance(v, torch.nn.Module)}
    modules = parts(system)
    return {name: timing.filled(part, dtype, device) for name, part in modules.items()}


def cases_of(
    system: str, modules: Modules, sizes: Sequence[int], batches: Sequence[int]
) -> list[Case]:
    """Return each case to measure, as (what it is, the call that does the work).

    `modules`: a pipeline's parts by name. The text encoders once; at each size and batch a U-Net
    step with and without guidance, and the VAE's decoding.
    """
    unet, vae = modules["unet"], modules["vae"]
    encoders = [part for name, part in modules.items() if name.startswith("text_encoder")]
    tokens, device, factor = _tokens(modules), _device_of(unet), _vae_factor(modules)
    decode = partial(decode_latent, dtype=decoding_dtype(vae, "text_encoder_2" in modules))
    ids = torch.full((1, tokens), 300, device=device)
    common: Row = {"system": system, "part": ENCODERS, "size": None, "batch": 1, "guided": False}
    cases: list[Case] = [(common, lambda: [encoder(ids) for encoder in encoders])]
    for size, batch in ((size, batch) for size in sizes for batch in batches):
        common = {"system": system, "size": size, "batch": batch}
        side = size // factor
        for guided in (True, False):
            images = batch * (1 + guided)
            inputs = inputs_like(unet, side, images, tokens, device, unet.dtype)
            cases.append(({**common, "part": UNET, "guided": guided}, partial(unet, **inputs)))
        latents = torch.randn(batch, 4, side, side).to(device, unet.dtype)
        cases.append(({**common, "part": VAE, "guided": False}, partial(decode, vae, latents)))
    return cases


def _device_of(part: nn.Module) -> str:
    """Return the device that a part computes on, also where it waits elsewhere."""
    hooks = (getattr(module, "_hf_hook", None) for module in part.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    return str(torch.device(next((d for d in devices if d is not None), part.device)))


def _tokens(modules: Modules) -> int:
    return modules["text_encoder"].config.max_position_embeddings


def _vae_factor(modules: Modules) -> int:
    return 2 ** (len(modules["vae"].config.block_out_channels) - 1)


def measure(cases: Sequence[Case], repeats: int, device: str) -> list[Row]:
    """Return one row per case: median seconds with interval, ratio to the first system, peak GB."""
    calls = {str(at): torch.no_grad()(call) for at, (_, call) in enumerate(cases)}
    seconds = timing.time_interleaved(calls, repeats, device)
    first: dict[tuple, list[float]] = {}
    rows = []
    for (case, _), (at, call) in zip(cases, calls.items()):
        if not (values := seconds[at]):
            rows.append({**case, "outcome": "out of memory"})
            continue
        base = first.setdefault(tuple(v for k, v in case.items() if k != "system"), values)
        time, ratio = median_interval(values), ratio_interval(values, base)
        row = {**case, "outcome": "measured"}
        row |= {"seconds": time.value, "low": time.low, "high": time.high, "n": repeats}
        row |= {"ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high}
        rows.append(row | {"peak_gb": timing.peak_gb(call, device)})
    return rows


def whole_images(rows: Sequence[Row]) -> list[Row]:
    """Return one row per system, size and batch: the sum of its parts at the recipe's steps."""
    rows = [row for row in rows if row["outcome"] == "measured"]
    images = []
    for vae in (row for row in rows if row["part"] == VAE):
        recipe = catalog.find(vae["system"]).recipe
        steps, guidance = recipe.steps or 50, recipe.guidance
        guided = guidance is None or guidance > 1
        of_system = [row for row in rows if row["system"] == vae["system"]]
        text = sum(row["seconds"] for row in of_system if row["part"] == ENCODERS)
        key = {"part": UNET, "guided": guided, "size": vae["size"], "batch": vae["batch"]}
        step = next((row["seconds"] for row in of_system if key.items() <= row.items()), None)
        if step is None:
            continue
        # The negative prompt is encoded, too.
        total = (1 + guided) * text + steps * step + vae["seconds"]
        common = {k: vae[k] for k in ("system", "size", "batch")} | {"steps": steps}
        images.append(common | {"guided": guided, "seconds_an_image": total / vae["batch"]})
    return images


def rooflines(rows: Sequence[Row], rates: Row, modules: Mapping[str, Modules]) -> list[Row]:
    """Return each measured, guided U-Net case's work, least seconds and share of the limit."""
    points = []
    for row in rows:
        if row["part"] != UNET or row["outcome"] != "measured" or not row["guided"]:
            continue
        name, images = row["system"], row["batch"] * (1 + row["guided"])
        parts = modules[name]
        side = row["size"] // _vae_factor(parts)
        work = unet_work(name, side, images, rates["dtype"], _tokens(parts))
        least = limit_seconds(work, rates)
        common = {key: row[key] for key in ("system", "size", "batch", "guided", "seconds")}
        share = least / row["seconds"]
        points.append({**common, **work, "limit_seconds": least, "share_of_limit": share})
    return points


def write_benchmark(
    systems: Sequence[str],
    sizes: Sequence[int],
    batches: Sequence[int],
    device: str | None = None,
    dtype: str | None = None,
    repeats: int = 9,
    limit_gb: float | None = None,
    name: str | None = None,
    out: Path | None = None,
    command: str = "",
) -> Path:
    """Measure, print, and write `benchmark-latency-<name>.json`, by default in `data/results`.

    `limit_gb`: a GPU's memory is cut to it, `fits` says whether that suffices; of one system only.
    """
    if name is not None and Path(name).name != name:
        raise ValueError(f"--name {name}: give the name of a file, without a folder.")
    silence_logging()
    place = pick_device(device)
    dtype = str(pick_dtype(dtype, place)).removeprefix("torch.")
    if limit_gb and place.type == "cuda":
        if len(systems) > 1:
            raise ValueError("--limit-gb: give one system, since the weights of all would count.")
        total = torch.cuda.get_device_properties(place).total_memory / 1e9
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_gb / total), place.index)
    modules = {name: parts_of(name, str(place), dtype) for name in systems}
    cases = [case for name in systems for case in cases_of(name, modules[name], sizes, batches)]
    rows = measure(cases, repeats, str(place))
    for row in rows:
        row["weights_gb"] = sum(map(gigabytes, modules[row["system"]].values()))
        if limit_gb and "peak_gb" in row:
            row["fits"] = row["weights_gb"] + row["peak_gb"] <= limit_gb
    timing.print_rows(rows)
    rates = machine_rates(str(place), dtype)
    results = {"rows": rows, "images": whole_images(rows), "machine": rates}
    results["roofline"] = rooflines(rows, rates, modules)
    options: Row = {"systems": systems, "sizes": sizes, "batches": batches}
    options |= {"device": device, "dtype": dtype, "repeats": repeats}
    options |= {"limit_gb": limit_gb, "name": name}
    file = f"latency-{name or systems[0]}"
    return timing.write_result(file, command, options, out, str(place), **results)
