"""HTML pages that stand alone: a template filled in, its data and pictures inside it."""

import base64
import io
import json
from collections.abc import Mapping
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
