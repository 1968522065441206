"""The same images in less time: which routines compute on a CPU, and what fits into memory.

Measured by `python -m studies.generation`; `data/results/benchmark-generation-*.json` holds what
each of these brings.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from koala_nb.core.devices import empty_cache, is_out_of_memory

if TYPE_CHECKING:
    import torch
    from torch import nn

Item = TypeVar("Item")
Drawn = TypeVar("Drawn")


@contextmanager
def cpu_kernels(pipe: Any) -> Iterator[None]:
    """Let a pipeline on a CPU use the faster routines for a while; elsewhere changes nothing.

    Matrix products in float32 by oneDNN instead of MKL, which uses no more than AVX2 on AMD's
    processors; the VAE's convolutions on channels-last weights. Results differ by rounding alone.
    """
    import torch

    if pipe._execution_device.type != "cpu":  # where parts wait says nothing
        yield
        return
    changed = [m for m in pipe.unet.modules() if _gains(m)]
    try:
        for module in changed:
            module.forward = _onednn(module)
        pipe.vae.to(memory_format=torch.channels_last)
        yield
    finally:
        for module in changed:
            del module.forward  # the class' own is below
        pipe.vae.to(memory_format=torch.contiguous_format)


def _gains(module: nn.Module) -> bool:
    """Whether a module is a plain float32 linear layer that oneDNN can compute here."""
    import torch

    return (
        type(module) is torch.nn.Linear
        and module.weight.dtype == torch.float32
        and "forward" not in vars(module)  # somebody else's
        and platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _onednn(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch

    product = torch.ops.mkldnn._linear_pointwise  # what torch.compile itself calls

    def forward(x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():  # it has no gradient
            return torch.nn.functional.linear(x, layer.weight, layer.bias)
        return product(x, layer.weight, layer.bias, "none", [], "")

    return forward


# Each is called before an attempt to draw; what it returns is called where the attempt failed.
ATTEMPTS: list[Callable[[], Callable[[], None]]] = []


class Halving(Generic[Item, Drawn]):
    """Draws batches whole, or in halves (of halves ...) from where memory ran out."""

    def __init__(self, draw: Callable[[Sequence[Item]], list[Drawn]]) -> None:
        self.draw = draw
        self.most: int | None = None  # images at once; None: never ran out

    def __call__(self, batch: Sequence[Item]) -> list[Drawn]:
        """Return what `draw` makes of a batch, in order. Its error, if one image does not fit."""
        drawn: list[Drawn] = []
        while len(drawn) < len(batch):
            todo = batch[len(drawn) :][: self.most or len(batch)]
            undo = [begin() for begin in ATTEMPTS]
            try:
                drawn += self.draw(todo)
                continue
            except (RuntimeError, MemoryError) as error:
                if len(todo) == 1 or not is_out_of_memory(error):
                    raise
            # Here the error is gone, and with it the tensors that its traceback held.
            self.most = len(todo) // 2
            for back in undo:
                back()
            empty_cache()
        return drawn
