"""Capture what a U-Net attends to, exact and streamed, without changing the image; or edit it.

A processor around each attention layer's own one calls it, returns its output, and computes
softmax(q k^T / sqrt(d)) once more into a buffer. Compiled graphs reach the capture through two
operators that compilers leave alone (torch 2.7 compiles each block anew, 2.9 does not).
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention as AttentionLayer
from torch import Tensor, nn
from torch.nn import functional

from koala_nb.attention.buffers import Batch, Source, layer_grid, matches_prefix
from koala_nb.attention.edits import Edit, Site, apply_edits
from koala_nb.attention.maps import Attention, words_of
from koala_nb.core.errors import nearest
from koala_nb.generation.generate import ON_RETRY, embed
from koala_nb.models.load import Pipeline, model_info

Receive = Callable[..., Tensor | None]  # takes the tensors that a hook passes on

BRANCHES = {"both": (0, 1), "conditional": (1,), "unconditional": (0,)}  # of a guided batch
KEPT_AXES = ("layer", "head", "step")
KEYS_OF_LAYER = ("cross", "self", "logits")  # channels with the keys of the layer itself
BREAKS_SOFTMAX = ("norm_q", "norm_k", "norm_cross", "group_norm", "spatial_norm")


class CannotCapture(ValueError):
    """The choice, or this pipeline, does not allow exact maps; the message says why."""


@dataclass(frozen=True)
class Options:
    """What to capture; see `capture_attention`."""

    keep_axes: tuple[str, ...]
    guidance_branch: str
    self_grid: int | None
    by_encoder: bool
    limit: float
    edits: tuple[Edit, ...]


@contextmanager
def capture_attention(
    pipe: Pipeline,
    *,
    layers: str | Sequence[str] | None = None,
    keep_axes: Sequence[str] = ("layer",),
    guidance_branch: str = "conditional",
    self_grid: int | None = None,
    by_encoder: bool = False,
    probe: str | None = None,
    limit_gb: float = 1.0,
    edit: Edit | Sequence[Edit] = (),
) -> Iterator[Attention]:
    """Capture the attention of every image drawn, or U-Net pass made, inside the `with` block.

    layers: names of attention layers or beginnings of names; default all cross-attention.
    keep_axes: which of "layer", "head" and "step" stay apart; the mean is taken over the others.
    Without "layer", layers of one resolution are merged.
    guidance_branch: "conditional", "unconditional" (the negative prompt's) or "both". Without
    guidance there is one.
    self_grid: also self-attention, summed over cells of a grid, so many along the longer side.
    by_encoder: also the logits, and the part of them that is CLIP-L's (SDXL's types only).
    probe: a second text; its words' maps are captured in the same passes. It changes no image.
    limit_gb: refuse, before the first step, what would store more, in 10^9 bytes.
    edit: one or several functions of a layer's cross-attention, such as `Reweight(tokens, 2)`:
    each takes maps, (images, heads, rows, columns, tokens) in float32, and a `Site`, and returns
    maps; the image is drawn from those, and they are captured. Acts on the chosen layers and
    branch. Without an edit the image does not change by a bit.

    Memory does not grow with the number of steps unless "step" is kept. Raises CannotCapture, a
    ValueError, for what cannot be captured exactly. The pipeline is restored, on errors too.
    """
    if not hasattr(pipe, "unet"):
        model_info(pipe)  # refuses what is no pipeline
    edits = tuple(edit) if isinstance(edit, Sequence) else (edit,)
    chosen = guidance_branch, self_grid, by_encoder, limit_gb * 1e9, edits
    options = Options(tuple(keep_axes), *chosen)
    _check_options(pipe, options)
    unet: UNet2DConditionModel = getattr(pipe.unet, "_orig_mod", pipe.unet)  # of a compiled one
    modules = _choose_layers(unet, layers, options)
    capture = Capture(pipe, unet, options, probe)
    original, first = {module: module.processor for module in modules.values()}, unet.conv_in
    call_state = {n: pipe.__dict__.pop(n, None) for n in ("_guidance_scale", "_num_timesteps")}
    try:
        for name, module in modules.items():
            module.set_processor(capture.processor_of(name, module))
        unet.conv_in = PassCounter(first, capture)
        ON_RETRY.append(capture.mark)
        yield capture.attention
        capture.check_complete()
    finally:
        if capture.mark in ON_RETRY:
            ON_RETRY.remove(capture.mark)
        unet.conv_in = first
        for module, processor in original.items():
            module.set_processor(processor)
        capture.unregister()
        for name, value in call_state.items():
            if value is not None and name not in pipe.__dict__:
                setattr(pipe, name, value)


def _check_options(pipe: Pipeline, options: Options) -> None:
    if unknown := sorted(set(options.keep_axes) - set(KEPT_AXES)):
        raise CannotCapture(f"keep_axes={unknown[0]!r}: choose from {', '.join(KEPT_AXES)}.")
    if "head" in options.keep_axes and "layer" not in options.keep_axes:
        raise CannotCapture("A head belongs to a layer: keep 'layer' too.")
    if options.guidance_branch not in BRANCHES:
        names = ", ".join(sorted(BRANCHES))
        raise CannotCapture(f"guidance_branch={options.guidance_branch!r}: use one of {names}.")
    if options.self_grid is not None and options.self_grid < 2:
        raise CannotCapture(f"self_grid={options.self_grid}: use 2 or more cells.")
    if options.by_encoder and not hasattr(pipe, "text_encoder_2"):
        raise CannotCapture("by_encoder needs a model with two text encoders, as SDXL has.")
    if wrong := [edit for edit in options.edits if not callable(edit)]:
        raise CannotCapture(f"edit={wrong[0]!r}: give a function of maps and where they are.")


def _choose_layers(
    unet: nn.Module, layers: str | Sequence[str] | None, options: Options
) -> dict[str, AttentionLayer]:
    every = {n: m for n, m in unet.named_modules() if hasattr(type(m), "set_processor")}
    if options.self_grid is None:
        every = {n: m for n, m in every.items() if m.is_cross_attention}
    prefixes = [layers] if isinstance(layers, str) else layers
    for prefix in prefixes or ():
        if not any(matches_prefix(name, prefix) for name in every):
            parts = {n.rsplit(".", cut)[0] for n in every for cut in range(n.count(".") + 1)}
            hint = nearest(prefix, sorted(parts))
            raise CannotCapture(f"No attention layer of this U-Net is, or is in, {prefix!r}.{hint}")
    chosen = {n: m for n, m in every.items() if prefixes is None or matches_prefix(n, prefixes)}
    for name, module in chosen.items():
        for part in BREAKS_SOFTMAX:
            if getattr(module, part, None) is not None:
                raise CannotCapture(f"{name} has {part}, which the maps would leave out.")
        if options.by_encoder and module.is_cross_attention and module.to_k.bias is not None:
            raise CannotCapture(f"by_encoder: {name}.to_k has a bias, which is of no encoder.")
    if not chosen:
        raise CannotCapture("This U-Net has no cross-attention.")
    return chosen


class Capture:
    """The state of one `with` block: which layers, which images, where in the generation."""

    def __init__(
        self, pipe: Pipeline, unet: UNet2DConditionModel, options: Options, probe: str | None
    ) -> None:
        self.pipe, self.options, self.blocks = pipe, options, len(unet.config.down_block_types)
        self.batches: list[Batch] = []
        self.attention = Attention(pipe.tokenizer, self.batches)
        self.probe: Tensor | None = None
        if probe is not None:
            words_of(pipe.tokenizer, probe)  # refuses one that is too long
            with torch.no_grad():
                self.probe = embed(pipe, probe)[0].to(pipe.unet.dtype)
        # The width of CLIP-L's part of the text embeddings, which come first.
        self.width_l = pipe.text_encoder.config.hidden_size if options.by_encoder else None
        self.expected: int | None = None  # passes of the U-Net for each image
        self.sources: list[Source] = []
        self.handles: list[int] = []
        self.order = torch.zeros(1, dtype=torch.int64)

    def processor_of(self, name: str, module: AttentionLayer) -> "CapturingProcessor":
        """Return a capturing processor around the present one of a layer."""
        channels = ["cross"] if module.is_cross_attention else ["self"]
        if module.is_cross_attention:
            channels += ["probe"] if self.probe is not None else []
            channels += ["logits", "logits_clip_l"] if self.width_l else []
        sources = [Source(channel, name, module.heads, float(module.scale)) for channel in channels]
        self.sources += sources
        receivers: dict[str, Receive] = {s.channel: partial(self.add, s) for s in sources}
        if self.options.edits and module.is_cross_attention:
            receivers["cross"] = partial(self.edit, sources[0])
        return CapturingProcessor(module.processor, self, receivers)

    def register(self, receive: Receive) -> Tensor:
        """Return the handle by which compiled graphs find `receive`, an integer tensor."""
        self.handles.append(next(_NUMBERS))
        _RECEIVERS[self.handles[-1]] = receive
        return torch.tensor(self.handles[-1])

    def unregister(self) -> None:
        """Take the handles back."""
        for handle in self.handles:
            del _RECEIVERS[handle]

    def mark(self) -> Callable[[], None]:
        """Return what drops all that is captured from here on: of images that were not drawn."""
        count = len(self.batches)

        def drop() -> None:
            del self.batches[count:]
            # The last one that is left is complete.
            self.expected = self.batches[-1].passes if self.batches else None

        return drop

    def begin_pass(self, sample: Tensor) -> None:
        """Note a pass; sample: (images x guidance branches, channels, rows, columns)."""
        state = self.pipe.__dict__
        guided = "_guidance_scale" in state and self.pipe.do_classifier_free_guidance
        branches = 2 if guided else 1
        size = (len(sample) // branches, branches, sample.shape[2], sample.shape[3])
        last = self.batches[-1] if self.batches else None
        if last is None or last.size != size or last.passes == self.expected:
            self.expected = state.get("_num_timesteps")
            self.batches.append(self._new_batch(size))
        self.batches[-1].passes += 1

    def _new_batch(self, size: tuple[int, int, int, int]) -> Batch:
        options, tokens = self.options, self.pipe.tokenizer.model_max_length
        branches = BRANCHES[options.guidance_branch] if size[1] == 2 else (0,)
        cells = options.self_grid or 0
        batch = Batch(size, branches, options.keep_axes, self.blocks, cells, tokens)
        for source in self.sources:
            grid = layer_grid(source.name, self.blocks, *size[2:])
            if source.channel == "self" and max(grid) < cells:
                raise CannotCapture(
                    f"self_grid={cells} is finer than the {grid[0]} x {grid[1]} "
                    f"positions of {source.name}: use {max(grid)} or less, or choose layers."
                )
        need = batch.predict_bytes(self.sources, self.expected or 1)
        if need > options.limit:
            raise CannotCapture(
                f"These maps need {need / 1e9:.2f} GB, over the limit of {options.limit / 1e9:.2f} "
                "GB: choose layers, keep less, draw fewer images at a time or raise limit_gb."
            )
        return batch

    def add(self, source: Source, query: Tensor, key: Tensor) -> None:
        """Add what one layer computed in this pass, (rows, positions, channels) each."""
        self.batches[-1].add(source, query, key)

    def edit(self, source: Source, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return what the edits add to a layer's (rows, positions, channels): (A' - A) V."""
        batch, change = self.batches[-1], torch.zeros_like(query)
        kept = slice(batch.rows.start, batch.rows.stop)
        q, k, v = (
            x[kept].unflatten(-1, (source.heads, -1)).transpose(1, 2).float()
            for x in (query, key, value)
        )
        maps = torch.softmax(q @ k.mT * source.scale, -1)  # rows, heads, positions, tokens
        first = sum(earlier.size[0] for earlier in self.batches[:-1])
        images = range(first, first + batch.size[0])
        site = Site(source.name, batch.passes - 1, self.expected or 1, images)
        grid = layer_grid(source.name, self.blocks, *batch.size[2:])
        edited = apply_edits(self.options.edits, maps.unflatten(2, grid), site).flatten(2, 3)
        batch.add_edited(source, edited)
        change[kept] = ((edited - maps) @ v).transpose(1, 2).flatten(2).to(change.dtype)
        return change

    def check_complete(self) -> None:
        """Raise unless every chosen layer was captured in every pass."""
        if not self.batches:
            raise CannotCapture("Nothing was captured: the U-Net did not run in the with block.")
        passes = sum(batch.passes for batch in self.batches)
        for source in self.sources:
            count = sum(batch.captured[source.channel, source.name] for batch in self.batches)
            if count != passes:
                raise CannotCapture(
                    f"{source.name} was seen in {count} of {passes} passes of the U-Net."
                )


