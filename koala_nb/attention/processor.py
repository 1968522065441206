"""Where attention is seen: a processor around a layer's own, and the U-Net's entry.

Compiled graphs reach the capture through two operators that compilers leave alone.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from koala_nb.attention.capture import Capture


class CannotCapture(ValueError):
    """What is asked for, or this pipeline, does not allow exact maps; the message says why."""


READ_BY_LAYER = ("cross", "self", "logits")  # channels with the keys of the layer itself
_OPEN: dict[int, Capture] = {}  # by handle: what a compiled graph cannot hold
_NUMBERS = itertools.count()


def register(capture: Capture) -> torch.Tensor:
    """Return a handle by which compiled graphs find the capture, an integer tensor."""
    handle = next(_NUMBERS)
    _OPEN[handle] = capture
    return torch.tensor(handle)


def forget(capture: Capture) -> None:
    """Take back a capture's handles."""
    for handle in [h for h, other in _OPEN.items() if other is capture]:
        del _OPEN[handle]


class Recorder:
    """A projection of a layer that keeps what it returned last."""

    def __init__(self, projection: nn.Module) -> None:
        self.projection = projection
        self.last: torch.Tensor | None = None

    def __call__(self, states: torch.Tensor, *args: Any) -> torch.Tensor:
        """Return what the projection returns."""
        self.last = self.projection(states, *args)
        return self.last


class Watching:
    """A layer's processor: calls the layer's own, unchanged, and shows queries and keys.

    In eager mode they are those that the layer's own processor computed; a compiled graph, and one
    that fuses projections, computes them once more.
    """

    def __init__(self, inner: Any, capture: Capture, states: dict[str, torch.Tensor]) -> None:
        self.inner, self.capture, self.states = inner, capture, states
        self.probe, self.width_l, self.order = capture.probe, capture.width_l, capture.order
        self.handles = {channel: int(state) for channel, state in states.items()}

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return what the layer's own processor returns."""
        if attention_mask is not None or isinstance(encoder_hidden_states, tuple):
            raise CannotCapture(
                "Attention masks and image prompts (IP-Adapter) change the softmax in ways that "
                "the maps would leave out: draw without them."
            )
        given = (attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args)
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if torch.compiler.is_compiling():
            result = self.inner(*given, **kwargs)
            query = attn.to_q(hidden_states)
            for channel, state in self.states.items():
                key = attn.to_k(self._read_by(channel, text))
                torch.ops.koala_nb.attend(query, key, state, self.order)
            return result
        result, query, key = self._record(given, kwargs)
        query = attn.to_q(hidden_states) if query is None else query
        for channel, handle in self.handles.items():
            read = key if channel in READ_BY_LAYER else None
            read = attn.to_k(self._read_by(channel, text)) if read is None else read
            self.capture.add(handle, query, read)
        return result

    def _record(
        self, given: tuple, kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return what the layer's own processor returns, and the queries and keys it used."""
        attn = given[0]
        to_q, to_k = Recorder(attn.to_q), Recorder(attn.to_k)
        # What an instance holds comes before what its class finds: no module is exchanged.
        attn.__dict__.update(to_q=to_q, to_k=to_k)
        try:
            return self.inner(*given, **kwargs), to_q.last, to_k.last
        finally:
            attn.__dict__.pop("to_q", None)
            attn.__dict__.pop("to_k", None)

    def _read_by(self, channel: str, text: torch.Tensor) -> torch.Tensor:
        """Return the embeddings whose keys a channel compares the queries with."""
        if channel == "probe" and self.probe is not None:
            return self.probe.to(text.device).expand(len(text), -1, -1)
        if channel == "logits_clip_l":  # `to_k` has no bias: the keys of both encoders add up
            return nn.functional.pad(text[..., : self.width_l], (0, text.shape[-1] - self.width_l))
        return text


class Entry(nn.Module):
    """The U-Net's first layer, which also tells the capture that a pass begins.

    Not a hook: a U-Net compiled before would not see one.
    """

    def __init__(self, first: nn.Module, capture: Capture) -> None:
        super().__init__()
        self.first, self.capture = first, capture
        self.state, self.order = capture.state, capture.order

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """Return the first layer's output."""
        if torch.compiler.is_compiling():
            torch.ops.koala_nb.begin(sample, self.state, self.order)
        else:
            self.capture.begin_pass(sample)
        return self.first(sample)


# Both change `order`, so that a compiler keeps them, and in their order.
@torch.library.custom_op("koala_nb::begin", mutates_args=("order",))
def _begin(sample: torch.Tensor, state: torch.Tensor, order: torch.Tensor) -> None:
    _OPEN[int(state)].begin_pass(sample)
    order += 1


@torch.library.custom_op("koala_nb::attend", mutates_args=("order",))
def _attend(
    query: torch.Tensor, key: torch.Tensor, state: torch.Tensor, order: torch.Tensor
) -> None:
    _OPEN[int(state)].add(int(state), query, key)
    order += 1
