"""Say that an image is generated: in its file, for programs; and in its pixels, for people.

Both are statements, not watermarks: whoever re-encodes, screenshots or crops an image removes them.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from koala_nb.core.files import PNG_KEY, write_atomic

if TYPE_CHECKING:
    from PIL import Image

XMP_KEY = "XML:com.adobe.xmp"  # the PNG text chunk that holds XMP
IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
# From IPTC's vocabulary of digital source types: made by a model trained on sampled content.
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
PACKET = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{rdf}"><rdf:Description rdf:about="" '
    'xmlns:Iptc4xmpExt="{iptc}" Iptc4xmpExt:DigitalSourceType="{source}"/></rdf:RDF></x:xmpmeta>'
)


def save(
    image: Image.Image, path: str | Path, record: dict[str, Any], visible: bool = False
) -> Path:
    """Write a PNG with its record and IPTC's "trained algorithmic media", atomically.

    `visible` adds a strip below the picture: "AI-generated, <model>". The same arguments give the
    same bytes.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(PNG_KEY, json.dumps(record, ensure_ascii=True, allow_nan=False))
    info.add_itxt(XMP_KEY, PACKET.format(rdf=RDF, iptc=IPTC, source=SOURCE_TYPE))
    shown = (
        labelled(image, f"AI-generated, {record.get('system', 'unknown')}") if visible else image
    )
    buffer = io.BytesIO()
    shown.save(buffer, format="PNG", pnginfo=info)
    return write_atomic(path, buffer.getvalue())


def labelled(image: Image.Image, text: str) -> Image.Image:
    """Return an image with a strip below it that holds a text, no smaller than legible.

    The picture itself stays as it is, to the pixel; it is put on white where the text is wider.
    """
    from PIL import Image, ImageDraw, ImageFont

    points = max(9, image.height // 28)
    font = ImageFont.load_default(points)
    width = max(image.width, int(font.getlength(text)) + points)
    strip = 2 * points
    page = Image.new("RGB", (width, image.height + strip), "white")
    page.paste(image.convert("RGB"), ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(page)
    draw.rectangle((0, image.height, width, image.height + strip), fill="black")
    draw.text((width / 2, image.height + strip / 2), text, "white", font, anchor="mm")
    return page


def statements(file: str | Path | io.BytesIO) -> dict[str, Any]:
    """Return the `record` and `source_type` that an image file holds, None where missing.

    ValueError where the file is no image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            image.load()
            info = dict(image.info)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{file} is not a readable image: {error}.") from None
    record, packet = info.get(PNG_KEY), info.get(XMP_KEY) or info.get("xmp")
    return {
        "record": json.loads(record) if record else None,
        "source_type": _source_type(packet) if packet else None,
    }


def _source_type(packet: str | bytes) -> str | None:
    if "<!" in (packet if isinstance(packet, str) else packet.decode("utf-8", "replace")):
        return None  # XMP has no declarations: an entity bomb would
    try:
        tree = ElementTree.fromstring(packet)
    except ElementTree.ParseError:
        return None
    for node in tree.iter(f"{{{RDF}}}Description"):
        if source_type := node.get(f"{{{IPTC}}}DigitalSourceType"):
            return source_type
    return None


def reencoded(path: str | Path, form: str = "JPEG", quality: int = 90) -> io.BytesIO:
    """Return a picture's pixels in a new file, as a screenshot or most uploads would make it."""
    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(path) as image:
        pixels = Image.fromarray(np.asarray(image.convert("RGB")))
    pixels.save(buffer, format=form, quality=quality)
    buffer.seek(0)
    return buffer
