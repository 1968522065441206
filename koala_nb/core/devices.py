"""Which device and precision to work on, and what to do where GPU memory is short."""

import gc
import shutil
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

DTYPES = ("float16", "bfloat16", "float32")
SHORT_DTYPES = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32"}
# Memory beside the weights at 1024 x 1024 in half precision: the published peaks less the weights
# (8.3 - 3.4 GB for KOALA-Lightning-700M, 11.9 - 6.9 for SDXL-Base). Most of it is the VAE's; what
# remains with tiles of 512 px is an estimate.
ROOM_GB, ROOM_TILED_GB = 5.0, 2.0
MAX_BATCH = 16


def pick_device(device: "str | torch.device | None" = None) -> "torch.device":
    """A torch device: the given one, else CUDA, Apple MPS or CPU; ValueError where it is absent."""
    import torch

    have = {"cpu": True, "cuda": torch.cuda.is_available()}
    have["mps"] = torch.backends.mps.is_available()
    if device is None:
        if not have["cuda"]:
            _warn_cpu_only_torch()
        return torch.device(next(k for k in ("cuda", "mps", "cpu") if have[k]))
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = None
    available = [k for k, there in have.items() if there]
    if chosen is None or chosen.type not in have:
        raise ValueError(f"Unknown device {device!r}: use one of {', '.join(available)}.")
    no_such_gpu = chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count()
    if not have[chosen.type] or no_such_gpu:
        raise ValueError(
            f"Device {str(chosen)!r} is not available to torch {torch.__version__} here: "
            f"use {' or '.join(available)}, or install a torch built for it."
        )
    return chosen


def pick_dtype(dtype: "str | torch.dtype | None", device: "torch.device") -> "torch.dtype":
    """A torch dtype: the given one, else float16 on a GPU, float32 on a CPU; or ValueError."""
    import torch

    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    name = str(dtype).removeprefix("torch.")
    name = SHORT_DTYPES.get(name, name)
    if name not in DTYPES:
        raise ValueError(f"Unknown dtype {dtype!r}: use float16, bfloat16 or float32.")
    return getattr(torch, name)


@cache
def _warn_cpu_only_torch() -> None:
    import torch

    if torch.version.cuda or torch.version.hip:
        return
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
        warnings.warn(
            f"This machine has an NVIDIA GPU, but torch {torch.__version__} is built for CPUs only "
            "and will not use it: install a CUDA build (https://pytorch.org/get-started/locally).",
            stacklevel=4,
        )


def plan_memory(sizes: list[float], free: float, area: float) -> tuple[bool, str]:
    """Whether the VAE must work in tiles, and which offload, for parts' sizes and free GB."""
    if free >= sum(sizes) + ROOM_GB * area:
        return False, "none"
    if free >= sum(sizes) + ROOM_TILED_GB * area:
        return True, "none"
    return True, "model" if free >= max(sizes) + ROOM_TILED_GB * area else "sequential"


def plan_batch(free: float, area: float) -> int:
    """Images a batch, a power of two, for the free GB; one needs ROOM_TILED_GB times the area."""
    fits = min(int(free / (ROOM_TILED_GB * area)), MAX_BATCH)
    return 2 ** (max(fits, 1).bit_length() - 1)


def free_gigabytes(device: "torch.device") -> float:
    """Free memory of a CUDA device in GB, counting what torch keeps of things that are gone."""
    import torch

    empty_cache()
    return torch.cuda.mem_get_info(device)[0] / 1e9


def gigabytes(part: "nn.Module") -> float:
    """Size of a module's weights in GB."""
    return sum(p.numel() * p.element_size() for p in part.parameters()) / 1e9


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's or the machine's memory did not suffice."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(t in str(error) for t in ("out of memory", "can't allocate memory"))


def empty_cache() -> None:
    """Let the allocators return what is no longer used."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
