"""How far from the machine's limit: counted operations and bytes against measured rates.

Nothing here needs weights: operations, traffic and peak memory are counted on the meta device.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from koala_nb.models.unet import build_unet, costs, meta_inputs
from koala_nb.speed.timing import Row, parts, peak_gb, seconds_of


class FusedAttention(TorchFunctionMode):
    """Attention as one operation that holds no scores, as real devices compute it.

    On the meta device torch would write the scores out, which no fused kernel does.
    """

    def __torch_function__(
        self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        """Return an empty result of attention; of another function its own."""
        if func is torch.nn.functional.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write, views excepted, each without a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        """Return what the operation returns, and count its bytes."""
        result = func(*args, **(kwargs or {}))
        read, made = (
            [x for x in tree_leaves(values) if isinstance(x, torch.Tensor)]
            for values in ((args, kwargs), result)
        )
        storages = {x.untyped_storage()._cdata for x in read}
        new = any(x.untyped_storage()._cdata not in storages for x in made)
        if new or func._schema.is_mutable:
            self.bytes += sum(x.numel() * x.element_size() for x in (*read, *made))
        return result


def inputs_like(
    unet: nn.Module, latent: int, images: int, tokens: int, device: str, dtype: torch.dtype
) -> dict[str, object]:
    """Return random arguments of one U-Net pass over latents (images, 4, latent, latent)."""

    def make(like: torch.Tensor) -> torch.Tensor:
        if like.ndim == 1:
            return torch.full((1,), 500.0, device=device)
        return torch.randn(images, *like.shape[1:], device=device).to(dtype)

    return tree_map(make, meta_inputs(unet, latent, latent, tokens))


def unet_work(
    system: str | Mapping[str, object],
    latent: int,
    images: int,
    dtype: str = "float32",
    tokens: int = 77,
) -> dict[str, float]:
    """Count one U-Net pass: flops, bytes moved (unfused), GB of weights and peak of activations.

    `images` counts both halves of guidance; the peak is of live tensors, without scratch.
    """
    unet = build_unet(system).to(getattr(torch, dtype))
    inputs = inputs_like(unet, latent, images, tokens, "meta", unet.dtype)
    with torch.no_grad(), FusedAttention(), Traffic() as traffic:
        unet(**inputs)
    flops = float(costs(unet, (latent, latent), tokens)["flops"].sum())
    weights = sum(p.numel() * p.element_size() for p in unet.parameters())
    return {
        "flops": flops * images,
        "bytes": float(traffic.bytes),
        "weights_gb": weights / 1e9,
        "activations_gb": meta_peak_gb(lambda: unet(**inputs)),
    }


def meta_peak_gb(call: Callable[[], object]) -> float:
    """Return the peak of live tensors, in GB, of a call of modules on the meta device."""
    with torch.no_grad(), FusedAttention():
        return peak_gb(call)


def predicted_gb(system: str, size: int) -> dict[str, float]:
    """Predict what a released system holds, in GB, while it draws one guided image in float16.

    Keys: weights (all parts), unet and vae (peaks of their activations; the VAE decodes in
    float32, as SDXL's asks), total: the weights and the larger of the two. ValueError for an
    embedded system.
    """
    modules = parts(system)
    weights = 2 * sum(p.numel() for m in modules.values() for p in m.parameters()) / 1e9
    net, vae = modules["unet"].half(), modules["vae"].float()
    inputs = inputs_like(net, size // 8, 2, 77, "meta", torch.float16)
    unet = meta_peak_gb(lambda: net(**inputs))
    latents = torch.empty(1, 4, size // 8, size // 8, device="meta")
    extra = 2 * sum(p.numel() for p in vae.parameters()) / 1e9  # of its weights in float32
    decoder = meta_peak_gb(lambda: vae.decode(latents)) + extra
    return {"weights": weights, "unet": unet, "vae": decoder, "total": weights + max(unet, decoder)}


def machine_rates(device: str = "cpu", dtype: str = "float32", repeats: int = 9) -> Row:
    """Measure the best rate of a convolution (flop/s) and of a copy (bytes/s, read and written).

    It is 1 x 1 on (1, 2048, 32, 64), a product of matrices, by the library that is fastest here.
    """
    options = {"device": device, "dtype": getattr(torch, dtype)}
    x = torch.randn(1, 2048, 32, 64, **options).to(memory_format=torch.channels_last)
    w = torch.randn(2048, 2048, 1, 1, **options)
    big = torch.empty(64_000_000, device=device)
    other = torch.empty_like(big).fill_(1)
    with torch.no_grad():
        product = [seconds_of(lambda: torch.conv2d(x, w), device) for _ in range(repeats)]
        copy = [seconds_of(lambda: big.copy_(other), device) for _ in range(repeats)]
    return {
        "flop_rate": 2 * 2048**3 / float(np.min(product)),
        "bandwidth": 2 * 4 * big.numel() / float(np.min(copy)),
        "dtype": dtype,
        "threads": torch.get_num_threads(),
    }


def limit_seconds(work: Mapping[str, float], rates: Row) -> float:
    """Return the least time of this work at these rates: its slower side counts."""
    return max(work["flops"] / rates["flop_rate"], work["bytes"] / rates["bandwidth"])
