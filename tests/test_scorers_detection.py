"""The composition probe's detectors and quality scorers: cards, real code on tiny weights."""

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from composition_rows import box, row
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from koala_nb.nano.detector_card import measure_card, scenes_of
from koala_nb.probes.composition_probe import CompositionScorer
from koala_nb.scorers import detection, instruments
from koala_nb.scorers.clip import CLIPScore
from koala_nb.scorers.detection import Detection, intersection_over_union, non_maximum, overlap


def test_boxes():
    assert overlap((0, 0, 1, 1), (0.5, 0.5, 1, 1)) == 1
    assert intersection_over_union((0, 0, 1, 1), (0.5, 0.5, 1, 1)) == pytest.approx(0.25)
    boxes = {("a", 0.5): box(0, 0), ("a", 0.9): box(0.02, 0), ("b", 0.4): box(0, 0)}
    twice = [Detection(*found, place) for found, place in boxes.items()]
    assert [d.score for d in non_maximum(twice)] == [0.9, 0.4]


def test_unknown_words_are_refused(instruments):
    with pytest.raises(ValueError, match="knows no 'koalla'.*'koala'"):
        instruments[0].detect([Image.new("RGB", (64, 64))], [["koalla"]])


def test_instrument_card(instruments, pipe):
    card = measure_card(*instruments, pipe.vae.float(), n=30)
    result = {(r["scenes"], r["images"], r["measure"]): r for r in card["ceiling"]}
    for kind in ("object", "pair", "shape", "shapes"):
        for measure in ("recall", "precision"):
            assert result[kind, "rendered", measure]["value"] >= 0.9, (kind, measure)
    assert result["count", "rendered", "recall"]["value"] >= 0.6
    assert card["floor"]["value"] < 0.2
    right, of = card["single object"]["specificity"]
    assert right >= 0.95 * of
    fit = card["quality"]
    assert fit["right prompt"].low > fit["another prompt"].high


def test_reading_does_not_depend_on_the_batch(instruments):
    scenes = scenes_of(instruments[0].world, "pair", 6)
    images = instruments[0].matcher.render(scenes)
    alone = [instruments[0].find(images[i : i + 1])[0] for i in range(6)]
    assert alone == instruments[0].find(images)


def tiny_tokenizer():
    words = ["<|startoftext|>", "<|endoftext|>", "a", "cat", "dog", "photo", "of", "red", "."]
    model = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="a"))
    model.pre_tokenizer = Whitespace()
    start, end = words[:2]
    special = {"bos_token": start, "eos_token": end, "pad_token": end, "unk_token": "a"}
    special["model_max_length"] = 16
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, **special)


SIDES = {"hidden_size": 32, "intermediate_size": 32}
SIDES |= {"num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {**SIDES, "vocab_size": 9, "max_position_embeddings": 16, "eos_token_id": 1}
VISION = {**SIDES, "image_size": 64, "patch_size": 16}


@pytest.fixture(scope="module")
def owl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("owl")
    torch.manual_seed(0)
    config = transformers.Owlv2Config(text_config=TEXT, vision_config=VISION, projection_dim=32)
    model = transformers.Owlv2ForObjectDetection(config)
    for weight in (*model.box_head.parameters(), *model.class_head.parameters()):
        torch.nn.init.normal_(weight, std=0.02)  # boxes that are no points, in any version
    model.save_pretrained(folder)
    images = transformers.Owlv2ImageProcessor(size={"height": 64, "width": 64})
    transformers.Owlv2Processor(images, tiny_tokenizer()).save_pretrained(folder)
    return folder


def noise(n, width=96, height=64):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)) for _ in range(n)]


def test_an_open_vocabulary_detector(owl, clip_folder):
    everything = detection.OpenVocabulary(str(owl), threshold=0.0, colors=str(clip_folder))
    result = everything.detect(noise(2), [["cat", "dog"], ["dog"]])
    assert {d.label for d in result[0]} <= {"cat", "dog"} and result[0]
    assert {d.label for d in result[1]} == {"dog"}
    for d in (*result[0], *result[1]):
        assert d.color in detection.COLORS and 0 <= d.score <= 1
        assert 0 <= d.box[0] < d.box[2] <= 1 and 0 <= d.box[1] < d.box[3] <= 1
    nothing = detection.OpenVocabulary(str(owl), threshold=0.999, colors="")
    assert nothing.detect(noise(1), [["cat"]]) == [[]]
    likeliest = {"object": result[1][0].label}
    assert everything.score(noise(2)[1:], [{"things": ["dog"]}]) == [likeliest]
    assert nothing.background(noise(1)) == [None]


def test_the_error_of_a_detector_is_measured(owl, tmp_path):
    noise(1)[0].save(tmp_path / "noise.png")
    (tmp_path / "labels.csv").write_text("file,label\nnoise.png,dog\nnoise.png,none\n")
    measured = instruments.measure("objects", tmp_path / "labels.csv", source=str(owl))
    assert measured.rates.n.tolist() == [1, 1] and "colours by nothing" in measured.about
    assert measured.rates.value.sum() == 1  # the same picture twice: one of the labels is right


def test_missing_weights_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="The detector .* cannot be loaded: download it"):
        detection.OpenVocabulary(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="The scorer"):
        CLIPScore(str(tmp_path / "nothing"))


def test_clipscore_is_the_scaled_cosine(clip_folder):
    scorer = CLIPScore(str(clip_folder))
    (value,) = scorer.score(noise(1), [{"prompt": "a photo of a cat"}])
    model, inputs = (
        scorer.clip.model,
        scorer.clip.processor(text=["a photo of a cat"], images=noise(1), return_tensors="pt"),
    )
    with torch.no_grad():
        logits = model(**inputs).logits_per_image
        cosine = float(logits / model.logit_scale.exp())
    assert value == pytest.approx(2.5 * max(cosine, 0), abs=1e-5)


def test_the_probe_with_a_detector_of_transformers(owl, clip_folder):
    prompts = pd.DataFrame([row("single_object", "1 cat"), row("colors", "1 dog [red]")])
    detector = detection.OpenVocabulary(str(owl), 0.0, str(clip_folder))
    read = CompositionScorer(detector, CLIPScore(str(clip_folder)))
    rows = read.score(noise(2), prompts.to_dict("records"))
    assert rows[0]["correct"] is True and isinstance(rows[0]["quality"], float)
    with pytest.raises(ValueError, match="asks for a background"):
        read.score(noise(1), [row("attributes", "1 cat", background="red")])
