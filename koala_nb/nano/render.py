"""Draw scenes as batched tensors on any device.

Sprites are resized once to the few sizes of the world and pasted at whole pixels, so an object's
pixels, box and mask are exactly known.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from koala_nb.core.catalog import data_folder
from koala_nb.nano.world import BACKGROUNDS, SIZES, STYLES, UNITS, Placed, Scene, Thing, load_json

FONTS = {"noto": "DejaVuSans-Bold", "fluent": "DejaVuSerif-Bold", "twemoji": "DejaVuSansMono-Bold"}
SIGN_BOARD = {"noto": "#ffffff", "fluent": "#fff3d6", "twemoji": "#e8f1ff"}
SIGN_INK = "#1d2433"


def read_sheet(style: str) -> np.ndarray:
    """Return a style's sprites, (n, 128, 128, 4) uint8 RGBA."""
    path = data_folder() / "world" / f"{style}.webp"
    if not path.is_file():
        raise FileNotFoundError(f"The emoji world needs {path}, which is missing: restore it.")
    side, columns = load_json("sprites.json")["size"], load_json("sprites.json")["columns"]
    sheet = np.asarray(Image.open(path).convert("RGBA"))
    rows = sheet.shape[0] // side
    return (
        sheet.reshape(rows, side, columns, side, 4)
        .transpose(0, 2, 1, 3, 4)
        .reshape(-1, side, side, 4)
    )


