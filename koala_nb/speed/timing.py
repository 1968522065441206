"""Times and memory: parts of random weights, interleaved variants, peaks, files of results.

Speed and memory do not depend on the values of weights, so that parts need none of their own.
"""

import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from koala_nb.core import catalog
from koala_nb.core.devices import empty_cache, is_out_of_memory
from koala_nb.core.files import Record, environment, write_json
from koala_nb.models.unet import CLIP_BIGG, CLIP_H, CLIP_L, SDXL_VAE, build_parts, build_unet

Row = Record  # of a stored benchmark
SMALL_UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64, 128),
    "attention_head_dim": [1, 2, 4],
    "cross_attention_dim": 128,
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 64 + 6 * 32,
    "norm_num_groups": 8,
}
SMALL_CLIP = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
SMALL_VAE = {**SDXL_VAE, "block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4}


def filled(module: nn.Module, dtype: str, device: str = "cpu") -> nn.Module:
    """Give a module of the meta device memory and random values; biases 0, norms 1."""
    module = module.to(getattr(torch, dtype)).to_empty(device=device).eval()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.normal_(std=0.02) if weight.ndim > 1 else weight.fill_(name.endswith("weight"))
        for name, buffer in module.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1]))
    return module.requires_grad_(False)


def parts(system: str, *, small: bool = False, tokenizer: Any = None) -> dict[str, nn.Module]:
    """Return a system's parts on the meta device, narrowed if `small`; ValueError: embedded."""
    known = catalog.find(system)
    if known.embedded:
        raise ValueError(f"{system} has weights of its own: load it.")
    texts: list[Record] = [CLIP_H] if system == "sdm-v2.0" else [CLIP_L, CLIP_BIGG]
    config = dict(known.unet_config)
    if small:
        config, texts = {**config, **SMALL_UNET}, [SMALL_CLIP, {**SMALL_CLIP, "projection_dim": 64}]
    ends = {"eos_token_id": tokenizer.eos_token_id} if tokenizer else {}
    vae = SMALL_VAE if small else SDXL_VAE
    return {"unet": build_unet(config), **build_parts(texts, vae, **ends)}


def seconds_of(call: Callable[[], object], device: str = "cpu") -> float:
    """Return the seconds that a call takes; on a GPU all of its work is included."""
    place = torch.device(device)
    if place.type != "cuda":
        wait = torch.mps.synchronize if place.type == "mps" else lambda: None
        wait()  # a call only gives Apple's GPU its work
        begin = time.perf_counter()
        call()
        wait()
        return time.perf_counter() - begin
    with torch.cuda.device(place):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        call()
        last.record()
        torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3


def time_interleaved(
    variants: Mapping[str, Callable[[], object]], repeats: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Return each variant's seconds, one a round; rounds start with another variant each time.

    Interleaved in one process, the machine's moods hit all alike. Every variant runs once before,
    uncounted. Where one runs out of memory, in whatever round, its list is empty.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    alive = [name for name in variants if _seconds_or_none(variants[name], device) is not None]
    for turn in range(repeats):
        at = turn % max(1, len(alive))
        for name in alive[at:] + alive[:at]:
            if (taken := _seconds_or_none(variants[name], device)) is None:
                alive.remove(name)
            else:
                seconds[name].append(taken)
    return {name: values if name in alive else [] for name, values in seconds.items()}


def _seconds_or_none(call: Callable[[], object], device: str) -> float | None:
    try:
        return seconds_of(call, device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    empty_cache()
    return None


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors made inside it, and their peak; scratch in kernels is not.

    A process' resident memory moves by tens of MB from run to run, which hides what is looked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        """Return what the operation returns, and count what it allocates."""
        for storage in _storages((args, kwargs)):
            self.known[storage] = True  # weights, of which an operation may return a view
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage not in self.known:
                self.known[storage] = True
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return result

    def _freed(self, size: int) -> None:
        self.now -= size


def _storages(values: object) -> list[torch.UntypedStorage]:
    return [x.untyped_storage() for x in tree_leaves(values) if isinstance(x, torch.Tensor)]


def peak_gb(call: Callable[[], object], device: str = "cpu") -> float:
    """Return the peak of what a call allocates on top of what was there before, in GB.

    On a GPU the allocator's own count; elsewhere the live tensors, without scratch in kernels.
    """
    place = torch.device(device)
    if place.type == "cuda":
        with torch.cuda.device(place):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            return (torch.cuda.max_memory_allocated() - before) / 1e9
    with LiveBytes() as live:
        call()
    return live.peak / 1e9


def print_rows(rows: Sequence[Row]) -> None:
    """Print each row as a dict, numbers with four digits after the point."""
    for row in rows:
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})


def write_result(
    name: str, command: str, options: Row, out: Path | None, device: str | None, **results: object
) -> Path:
    """Write `<out>/benchmark-<name>.json`, default `data/results`; device None: the best."""
    content = {
        "command": command,
        "options": {k: v for k, v in options.items() if k != "out"},
        "environment": environment(device) | {"cores": os.cpu_count()},
        **results,
    }
    folder = out or catalog.data_folder() / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return write_json(folder / f"benchmark-{name}.json", content)
