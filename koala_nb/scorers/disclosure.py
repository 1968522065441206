"""Say that an image is generated: in its file, for programs; and in its pixels, for people.

Both are statements, not watermarks: whoever re-encodes, screenshots or crops an image removes them.
"""

import io
import json
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from koala_nb.core.files import PNG_KEY, XMP_KEY, Record, save_png

# From IPTC's vocabulary of digital source types: made by a model trained on sampled content.
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
PACKET = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/></rdf:RDF></x:xmpmeta>'
)


def save(image: Image.Image, path: str | Path, record: Record, visible: bool = False) -> Path:
    """Write a PNG with record and IPTC's mark; `visible`: a strip "AI-generated, <model>", too."""
    if visible:
        image = labelled(image, f"AI-generated, {record.get('system', 'unknown')}")
    return save_png(image, path, record, PACKET)


def labelled(image: Image.Image, text: str) -> Image.Image:
    """Return an image with a strip below it that holds a text, no smaller than legible.

    The picture itself stays as it is, to the pixel; it is put on white where the text is wider.
    """
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


def statements(file: str | Path | io.BytesIO) -> Record:
    """Return an image's `record` and `source_type`, None: missing; ValueError for no image."""
    try:
        with Image.open(file) as image:
            image.load()
            info = dict(image.info)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{file} is not a readable image: {error}.") from None
    record, packet = info.get(PNG_KEY), info.get(XMP_KEY) or info.get("xmp") or ""
    text = packet if isinstance(packet, str) else packet.decode("utf-8", "replace")
    source = re.search(r'DigitalSourceType="([^"]+)"', text)
    return {
        "record": json.loads(record) if record else None,
        "source_type": source[1] if source else None,
    }


def reencoded(path: str | Path, form: str = "JPEG", quality: int = 90) -> io.BytesIO:
    """Return a picture's pixels in a new file, as a screenshot or most uploads would make it."""
    buffer = io.BytesIO()
    with Image.open(path) as image:
        pixels = Image.fromarray(np.asarray(image.convert("RGB")))
    pixels.save(buffer, format=form, quality=quality)
    buffer.seek(0)
    return buffer