# --- hooks --------------------------------------------------------------------------------------

_RECEIVERS: dict[int, Receive] = {}  # by handle: what a compiled graph cannot hold
_NUMBERS = itertools.count()


class CapturingProcessor:
    """A layer's processor: calls the original one, unchanged, and captures queries and keys."""

    def __init__(
        self, original: Callable[..., Tensor], capture: Capture, receivers: dict[str, Receive]
    ) -> None:
        self.original, self.receivers = original, receivers
        self.handles = {channel: capture.register(r) for channel, r in receivers.items()}
        self.probe, self.width_l, self.order = capture.probe, capture.width_l, capture.order
        edits = capture.options.edits if "cross" in receivers else ()
        self.edits = bool(edits)
        self.fingerprinted_as = EditedProcessor(original, repr(edits)) if edits else original

    def __call__(
        self,
        attn: AttentionLayer,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        """Return what the layer's original processor returns, and what an edit adds to it."""
        if attention_mask is not None or isinstance(encoder_hidden_states, tuple):
            raise CannotCapture(
                "Attention masks and image prompts (IP-Adapter) change the softmax in ways that "
                "the maps would leave out: draw without them."
            )
        call = partial(self.original, attn, hidden_states, encoder_hidden_states, **kwargs)
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if torch.compiler.is_compiling():
            result = call()
            query = attn.to_q(hidden_states)
            for channel, handle in self.handles.items():
                key = attn.to_k(self._text_of(channel, text))
                if channel == "cross" and self.edits:
                    given = query, key, attn.to_v(text), handle, self.order
                    result = result + _projected(attn, torch.ops.koala_nb.edit(*given))
                else:
                    torch.ops.koala_nb.attend(query, key, handle, self.order)
            return result
        last: dict[nn.Module, Tensor] = {}  # what each projection returned last
        hooks = [
            projection.register_forward_hook(lambda module, _, out: last.update({module: out}))
            for projection in (attn.to_q, attn.to_k)
        ]
        try:
            result = call()
        finally:
            for hook in hooks:
                hook.remove()
        query = last[attn.to_q] if attn.to_q in last else attn.to_q(hidden_states)
        for channel, receive in self.receivers.items():
            key = last.get(attn.to_k) if channel in KEYS_OF_LAYER else None
            key = attn.to_k(self._text_of(channel, text)) if key is None else key
            if channel == "cross" and self.edits:
                result = result + _projected(attn, receive(query, key, attn.to_v(text)))
            else:
                receive(query, key)
        return result

    def _text_of(self, channel: str, text: Tensor) -> Tensor:
        """Return the embeddings whose keys a channel compares the queries with."""
        if channel == "probe" and self.probe is not None:
            return self.probe.to(text.device).expand(len(text), -1, -1)
        if channel == "logits_clip_l":  # `to_k` has no bias: the keys of both encoders add up
            return functional.pad(text[..., : self.width_l], (0, text.shape[-1] - self.width_l))
        return text


@dataclass(frozen=True)
class EditedProcessor:
    """What stands for a layer's processor in the pipeline's fingerprint while edits change it."""

    original: Callable[..., Tensor]
    edits: str


def _projected(attn: AttentionLayer, change: Tensor) -> Tensor:
    """Return a change of a layer's heads, (rows, positions, channels), as one of its output."""
    project = attn.to_out[0]  # linear: what it adds to zeros is its bias
    return (project(change) - project(torch.zeros_like(change))) / attn.rescale_output_factor


class PassCounter(nn.Module):
    """The U-Net's first layer, which also notes a pass: a compiled U-Net would not see a hook."""

    def __init__(self, first: nn.Module, capture: Capture) -> None:
        super().__init__()
        self.first, self.receive = first, capture.begin_pass
        self.handle, self.order = capture.register(capture.begin_pass), capture.order

    @property
    def fingerprinted_as(self) -> nn.Module:
        """The first layer, for the pipeline's fingerprint."""
        return self.first

    def forward(self, sample: Tensor) -> Tensor:
        """Return the first layer's output."""
        if torch.compiler.is_compiling():
            torch.ops.koala_nb.begin(sample, self.handle, self.order)
        else:
            self.receive(sample)
        return self.first(sample)


# All change `order`, so that a compiler keeps them, and in their order.
@torch.library.custom_op("koala_nb::begin", mutates_args=("order",))
def _begin(sample: Tensor, handle: Tensor, order: Tensor) -> None:
    _RECEIVERS[int(handle)](sample)
    order += 1


@torch.library.custom_op("koala_nb::attend", mutates_args=("order",))
def _attend(query: Tensor, key: Tensor, handle: Tensor, order: Tensor) -> None:
    _RECEIVERS[int(handle)](query, key)
    order += 1


@torch.library.custom_op("koala_nb::edit", mutates_args=("order",))
def _edit(query: Tensor, key: Tensor, value: Tensor, handle: Tensor, order: Tensor) -> Tensor:
    order += 1
    return _RECEIVERS[int(handle)](query, key, value)


@_edit.register_fake
def _(query: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(query)
