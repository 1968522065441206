"""Edits of cross-attention while a pipeline draws: `capture_attention(edit=...)`.

After Hertz et al., Prompt-to-Prompt, arXiv 2208.01626: an edit takes a layer's maps and returns
others, and the layer's output is computed from those.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from koala_nb.attention.maps import Attention


@dataclass(frozen=True)
class Site:
    """Where an edit is applied: one layer in one pass of the U-Net."""

    layer: str  # its name, such as "up_blocks.1.attentions.0.transformer_blocks.0.attn2"
    step: int  # 0 is the first
    steps: int  # of the whole generation; 1 for a pass of the U-Net outside a pipeline
    images: range  # their numbers, in the order of drawing


# Takes maps, (images, heads, rows, columns, tokens), a copy that it may change; returns as many.
Edit: TypeAlias = Callable[[torch.Tensor, Site], torch.Tensor]


@dataclass(frozen=True)
class Reweight:
    """Multiply the maps of some tokens by a factor, at every position; 0 removes a word.

    The others keep their shares (section 3.2, attention re-weighting); it may be negative.
    """

    tokens: Sequence[int]
    factor: float

    def __call__(self, maps: torch.Tensor, site: Site) -> torch.Tensor:
        """Return the maps with those of the tokens multiplied."""
        maps[..., list(self.tokens)] *= self.factor
        return maps


@dataclass(frozen=True)
class Move:
    """Shift the maps of some tokens over the image, by shares of its height and width.

    Rounded to whole cells of each layer's grid; what leaves on one side enters on the other.
    """

    tokens: Sequence[int]
    down: float = 0.0
    right: float = 0.0

    def __call__(self, maps: torch.Tensor, site: Site) -> torch.Tensor:
        """Return the maps with those of the tokens shifted."""
        rows, columns = maps.shape[2:4]
        shift = round(self.down * rows), round(self.right * columns)
        tokens = list(self.tokens)
        maps[..., tokens] = maps[..., tokens].roll(shift, (2, 3))
        return maps


@dataclass(frozen=True)
class Replace:
    """Take the maps of tokens from images drawn before, the first with the first, and so on.

    source: captured with keep_axes=("layer", "head", "step"), the same seeds, sizes and steps.
    tokens: token here -> token there; None takes all as they are (section 3.2, word swap).
    until: only in the first steps, as a share of them (tau of the paper).
    """

    source: Attention
    tokens: Mapping[int, int] | None = None
    until: float = 1.0

    def __call__(self, maps: torch.Tensor, site: Site) -> torch.Tensor:
        """Return the maps with those of the tokens replaced; ValueError where none were kept."""
        if site.step >= self.until * site.steps:
            return maps
        pairs = self.tokens or {token: token for token in range(maps.shape[-1])}
        for row, image in enumerate(site.images):
            for head in range(maps.shape[1]):
                other = torch.from_numpy(
                    self.source.maps(image, layers=site.layer, head=head, step=site.step)
                )
                maps[row, head][..., list(pairs)] = other[..., list(pairs.values())].to(maps)
        return maps


def apply_edits(edits: Sequence[Edit], maps: torch.Tensor, site: Site) -> torch.Tensor:
    """Return maps after each edit in turn; ValueError where one returns something else."""
    edited = maps.clone()
    for edit in edits:
        edited = edit(edited, site)
        if not isinstance(edited, torch.Tensor) or edited.shape != maps.shape:
            got = tuple(edited.shape) if isinstance(edited, torch.Tensor) else type(edited).__name__
            raise ValueError(
                f"edit={edit!r} returned {got} in {site.layer}: return maps of the shape "
                f"{tuple(maps.shape)} that it was given: images, heads, rows, columns, tokens."
            )
    return edited
