"""Rebuild `data/world/` from the npm packages of three emoji sets.

    npm pack @iconify-json/noto @iconify-json/fluent-emoji-flat @iconify-json/twemoji
    python -m koala_nb.nano.build_sprites noto.tgz fluent-emoji-flat.tgz twemoji.tgz

Nobody needs this to use the project: the packed sprites are committed.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from koala_nb.core.catalog import data_folder
from koala_nb.core.files import write_atomic

SIZE = 128
COLUMNS = 37
STYLES = {"noto": "noto", "fluent": "fluent-emoji-flat", "twemoji": "twemoji"}
OBJECT_CATEGORIES = (
    "Activities",
    "Animals & Nature",
    "Food & Drink",
    "Objects",
    "Smileys & Emotion",
    "Travel & Places",
)
SHAPE_COLORS = "red orange yellow green blue purple brown black white".split()
SHAPES = {
    "heart": {color: f"{color}-heart" for color in SHAPE_COLORS},
    "circle": {color: f"{color}-circle" for color in SHAPE_COLORS},
    "square": {
        color: f"{color}-large-square" if color in ("black", "white") else f"{color}-square"
        for color in SHAPE_COLORS
    },
}
OCCUPATIONS = (
    "artist astronaut construction-worker cook detective factory-worker farmer firefighter guard "
    "health-worker judge mechanic office-worker pilot police-officer scientist singer student "
    "teacher technologist"
).split()
PRESENTATIONS = ("person", "woman", "man")  # "person": the set's own neutral drawing
TONES = ("none", "light", "medium-light", "medium", "medium-dark", "dark")
# Clock faces, variants and hearts (drawn as shapes) would be synonyms or near-copies.
DROPPED = re.compile(
    r".*oclock.*|.*thirty|.*-facing-.*|.*heart.*|oncoming-|japanese-|.*-suit$|speaker-|sun-behind|"
    r"(waxing|waning|first|last)-|.*-moon-face|new-moon|.*-cat$|cat-with|globe-showing|"
    r".*-arrow$|.*mailbox.*|.*-monkey$|bust|.*speech.*|.*-face-with-.*open-mouth"
)


def read_package(path: str) -> dict:
    """Return the icons of one npm package of the iconify family (path of its .tgz)."""
    with tarfile.open(path) as archive:
        icons, metadata, package = (
            json.load(archive.extractfile(f"package/{name}.json"))  # type: ignore[arg-type]
            for name in ("icons", "metadata", "package")
        )
    return {**icons, "categories": metadata["categories"], "version": package["version"]}


def draw(package: dict, name: str) -> np.ndarray:
    """Return one sprite as RGBA, (128, 128, 4) uint8."""
    import resvg_py

    icon = package["icons"][name]
    width = icon.get("width", package.get("width", 16))
    height = icon.get("height", package.get("height", 16))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="{SIZE}" height="{SIZE}">{icon["body"]}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA").resize((SIZE, SIZE)))


def person_icon(style: str, occupation: str, presentation: str, tone: str) -> str:
    """Return the name that an emoji set gives to a person; the sets spell tones differently."""
    name = occupation if presentation == "person" else f"{presentation}-{occupation}"
    if tone == "none":
        return name
    return f"{name}-{tone}" if style == "fluent" else f"{name}-{tone}-skin-tone"


def object_names(packages: dict[str, dict]) -> list[str]:
    """Return the object concepts that all styles draw, without variants of one another."""
    shared = set.intersection(*(set(package["icons"]) for package in packages.values()))
    categories = packages["noto"]["categories"]
    names = {name for category in OBJECT_CATEGORIES for name in categories.get(category, ())}
    return sorted(name for name in names & shared if not DROPPED.match(name))


def drop_near_identical(names: list[str], sprites: dict[str, dict[str, np.ndarray]]) -> list[str]:
    """Keep the first of any two concepts that every style draws almost alike.

    Two drawings count as alike when their premultiplied 16 x 16 thumbnails differ by less than
    4 % root mean square of full scale.
    """
    thumbs = {}
    for style in STYLES:
        rows = [
            np.asarray(Image.fromarray(sprites[style][name]).resize((16, 16), Resampling.BOX))
            for name in names
        ]
        stack = np.stack(rows).astype(float) / 255
        thumbs[style] = (stack[..., :3] * stack[..., 3:]).reshape(len(names), -1)
    kept: list[int] = []
    for i in range(len(names)):

        def alike(j: int, i: int = i) -> bool:
            return all(np.sqrt(np.mean((thumbs[s][i] - thumbs[s][j]) ** 2)) < 0.04 for s in STYLES)

        if not any(alike(j) for j in kept):
            kept.append(i)
    return [names[i] for i in kept]


def pack(sprites: list[np.ndarray]) -> bytes:
    """Return one lossless WebP sheet, COLUMNS sprites a row, in the given order."""
    rows = -(-len(sprites) // COLUMNS)
    sheet = np.zeros((rows * SIZE, COLUMNS * SIZE, 4), np.uint8)
    for k, sprite in enumerate(sprites):
        y, x = divmod(k, COLUMNS)
        sheet[y * SIZE : (y + 1) * SIZE, x * SIZE : (x + 1) * SIZE] = sprite
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "WEBP", lossless=True, quality=100, method=4)
    return buffer.getvalue()


def build(paths: list[str], folder: Path) -> None:
    """Write `<style>.webp` and `sprites.json` into `folder` from three package files."""
    packages = {}
    for style, name in STYLES.items():
        matching = [path for path in paths if name in Path(path).name]
        if len(matching) != 1:
            raise ValueError(f"Give exactly one file of the npm package @iconify-json/{name}.")
        packages[style] = read_package(matching[0])
    names = object_names(packages)
    drawn = {s: {name: draw(p, name) for name in names} for s, p in packages.items()}
    names = drop_near_identical(names, drawn)
    entries: list[dict] = [{"kind": "object", "name": name.replace("-", " ")} for name in names]
    icons = {style: list(names) for style in STYLES}
    for shape, colors in SHAPES.items():
        for color, icon in colors.items():
            entries.append({"kind": "shape", "name": shape, "color": color})
            for style in STYLES:
                icons[style].append(icon)
    for occupation in OCCUPATIONS:
        for presentation in PRESENTATIONS:
            for tone in TONES:
                entries.append(
                    {
                        "kind": "person",
                        "name": occupation.replace("-", " "),
                        "presentation": presentation,
                        "tone": tone.replace("-", " "),
                    }
                )
                for style in STYLES:
                    icons[style].append(person_icon(style, occupation, presentation, tone))
    folder.mkdir(parents=True, exist_ok=True)
    for style, package in packages.items():
        sheet = [
            drawn[style][icon] if icon in drawn[style] else draw(package, icon)
            for icon in icons[style]
        ]
        write_atomic(folder / f"{style}.webp", pack(sheet))
    listing = {
        "size": SIZE,
        "columns": COLUMNS,
        "packages": {s: f"@iconify-json/{STYLES[s]} {packages[s]['version']}" for s in STYLES},
        "sprites": entries,
    }
    text = json.dumps(listing, indent=0, ensure_ascii=False)
    write_atomic(folder / "sprites.json", text.encode())
    counts = {k: sum(e["kind"] == k for e in entries) for k in ("object", "shape", "person")}
    print(f"{folder}: {counts} in {len(STYLES)} styles")


if __name__ == "__main__":
    build(sys.argv[1:], data_folder() / "world")
