"""HTML pages that stand alone: a template filled in, its data and pictures inside it."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template

from PIL import Image

from koala_nb.display.figures import BANNER_STYLE

LARGEST_PAGE = 1_500_000  # bytes
PICTURE = 256  # pixels per side at most on the page


def filled_page(
    template: tuple[str, str],
    data: Mapping[str, object],
    banner: str | None,
    advice: str,
    **texts: str,
) -> bytes:
    """Return a page of a template, (package, file name), filled with data, banner and `texts`.

    One HTML file that asks for nothing, usable by keyboard. `texts` are HTML already. ValueError,
    with the advice, for more than LARGEST_PAGE bytes.
    """
    package, name = template
    source = files(package).joinpath("templates", name).read_text("utf-8")
    note = f'<p role="note" style="{BANNER_STYLE}">{escape(banner)}.</p>' if banner else ""
    inline = json.dumps(data).replace("<", "\\u003c")  # no "</script>" inside
    page = Template(source).substitute(banner=note, data=inline, **texts).encode()
    if len(page) > LARGEST_PAGE:
        raise ValueError(f"The page would take {len(page):,} bytes: {advice}.")
    return page


def slider_page(
    title: str,
    knob: str,
    choices: Sequence[str],
    pictures: Mapping[str, Mapping[int, Sequence[Image.Image]]],
    notes: Mapping[int, str] | None = None,
    banner: str | None = None,
) -> bytes:
    """Return a page to choose a prompt and a slider's value, or to play all values as an animation.

    knob: what the slider sets; choices: prompts; pictures: name -> value -> an image per choice;
    notes: value -> a sentence. ValueError where they do not fit, or the page would be too large.
    """
    values = sorted({value for row in pictures.values() for value in row})
    files: dict[str, int] = {}  # each picture is stored once
    shown = {}
    for name, row in pictures.items():
        frames = [map(webp, row.get(value, ())) for value in values]
        shown[name] = [[files.setdefault(text, len(files)) for text in frame] for frame in frames]
    if not values or any(len(at) != len(choices) for row in shown.values() for at in row):
        raise ValueError("slider_page: give one image per choice for each name and value.")
    named = {"knob": knob, "choices": list(choices), "values": values}
    sentences = [(notes or {}).get(value, "") for value in values]
    data = {**named, "notes": sentences, "shown": shown, "files": list(files)}
    template, advice = ("koala_nb.display", "slider.html"), "give fewer values"
    return filled_page(template, data, banner, advice, title=escape(title))


def encoded(image: Image.Image, side: int, form: str, **options: int) -> str:
    """Return an image of at most `side` pixels per side as a file of a form, in base64."""
    image = image.convert("RGB")
    image.info.pop("comment", None)  # a JPEG takes it over, and it may hold the prompt
    image.thumbnail((side, side))
    image.save(buffer := io.BytesIO(), format=form, **options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def webp(image: Image.Image) -> str:
    """Return an image of at most PICTURE pixels per side as WebP, in base64."""
    return encoded(image, PICTURE, "WEBP", quality=80, method=6)
