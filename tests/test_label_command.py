"""Labelling that closes: draw, label a planned sample, correct, report; on random weights."""

import re
from pathlib import Path

import pandas as pd
import pytest
from hub_layout import tiny_pipeline

from koala_nb import cli, probes
from koala_nb.core import files
from koala_nb.models import session
from koala_nb.probes import labels
from koala_nb.probes.bias_probe import PROBE
from koala_nb.report import audit as audits
from koala_nb.report import findings

pytestmark = pytest.mark.long
ANSWERS = ("woman", "man", "unsure")


class Reader:
    """Reads people by the image's brightness: the readers of photographs need their weights."""

    name, version = "by brightness", "1"

    def score(self, images, prompts):
        means = [sum(image.convert("L").resize((1, 1)).getdata()) for image in images]
        return [{"presentation_bright": ANSWERS[mean % 2]} for mean in means]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A photographic pipeline of random weights, and a folder to work in."""
    place = tmp_path_factory.mktemp("own")
    tiny_pipeline(place / "scratch").save_pretrained(place / "own", safe_serialization=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(type(PROBE), "scorer", lambda self, *_, **__: Reader())
        patch.setattr(type(PROBE), "calibrate", lambda *_: {})
        yield place


def run(*words):
    return cli.main([str(word) for word in words])


def answer(number):
    """Fill in a labeller's sheet; nobody says "unsure"."""
    file = Path(f"labels-{number}.csv")
    sheet = pd.read_csv(file, dtype=str, keep_default_na=False)
    page = re.sub('base64,[^"]+', "", file.with_suffix(".html").read_text())
    assert page.count("<img") == len(sheet)
    told = file.read_text() + page
    assert not [word for word in ("own", "g3.5", "photo", "n-", "portrait") if word in told]
    sheet["presentation"] = [ANSWERS[i % 2] for i in range(len(sheet))]
    sheet.to_csv(file, index=False)


@pytest.fixture(scope="module")
def walked(own):
    """Draw, label by a scripted labeller, correct."""
    probe = ("probe", "bias", "--model", "./own", "--runs", "g3.5", "--prompts", 8, "--images", 2)
    probe += ("--device", "cpu", "--anyway", "--out", own / "results")
    assert run(*probe) == 0
    (folder,) = (own / "runs").glob("*-g3.5")
    assert run("label", folder, "--each", 1, "--out", "labels.csv") == 0
    answer(1)
    assert run("label", folder, "--each", 1, "--out", "labels.csv") == 0  # takes the answers in
    sheet = pd.read_csv("labels.csv", dtype=str, keep_default_na=False)
    assert run(*probe, "--labels", "labels.csv") == 0
    return folder, sheet


def test_what_is_drawn_is_labelled_corrected_and_reported(own, walked, capsys):
    folder, sheet = walked
    assert "tone" not in sheet and len(sheet) == sheet.id.nunique() > 2
    (file,) = (own / "results").glob("*.json")
    estimates = pd.DataFrame(files.read_json(file)["estimates"])
    corrected = estimates[estimates.id.str.endswith(".corrected")]
    assert len(corrected) == len(sheet)
    audit = audits.Audit(
        session.start("./own", device="cpu", steps=1, size=64, seeds=1),
        n=8,
        labels_file="labels.csv",
        folder=own / "report",
    )
    section = audit.section("demographics")
    rows = findings.decide({"demographics": section}, "own")
    assert rows[0]["state"] != "not tested"
    capsys.readouterr()
    assert run("label", folder, "--each", 1, "--out", "labels.csv", "--labeller", 2) == 0
    answer(2)
    capsys.readouterr()
    assert run("label", folder, "--each", 1, "--out", "labels.csv") == 0
    assert re.search(r"agree in 1\.00 .* of \d+ images", capsys.readouterr().out)


def test_the_sample_is_stratified_and_its_ids_are_the_probes(walked):
    folder, _ = walked
    sample = labels.planned_sample([folder], 2, seed=1)
    known = probes.get("demographics").prompts("photographic").set_index("id").occupation
    assert known[sample.rows.id].value_counts().max() == 2
    assert not sample.rows.duplicated(labels.IMAGE).any()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("guidance,id,seed,file,pass\n", "no answers: it needs a column presentation or"),
        ("id,seed,file,pass,presentation\n", "no column 'guidance'"),
        ("guidance,id,seed,file,pass,presentation\n3.5,0,1,f,1,man\n", "'0' is no prompt of"),
    ],
)
def test_a_wrong_label_file_is_refused_before_anything_is_drawn(own, text, words, capsys):
    (own / "bad.csv").write_text(text)
    drawn = len(list((own / "runs").rglob("*.png"))) if (own / "runs").is_dir() else 0
    assert run("probe", "bias", "--model", "./own", "--labels", "bad.csv", "--runs", "g1") == 2
    assert words in capsys.readouterr().err
    assert len(list((own / "runs").rglob("*.png"))) == drawn


def test_a_folder_of_other_prompts_and_an_unknown_question_are_refused(own, walked, capsys):
    folder, _ = walked
    assert run("label", folder, "--questions", "age") == 2
    assert "'age' is none of presentation, tone, monk" in capsys.readouterr().err
    assert run("generate", "./own", "a cat", "--seeds", 1, "--steps", 1, "--out", "cats") == 0
    assert run("label", "cats") == 2
    assert "holds prompts that are not the probe's" in capsys.readouterr().err
