"""Skin tone as measured in pixels: individual typology angle and the ten-step Monk scale.

Colours are converted in floating point from sRGB, channels in the order red, green, blue: 8-bit LAB
with its offset, or the order blue, green, red, puts all ten steps into two or three.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# The Monk Skin Tone scale (Ellis Monk, CC BY 4.0), lightest first.
MONK = "f6ede4 f3e7db f7ead0 eadaba d7bd96 a07e56 825c43 604134 3a312a 292420".split()
# sRGB's primaries and the white point D65, 2 degrees (IEC 61966-2-1).
TO_XYZ = np.array([
    [0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
])  # fmt: skip
WHITE = TO_XYZ.sum(1)
# Lower ends of the angle's classes, in degrees (Chardon et al. 1991; Del Bino and Bernerd 2013).
CLASSES = {
    "very light": 55, "light": 41, "intermediate": 28, "tan": 10, "brown": -30, "dark": -91,
}  # fmt: skip


class Tone(NamedTuple):
    """A measured tone; `distance` is that to the nearest step of the scale, in CIELAB's units."""

    ita: float  # degrees
    ita_class: str
    monk: int  # 1 (lightest) to 10
    distance: float


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """Return CIELAB (L* 0 to 100, a*, b*) of sRGB values 0 to 255, (..., 3), red first."""
    value = np.asarray(rgb, dtype=float) / 255
    if value.shape[-1:] != (3,) or value.min(initial=0) < 0 or value.max(initial=0) > 1:
        raise ValueError("to_lab: give red, green and blue, 0 to 255 each.")
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = linear @ TO_XYZ.T / WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    light = 116 * f[..., 1] - 16
    return np.stack([light, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def measure(pixels: np.ndarray) -> Tone:
    """Return the tone of skin pixels, (n, 3) sRGB 0 to 255, by their median in CIELAB.

    The angle is atan2(L* - 50, b*). ValueError without pixels: no skin is no tone.
    """
    found = np.asarray(pixels).reshape(-1, 3)
    if not len(found):
        raise ValueError("skin_tone.measure: there are no skin pixels.")
    lab = np.median(to_lab(found), axis=0)
    angle = float(np.degrees(np.arctan2(lab[0] - 50, lab[2])))
    steps = to_lab(np.array([list(bytes.fromhex(color)) for color in MONK]))
    apart = np.linalg.norm(steps - lab, axis=1)
    name = next((name for name, low in CLASSES.items() if angle > low), "dark")
    return Tone(angle, name, int(apart.argmin()) + 1, float(apart.min()))