def draw_sign(word: str, style: str, side: int = 128) -> Image.Image:
    """Return a board with a word, RGBA; each style has its own font and board."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{FONTS[style]}.ttf"
    image = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(image)
    box = (2, side * 0.27, side - 3, side * 0.73)
    draw.rounded_rectangle(box, side * 0.06, SIGN_BOARD[style], SIGN_INK, max(2, side // 48))
    points = side * 0.36
    while (font := ImageFont.truetype(path, points)).getlength(word) > side * 0.86:
        points *= 0.94
    draw.text((side / 2, side / 2), word, SIGN_INK, font, anchor="mm")
    return image


class Renderer:
    """Draw scenes at one image size; `things` limits the sprites that are kept in memory.

    `image_size` in pixels, a multiple of 64. Sprites are kept as uint8 in one flat tensor on
    `device`.
    """

    def __init__(self, image_size: int, things: list[Thing], device: str = "cpu") -> None:
        if image_size % UNITS:
            raise ValueError(f"The emoji world is drawn at multiples of 64 pixels: {image_size}.")
        self.image_size, self.scale = image_size, image_size // UNITS
        self.device = torch.device(device)
        self.rows = {thing: row for row, thing in enumerate(dict.fromkeys(things))}
        self.sides = {size: units * self.scale for size, units in SIZES.items()}
        self.offsets, pixels, total = {}, [], 0
        pictures = [self._pictures(style) for style in STYLES]
        for size, side in self.sides.items():
            self.offsets[size] = total
            for sheet in pictures:
                pixels.append(_resize(sheet, side).flatten())
                total += pixels[-1].numel()
        self.pixels = torch.cat(pixels).to(self.device)

    def _pictures(self, style: str) -> np.ndarray:
        sheet = read_sheet(style)
        where = {
            Thing(**entry): row for row, entry in enumerate(load_json("sprites.json")["sprites"])
        }
        return np.stack(
            [
                np.asarray(draw_sign(t.name, style)) if t.kind == "sign" else sheet[where[t]]
                for t in self.rows
            ]
        )

    def _loose(self, scenes: list[Scene], slot: int) -> torch.Tensor:
        """Return signs with other words than the sheet's, (n, 4, pixels), premultiplied.

        KeyError for anything else than a sign.
        """
        layer = torch.zeros(len(scenes), 4, self.image_size, self.image_size)
        for row, scene in enumerate(scenes):
            p = scene.placed[slot]
            if p.thing.kind != "sign":
                raise KeyError(p.thing)
            side = self.sides[p.size]
            board = np.asarray(draw_sign(p.thing.name, scene.style))[None]
            x, y = p.x * self.scale, p.y * self.scale
            layer[row, :, y : y + side, x : x + side] = _resize(board, side)[0].float() / 255
        return layer.to(self.device).flatten(2)

    def offset(self, thing: Thing, style: str, size: str) -> int:
        """Return where a sprite begins in the flat tensor of pixels."""
        row = STYLES.index(style) * len(self.rows) + self.rows[thing]
        return self.offsets[size] + row * 4 * self.sides[size] ** 2

    def sprite(self, thing: Thing, style: str, size: str) -> torch.Tensor:
        """Return one premultiplied sprite, (4, side, side) in 0..1."""
        side, begin = self.sides[size], self.offset(thing, style, size)
        return self.pixels[begin : begin + 4 * side * side].view(4, side, side).float() / 255

    def __call__(self, scenes: list[Scene]) -> torch.Tensor:
        """Return the images of scenes, (n, 3, size, size) in -1..1."""
        n, side = len(scenes), self.image_size
        colors = torch.tensor([BACKGROUNDS[s.background] for s in scenes], dtype=torch.float32)
        canvas = (colors / 255).to(self.device)[:, :, None].repeat(1, 1, side * side)
        for slot in range(max(len(s.placed) for s in scenes)):
            rows = [i for i in range(n) if slot < len(scenes[i].placed)]
            loose = [i for i in rows if scenes[i].placed[slot].thing not in self.rows]
            rows = [i for i in rows if i not in loose]
            for some, layer in (
                (rows, self._layer([scenes[i] for i in rows], slot) if rows else None),
                (loose, self._loose([scenes[i] for i in loose], slot) if loose else None),
            ):
                if layer is not None:
                    below = canvas[some]
                    canvas[some] = below * (1 - layer[:, 3:]) + layer[:, :3]
        return (canvas * 2 - 1).view(n, 3, side, side)

    def _layer(self, scenes: list[Scene], slot: int) -> torch.Tensor:
        """Return one sprite a scene on an empty canvas, (n, 4, pixels), premultiplied."""
        placed = [s.placed[slot] for s in scenes]
        columns = [
            [self.offset(p.thing, s.style, p.size) for p, s in zip(placed, scenes, strict=True)],
            [self.sides[p.size] for p in placed],
            [p.x * self.scale for p in placed],
            [p.y * self.scale for p in placed],
        ]
        begin, width, left, top = torch.tensor(columns, device=self.device)[..., None, None]
        axis = torch.arange(self.image_size, device=self.device)
        dx, dy = axis[None, None, :] - left, axis[None, :, None] - top
        inside = (dx >= 0) & (dx < width) & (dy >= 0) & (dy < width)
        index = (begin + dy * width + dx)[:, None]
        channel = torch.arange(4, device=self.device)[None, :, None, None]
        index = index + channel * (width * width)[:, None]
        inside = inside[:, None].expand_as(index)
        values = self.pixels[torch.where(inside, index, 0)].float() / 255
        return (values * inside).flatten(2)

    def masks(self, scene: Scene) -> torch.Tensor:
        """Return where each sprite of a scene shows, (sprites, size, size) in 0..1."""
        layers = [self._layer([scene], slot)[0, 3] for slot in range(len(scene.placed))]
        return torch.stack(layers).view(-1, self.image_size, self.image_size)


def _resize(sheet: np.ndarray, side: int) -> torch.Tensor:
    """Return premultiplied sprites at a size, (n, 4, side, side) uint8."""
    pixels = torch.from_numpy(sheet.copy()).permute(0, 3, 1, 2).float()
    pixels[:, :3] *= pixels[:, 3:] / 255
    small = torch.nn.functional.interpolate(
        pixels, (side, side), mode="bilinear", antialias=True, align_corners=False
    )
    return small.round().clamp(0, 255).to(torch.uint8)


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """Return images in -1..1, (n, 3, h, w), as (n, h, w, 3) uint8."""
    scaled = ((images.float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def signs(texts: Sequence[str], size: int, seed: int = 0) -> list[Image.Image]:
    """Return one sign a text at an image size in pixels; style, background, place by the seed.

    Drawn as in training: the text in one line, in a font of the style, as large as the board
    allows. The emoji world is drawn at multiples of 64 pixels; another size is resampled.
    """
    rng = np.random.default_rng(seed)
    scenes = []
    for text in texts:
        style, background = STYLES[rng.integers(3)], list(BACKGROUNDS)[rng.integers(10)]
        x, y = (int(v) for v in rng.integers(2, 9, 2))
        scenes.append(
            Scene("sign", style, background, (Placed(Thing("sign", text), "large", x, y),))
        )
    side = max(1, round(size / UNITS)) * UNITS
    render = Renderer(side, [Thing("sign", text) for text in texts])
    pictures = [Image.fromarray(pixels) for pixels in to_pixels(render(scenes))]
    return pictures if side == size else [p.resize((size, size)) for p in pictures]
