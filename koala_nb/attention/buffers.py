"""Where captured attention is added up: a buffer a layer, or a resolution, of a batch of images."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

Grid = tuple[int, int]  # rows and columns
SCRATCH = {"cpu": 2**18, "cuda": 2**24}  # floats of one softmax: small ones stay in a CPU's cache
SOFTMAX = ("cross", "probe", "self")  # the other channels hold logits


def matches_prefix(name: str, prefixes: str | Sequence[str]) -> bool:
    """Whether a layer is, or is in, one of some parts, such as "up_blocks.0"."""
    prefixes = [prefixes] if isinstance(prefixes, str) else prefixes
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


@dataclass(frozen=True, eq=False)
class Source:
    """One layer's contribution to one channel."""

    channel: str
    name: str
    heads: int
    scale: float


def layer_grid(name: str, blocks: int, height: int, width: int) -> Grid:
    """Return the rows and columns of a layer's positions: each level of the U-Net halves them."""
    part, number, *_ = name.split(".")
    level = blocks - 1
    if part == "down_blocks":
        level = int(number)
    elif part == "up_blocks":
        level -= int(number)
    for _ in range(level):
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    return height, width


def cell_grid(grid: Grid, cells: int) -> Grid:
    """Return rows and columns of cells, `cells` along the longer side of a grid of positions."""
    rows, columns = (max(1, round(cells * side / max(grid))) for side in grid)
    return rows, columns


@dataclass
class Batch:
    """The maps of images drawn together, added up over the passes of the U-Net."""

    size: tuple[int, int, int, int]  # images, guidance branches drawn, latent rows and columns
    branches: tuple[int, ...]  # those kept: 0 unconditional, 1 conditional; 0 without guidance
    keep_axes: tuple[str, ...]
    blocks: int
    cells: int  # along the longer side, for self-attention
    tokens: int  # that the text encoder reads
    passes: int = 0
    # By (channel, layer or resolution, step): (rows kept, heads or 1, positions, tokens).
    buffers: dict[tuple[str, str, int], Tensor] = field(default_factory=dict)
    grids: dict[tuple[str, str], Grid] = field(default_factory=dict)
    added: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    captured: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def rows(self) -> range:
        """The rows of the U-Net's batch whose maps are kept."""
        images = self.size[0]
        return range(self.branches[0] * images, (self.branches[-1] + 1) * images)

    def shape(self, source: Source) -> tuple[str, Grid, tuple[int, int, int]]:
        """Return a source's key, its grid, and (heads, positions, tokens) of its buffer."""
        grid = layer_grid(source.name, self.blocks, *self.size[2:])
        if source.channel == "self":
            grid = cell_grid(grid, self.cells)
        tokens = math.prod(grid) if source.channel == "self" else self.tokens
        key = source.name if "layer" in self.keep_axes else f"{grid[0]} x {grid[1]}"
        heads = source.heads if "head" in self.keep_axes else 1
        return key, grid, (heads, math.prod(grid), tokens)

    def predict_bytes(self, sources: Iterable[Source], steps: int) -> int:
        """Return the bytes that all buffers will take."""
        shapes = {}
        for source in sources:
            key, _, shape = self.shape(source)
            shapes[source.channel, key] = math.prod(shape)
        count = steps if "step" in self.keep_axes else 1
        return 4 * len(self.rows) * sum(shapes.values()) * count

    def add(self, source: Source, query: Tensor, key: Tensor) -> None:
        """Add the softmax (or the logits) of queries and keys, (rows, positions, channels) each."""
        into, grid = self._buffer(source, key.shape[1], query.device)
        if query.requires_grad or key.requires_grad:
            query, key = query.detach(), key.detach()
        for image, row in enumerate(self.rows):
            q, k = (x[row].view(x.shape[1], source.heads, -1) for x in (query, key))
            if source.channel == "self":
                fine = layer_grid(source.name, self.blocks, *self.size[2:])
                _add_cells(into[image], q, k, source.scale, fine, grid)
            else:
                _add_maps(into[image], q, k, source)

    def add_edited(self, source: Source, maps: Tensor) -> None:
        """Add maps as they are, (rows kept, heads, positions, tokens)."""
        into, _ = self._buffer(source, maps.shape[-1], maps.device)
        into.add_(maps.detach() if into.shape[1] > 1 else maps.detach().mean(1, keepdim=True))

    def _buffer(self, source: Source, keys: int, device: torch.device) -> tuple[Tensor, Grid]:
        """Return where this pass of a source is added up, and its grid; counts the pass."""
        name, grid, (heads, positions, tokens) = self.shape(source)
        place = (source.channel, name, self.passes - 1 if "step" in self.keep_axes else 0)
        into = self.buffers.get(place)
        if into is None:
            tokens = tokens if source.channel == "self" else keys
            into = torch.zeros(len(self.rows), heads, positions, tokens, device=device)
            self.buffers[place] = into
            self.grids[place[:2]] = grid
        self.added[place] += 1
        self.captured[source.channel, source.name] += 1
        return into, grid


def _add_maps(into: Tensor, query: Tensor, key: Tensor, source: Source) -> None:
    """Add maps, (heads or 1, positions, tokens), in pieces that fit the scratch space.

    Queries are (positions, heads, channels), keys (tokens, heads, channels).
    """
    positions, heads, _ = query.shape
    room = SCRATCH.get(query.device.type, SCRATCH["cpu"]) // (positions * len(key))
    size = max(1, min(heads, room))
    query, key = query.transpose(0, 1), key.permute(1, 2, 0)
    for head in range(0, heads, size):
        q, k, part = query, key, into
        if size < heads:
            some = slice(head, head + size)
            q, k, part = query[some], key[some], into if len(into) == 1 else into[some]
        maps = torch.baddbmm(part, q.float(), k.float(), beta=0, alpha=source.scale)
        if source.channel in SOFTMAX:
            maps = torch.softmax(maps, -1)
        if len(into) == 1:
            part.add_(maps.sum(0, keepdim=True), alpha=1 / heads)
        else:
            part.add_(maps)


def _add_cells(
    into: Tensor, query: Tensor, key: Tensor, scale: float, grid: Grid, cells: Grid
) -> None:
    """Add self-attention between cells: summed over a cell's keys, the mean over its queries.

    Adds to (heads or 1, cells, cells) for queries and keys of (positions, heads, channels).
    """
    index = [
        torch.arange(side, device=query.device) * n // side
        for side, n in zip(grid, cells, strict=True)
    ]
    rows, columns = (functional.one_hot(i, n).float() for i, n in zip(index, cells, strict=True))
    cell = (index[0][:, None] * cells[1] + index[1]).flatten()
    share = 1 / torch.bincount(cell).float()
    query, key = query.transpose(0, 1), key.permute(1, 2, 0)
    heads, positions, _ = query.shape
    size = max(1, SCRATCH.get(query.device.type, SCRATCH["cpu"]) // positions)
    for head in range(heads):
        target = into[head if len(into) > 1 else 0]
        for start in range(0, positions, size):
            some = slice(start, start + size)
            maps = (query[head, some].float() * scale) @ key[head].float()
            maps = torch.softmax(maps, -1).unflatten(-1, grid)
            summed = (rows.T @ maps @ columns).flatten(1)
            weight = share[cell[some]] * (1.0 if len(into) > 1 else 1 / heads)
            target.index_add_(0, cell[some], summed * weight[:, None])
