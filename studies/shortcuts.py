"""Shortcuts that change the image: less guidance, answers used twice, bfloat16, a tiny decoder.

None is a default of the module; `studies.generation` measures them. Each takes a pipeline and
what draws with it, and leaves the pipeline as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from koala_nb.speed.throughput import Draw, Shortcut

if TYPE_CHECKING:
    from PIL.Image import Image

    from koala_nb.models.load import Pipeline


def early_guidance(pipe: Pipeline, draw: Draw, share: float = 0.5) -> list[Image]:
    """Draw with guidance on the first share of the steps only; the rest cost half."""

    def answer(forward: Callable, step: int, steps: int, x: Any, t: Any, more: Any) -> Any:
        if step < round(share * steps) or len(x) % 2 or pipe.guidance_scale <= 1:
            return forward(x, t, **more)
        half = slice(len(x) // 2, None)  # the conditional half stands second
        more = {k: _part(v, half) for k, v in more.items()}
        noise = forward(x[half], t, **more)[0]
        return (torch.cat([noise, noise]),)  # guidance between equals changes nothing

    with _answering(pipe, answer):
        return draw()


def repeated_answers(pipe: Pipeline, draw: Draw) -> list[Image]:
    """Draw with the U-Net's answer used twice, from the third step on: every second step is free.

    The plainest form of step caching; DeepCache (arXiv 2312.00858) keeps deep features alone.
    """
    last: list[Any] = [None]

    def answer(forward: Callable, step: int, steps: int, x: Any, t: Any, more: Any) -> Any:
        if step < 2 or step % 2 == 0:
            last[0] = forward(x, t, **more)
        return last[0]

    with _answering(pipe, answer):
        return draw()


def bfloat16(pipe: Pipeline, draw: Draw) -> list[Image]:
    """Draw with all weights in bfloat16, which some processors multiply faster."""
    modules = [m for m in pipe.components.values() if isinstance(m, torch.nn.Module)]
    saved = [(p, p.data) for m in modules for p in (*m.parameters(), *m.buffers())]
    try:
        for module in modules:
            module.to(torch.bfloat16)
        return draw()
    finally:
        for tensor, values in saved:
            tensor.data = values


def linear_decoder(pipe: Pipeline, draw: Draw) -> list[Image]:
    """Draw with a linear map of 3 x 3 latents in the decoder's place, fitted once a pipeline.

    Least squares on what the VAE itself decodes from the first images drawn, which stand in for
    a trained tiny decoder such as AutoencoderTiny's.
    """
    weights = vars(pipe).get("_koala_nb_linear")
    decode, pairs = pipe.vae.decode, []
    try:
        if weights is None:

            def watch(latents: torch.Tensor, *args: Any, **more: Any) -> Any:
                decoded = decode(latents, *args, **more)
                pairs.append((latents, decoded[0]))
                return decoded

            pipe.vae.decode = watch
            draw()
            weights = _fit(*(torch.cat(parts).float() for parts in zip(*pairs)))
            pipe._koala_nb_linear = weights
        pipe.vae.decode = lambda latents, *a, **k: (_linear(latents, weights),)
        return draw()
    finally:
        del pipe.vae.decode  # the class' own is below


def _patches(latents: torch.Tensor) -> torch.Tensor:
    """Return the 3 x 3 neighbourhood of each cell and a one, (n, cells, 9 channels + 1)."""
    padded = torch.nn.functional.pad(latents.float(), (1, 1, 1, 1), mode="replicate")
    cells = torch.nn.functional.unfold(padded, 3).transpose(1, 2)
    return torch.cat([cells, cells.new_ones(*cells.shape[:2], 1)], dim=2)


def _fit(latents: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    factor = pixels.shape[-1] // latents.shape[-1]
    target = torch.nn.functional.pixel_unshuffle(pixels, factor).flatten(2).transpose(1, 2)
    return torch.linalg.lstsq(_patches(latents).flatten(0, 1), target.flatten(0, 1)).solution


def _linear(latents: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    factor = round((weights.shape[1] / 3) ** 0.5)
    cells = (_patches(latents) @ weights).transpose(1, 2).unflatten(2, latents.shape[2:])
    return torch.nn.functional.pixel_shuffle(cells, factor).to(latents.dtype)


@contextmanager
def _answering(pipe: Pipeline, answer: Callable) -> Iterator[None]:
    """Let `answer` stand between the pipeline and its U-Net; it gets the step's number."""
    unet, forward = pipe.unet, pipe.unet.forward
    before = vars(unet).get("forward")  # somebody else's, to be put back

    def between(x: Any, t: Any, **more: Any) -> Any:
        times = pipe.scheduler.timesteps
        step = int((times == t.to(times.device)).nonzero()[0])
        return answer(forward, step, len(times), x, t, more)

    unet.forward = between
    try:
        yield
    finally:
        del unet.forward
        if before is not None:
            unet.forward = before


def _part(value: Any, half: slice) -> Any:
    if isinstance(value, dict):
        return {k: _part(v, half) for k, v in value.items()}
    return value[half] if isinstance(value, torch.Tensor) else value


SHORTCUTS: dict[str, Shortcut] = {
    "guidance on the first half of the steps": early_guidance,
    "every second answer used twice": repeated_answers,
    "bfloat16": bfloat16,
    "linear decoder": linear_decoder,
}
