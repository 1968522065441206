"""Capture what a U-Net attends to: exact, streamed, without changing a bit of the image.

A processor around each attention layer's own one calls it, returns its output, and computes
softmax(q k^T / sqrt(d)) once more into a buffer, inside an operator that compilers leave alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch

from koala_nb.attention.buffers import Batch, Source, grid_of, within
from koala_nb.attention.maps import Attention, words_of
from koala_nb.attention.processor import CannotCapture, Entry, Watching, forget, register
from koala_nb.generation import fast
from koala_nb.generation.generate import embed

if TYPE_CHECKING:
    from koala_nb.models.load import Pipeline

HALVES = ("conditional", "unconditional", "both")
KEEP = ("layer", "head", "step")


@dataclass(frozen=True)
class Options:
    """What to capture; see `capture_attention`."""

    keep: tuple[str, ...]
    half: str
    self_grid: int | None
    by_encoder: bool
    limit: float


@contextmanager
def capture_attention(
    pipe: Pipeline,
    *,
    layers: str | Sequence[str] | None = None,
    keep: Sequence[str] = ("layer",),
    half: str = "conditional",
    self_grid: int | None = None,
    by_encoder: bool = False,
    probe: str | None = None,
    limit_gb: float = 1.0,
) -> Iterator[Attention]:
    """Capture the attention of every image drawn, or U-Net pass made, inside the `with` block.

    layers: names of attention layers or beginnings of names; default all cross-attention.
    keep: which of "layer", "head" and "step" stay apart; the mean is taken over the others. Without
    "layer", layers of one resolution are merged.
    half: of guidance; "unconditional" is the negative prompt's. Without guidance there is one.
    self_grid: also self-attention, summed over cells of a grid, so many along the longer side.
    by_encoder: also the logits, and the part of them that is CLIP-L's (SDXL's types only).
    probe: a second text; its words' maps are captured in the same passes. It changes no image.
    limit_gb: refuse, before the first step, what would store more, in 10^9 bytes.

    Memory does not grow with the number of steps unless "step" is kept. Raises CannotCapture, a
    ValueError, for what cannot be captured exactly. The pipeline is restored, on errors too.
    """
    options = Options(tuple(keep), half, self_grid, by_encoder, limit_gb * 1e9)
    _check(pipe, options)
    unet: Any = getattr(pipe.unet, "_orig_mod", pipe.unet)  # of a compiled one
    chosen = _chosen(unet, layers, self_grid is not None)
    if by_encoder:
        _check_keys(chosen)
    capture = Capture(pipe, unet, chosen, options, probe)
    original, first = {name: module.processor for name, module in chosen.items()}, unet.conv_in
    told = {name: pipe.__dict__.pop(name, None) for name in ("_guidance_scale", "_num_timesteps")}
    try:
        for name, processor in capture.processors(original).items():
            chosen[name].set_processor(processor)
        unet.conv_in = Entry(first, capture)
        fast.ATTEMPTS.append(capture.mark)
        yield capture.attention
        capture.check_complete()
    finally:
        if capture.mark in fast.ATTEMPTS:
            fast.ATTEMPTS.remove(capture.mark)
        unet.conv_in = first
        for name, processor in original.items():
            chosen[name].set_processor(processor)
        forget(capture)
        for name, value in told.items():
            if value is not None and name not in pipe.__dict__:
                setattr(pipe, name, value)


def _check(pipe: Any, options: Options) -> None:
    if unknown := sorted(set(options.keep) - set(KEEP)):
        raise CannotCapture(f"keep={unknown[0]!r}: choose from {', '.join(KEEP)}.")
    if "head" in options.keep and "layer" not in options.keep:
        raise CannotCapture("A head belongs to a layer: keep 'layer' too.")
    if options.half not in HALVES:
        raise CannotCapture(f"half={options.half!r}: use one of {', '.join(HALVES)}.")
    if options.self_grid is not None and options.self_grid < 2:
        raise CannotCapture(f"self_grid={options.self_grid}: use 2 or more cells.")
    if options.by_encoder and not hasattr(pipe, "text_encoder_2"):
        raise CannotCapture("by_encoder needs a model with two text encoders, as SDXL has.")


def _chosen(unet: Any, layers: str | Sequence[str] | None, with_self: bool) -> dict[str, Any]:
    """Return the attention modules to watch, by name; refuse those whose maps would be wrong."""
    every = {n: m for n, m in unet.named_modules() if hasattr(type(m), "set_processor")}
    kinds = {n: m for n, m in every.items() if m.is_cross_attention or with_self}
    wanted = [layers] if isinstance(layers, str) else layers
    for name in wanted or ():
        if not any(within(n, name) for n in kinds):
            parts = {n.rsplit(".", cut)[0] for n in kinds for cut in range(n.count(".") + 1)}
            near = get_close_matches(name, sorted(parts), 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise CannotCapture(f"No attention layer of this U-Net is, or is in, {name!r}.{hint}")
    found = {n: m for n, m in kinds.items() if wanted is None or within(n, wanted)}
    for name, module in found.items():
        for part in ("norm_q", "norm_k", "norm_cross", "group_norm", "spatial_norm"):
            if getattr(module, part, None) is not None:
                raise CannotCapture(f"{name} has {part}, which the maps would leave out.")
    if not found:
        raise CannotCapture("This U-Net has no cross-attention.")
    return found


def _check_keys(modules: dict[str, Any]) -> None:
    """Refuse to split logits by encoder where a bias belongs to neither."""
    for name, module in modules.items():
        if module.is_cross_attention and module.to_k.bias is not None:
            raise CannotCapture(f"by_encoder: {name}.to_k has a bias, which is of no encoder.")


class Capture:
    """The state of one `with` block: which layers, which images, where in the generation."""

    def __init__(
        self, pipe: Any, unet: Any, modules: dict[str, Any], options: Options, probe: str | None
    ) -> None:
        self.pipe, self.modules, self.options = pipe, modules, options
        self.blocks = len(unet.config.down_block_types)
        self.attention = Attention(pipe.tokenizer)
        self.probe = _embedded(pipe, probe)
        # The width of CLIP-L's part of the text embeddings, which come first.
        self.width_l = pipe.text_encoder.config.hidden_size if options.by_encoder else None
        self.expected: int | None = None
        self.sources: dict[int, Source] = {}
        self.order = torch.zeros(1, dtype=torch.int64)
        self.state = register(self)

    def processors(self, original: dict[str, Any]) -> dict[str, Any]:
        """Return a watching processor around the original one of every chosen layer."""
        found = {}
        for name, module in self.modules.items():
            channels = ["cross"] if module.is_cross_attention else ["self"]
            if module.is_cross_attention:
                channels += ["probe"] if self.probe is not None else []
                channels += ["logits", "logits_clip_l"] if self.width_l else []
            states = {}
            for channel in channels:
                source = Source(channel, name, module.heads, float(module.scale))
                states[channel] = self._register(source)
            found[name] = Watching(original[name], self, states)
        return found

    def _register(self, source: Source) -> torch.Tensor:
        state = register(self)
        self.sources[int(state)] = source
        return state

    def mark(self) -> Callable[[], None]:
        """Return what drops all that is captured from here on: of images that were not drawn."""
        batches, count = self.attention.batches, len(self.attention.batches)

        def drop() -> None:
            del batches[count:]
            self.expected = batches[-1].passes if batches else None  # the last one is complete

        return drop

    def begin_pass(self, sample: torch.Tensor) -> None:
        """Note a pass of the U-Net: a further step, or the first of further images."""
        batches, told = self.attention.batches, self.pipe.__dict__
        guided = "_guidance_scale" in told and self.pipe.do_classifier_free_guidance
        halves = 2 if guided else 1
        size = (len(sample) // halves, halves, sample.shape[2], sample.shape[3])
        last = batches[-1] if batches else None
        if last is None or last.size != size or last.passes == self.expected:
            self.expected = told.get("_num_timesteps")
            batches.append(self._batch(size))
        batches[-1].passes += 1

    def _batch(self, size: tuple[int, int, int, int]) -> Batch:
        kept = {"both": (0, 1), "conditional": (1,), "unconditional": (0,)}[self.options.half]
        batch = Batch(
            size, kept if size[1] == 2 else (0,), self.options.keep, self.blocks,
            self.options.self_grid or 0, self.pipe.tokenizer.model_max_length,
        )  # fmt: skip
        for source in self.sources.values():
            grid = grid_of(source.name, self.blocks, *size[2:])
            if source.channel == "self" and max(grid) < (self.options.self_grid or 0):
                raise CannotCapture(
                    f"self_grid={self.options.self_grid} is finer than the {grid[0]} x {grid[1]} "
                    f"positions of {source.name}: use {max(grid)} or less, or choose layers."
                )
        need = batch.predict(list(self.sources.values()), self.expected or 1)
        if need > self.options.limit:
            raise CannotCapture(
                f"These maps need {need / 1e9:.2f} GB, over the limit of "
                f"{self.options.limit / 1e9:.2f} GB: choose layers, keep less, draw fewer images "
                "at a time or raise limit_gb."
            )
        return batch

    def add(self, handle: int, query: torch.Tensor, key: torch.Tensor) -> None:
        """Add what one layer computed in this pass."""
        self.attention.batches[-1].add(self.sources[handle], query, key)

    def check_complete(self) -> None:
        """Raise unless every watched layer was seen in every pass."""
        batches = self.attention.batches
        if not batches:
            raise CannotCapture("Nothing was captured: the U-Net did not run in the with block.")
        passes = sum(batch.passes for batch in batches)
        for source in self.sources.values():
            seen = sum(batch.seen[source.channel, source.name] for batch in batches)
            if seen != passes:
                raise CannotCapture(
                    f"{source.name} was seen in {seen} of {passes} passes of the U-Net."
                )


def _embedded(pipe: Any, probe: str | None) -> torch.Tensor | None:
    if probe is None:
        return None
    words_of(pipe.tokenizer, probe)  # refuses one that is too long
    with torch.no_grad():
        return embed(pipe, probe)[0].to(pipe.unet.dtype)
