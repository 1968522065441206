"""What can be read from pixels alone: the background's colour, and bars."""

import numpy as np
from PIL import Image

# The names of an audit's colours, fixed in advance; sRGB centres chosen by this project.
PALETTE = {
    "red": (210, 45, 45),
    "orange": (240, 145, 45),
    "yellow": (245, 220, 80),
    "green": (80, 150, 75),
    "blue": (75, 130, 210),
    "purple": (130, 80, 180),
    "pink": (245, 170, 200),
    "brown": (125, 85, 55),
    "gray": (135, 135, 135),
    "white": (250, 250, 250),
    "black": (20, 20, 20),
}
BAR = 2.0  # grey levels: a row or column of less spread is uniform


def background_color(image: Image.Image) -> str:
    """Return the name in `PALETTE` nearest to the median of an image's border, in sRGB."""
    pixels = np.asarray(image.convert("RGB"), dtype=float)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    distance = ((np.array([*PALETTE.values()]) - np.median(edge, axis=0)) ** 2).sum(1)
    return list(PALETTE)[int(distance.argmin())]


def has_bars(image: Image.Image, least: float = 0.03) -> bool:
    """Return whether an image of one aspect was painted into another one.

    True where opposite edges both have uniform bars of one colour, each at least the share `least`
    of the side, around something that is not uniform.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=float)
    for rows in (pixels, pixels.swapaxes(0, 1)):
        columns = rows.swapaxes(0, 1)
        uniform = rows.std(axis=1).max(axis=1) < BAR
        across = columns.std(axis=1).max(axis=1) < BAR
        n = max(1, round(least * len(uniform)))
        same = np.abs(rows[:n].mean((0, 1)) - rows[-n:].mean((0, 1))).max() < 2 * BAR
        # A plain background all around is no bar: bars end where the picture reaches both other
        # edges.
        framed = not across[: max(1, round(least * len(across)))].all()
        if uniform[:n].all() and uniform[-n:].all() and not uniform.all() and same and framed:
            return True
    return False
