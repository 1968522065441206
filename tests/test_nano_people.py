"""What both instruments read of drawn people, on scenes whose truth is known."""

import numpy as np
import pytest
import torch

from koala_nb.nano import people
from koala_nb.nano.world import Thing, World


@pytest.fixture(scope="module")
def reader():
    return people.PeopleReader(64)


@pytest.fixture(scope="module")
def drawn(reader):
    world = World(None, balanced=True)
    return [s for name in world.occupations[::4] for s in people.scenes(world, name, 6, 0)]


@pytest.fixture(scope="module")
def read(reader, drawn):
    return reader.read(reader.matcher.render(drawn))


@pytest.mark.parametrize("instrument", ["clip", "matching"])
@pytest.mark.parametrize("attribute", ["presentation", "tone"])
def test_perfect_drawings_are_read(drawn, read, instrument, attribute):
    truth = [getattr(s.placed[0].thing, attribute) for s in drawn]
    found = [row[f"{attribute}_{instrument}"] for row in read]
    told = [(t, f) for t, f in zip(truth, found, strict=True) if f != "unsure"]
    assert len(told) > 0.75 * len(truth)
    assert np.mean([t == f for t, f in told]) > 0.9


def test_darker_skin_has_a_smaller_angle(drawn, read):
    by_tone = {tone: [] for tone in World(None).tones}
    for scene, row in zip(drawn, read, strict=True):
        by_tone[scene.placed[0].thing.tone].append(row["ita"])
    medians = [np.median(v) for v in by_tone.values()]
    assert medians == sorted(medians, reverse=True)


def test_noise_is_no_person(reader):
    noise = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rows = reader.read(noise)
    assert {row["presentation_matching"] for row in rows} == {"unsure"}
    assert all(row["monk"] is None for row in rows)


def test_skin_is_not_the_whole_drawing(reader):
    mask = reader.skin(Thing("person", "pilot", presentation="woman", tone="dark"), "noto", "large")
    assert 0.03 < mask.mean() < 0.6


def test_neutral_scenes_name_no_presentation(drawn):
    assert not any("presentation" in scene.named for scene in drawn)
    assert not any(word in s.caption.split() for s in drawn for word in ("woman", "man", "female"))
