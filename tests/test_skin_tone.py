"""Skin tone against published colours; the errors of other tools as regressions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koala_nb.scorers import skin_tone

SWATCHES = np.array([list(bytes.fromhex(color)) for color in skin_tone.MONK])


@pytest.mark.parametrize(
    "rgb, lab",
    [
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((119, 119, 119), (50.03, 0, 0)),
    ],
)
def test_known_colours(rgb, lab):
    assert skin_tone.to_lab(np.array(rgb)) == pytest.approx(lab, abs=0.02)


def test_the_ten_swatches_are_one_to_ten():
    found = [skin_tone.measure(swatch[None]) for swatch in SWATCHES]
    assert [tone.monk for tone in found] == list(range(1, 11))
    assert all(tone.distance == pytest.approx(0, abs=1e-9) for tone in found)


def test_the_angle_falls_from_light_to_dark():
    found = [skin_tone.measure(swatch[None]) for swatch in SWATCHES]
    assert found[0].ita_class == "very light" and found[-1].ita_class == "dark"
    assert found[0].ita > found[4].ita > found[5].ita > found[7].ita > found[9].ita


def test_the_order_of_channels_matters():
    """Read blue first, the swatches are not 1 to 10: the published error."""
    wrong = [skin_tone.measure(swatch[None, ::-1]).monk for swatch in SWATCHES]
    assert wrong != list(range(1, 11))


@given(st.lists(st.sampled_from(range(10)), min_size=1, max_size=9), st.randoms())
def test_the_order_of_pixels_does_not_matter(steps, random):
    pixels = SWATCHES[steps]
    order = random.sample(range(len(steps)), len(steps))
    assert skin_tone.measure(pixels) == skin_tone.measure(pixels[order])


def test_a_few_other_pixels_do_not_move_the_median():
    pixels = np.concatenate([np.repeat(SWATCHES[5:6], 9, axis=0), [[255, 255, 255], [0, 0, 0]]])
    assert skin_tone.measure(pixels).monk == 6


@pytest.mark.parametrize("pixels", [np.empty((0, 3))])
def test_no_pixels_are_refused(pixels):
    with pytest.raises(ValueError, match="no skin pixels"):
        skin_tone.measure(pixels)


def test_values_that_are_no_colours_are_refused():
    with pytest.raises(ValueError, match="0 to 255"):
        skin_tone.to_lab(np.array([300, 0, 0]))
