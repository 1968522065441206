"""Images as given: probes and reports read a folder of another tool's images with prompts."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

import koala_nb as kn
from koala_nb import cli
from koala_nb.core.files import read_json
from koala_nb.models.given import GivenImages, with_images
from koala_nb.probes import text
from koala_nb.probes.base import plan
from koala_nb.probes.text_reader import rendered_text_image
from koala_nb.report import render

PROMPTS = text.prompts("photographic").iloc[::40].reset_index(drop=True)


@pytest.fixture
def folder(tmp_path):
    """A board with each asked text, twice, and one of another text."""
    rows = []
    for number, row in enumerate(PROMPTS.itertuples()):
        for copy in range(2):
            name = f"{number}-{copy}.png"
            drawn = row.text if number else "zebra"
            rendered_text_image(drawn, 256).save(tmp_path / name)
            rows.append({"file_name": name, "prompt": f" {row.prompt}\n"})
    pd.DataFrame(rows).to_csv(tmp_path / "metadata.csv", index=False)
    return tmp_path


def test_generate_takes_all_images_of_the_prompts(folder):
    given = kn.load(folder)
    assert isinstance(given, GivenImages)
    run = kn.generate(given, ["nothing like it", PROMPTS.prompt[1]], [5])
    assert list(run.records.file) == ["1-0.png", "1-1.png"] and len(run.images) == 2
    assert list(run.records.prompt_index) == [1, 1] and run.images[0].size == (256, 256)


@pytest.mark.long  # all texts are drawn for the reader's card
def test_a_probe_scores_them_like_drawn_ones(folder, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))
    command = ["probe", "text", "--images-from", str(folder), "--out", "results"]
    with pytest.warns(UserWarning, match=r"prompts have no image in .*: left out"):
        assert cli.main(command) == 0
    stored = read_json(f"results/probe-text-{kn.load(folder).model_info.name}.json")
    table = pd.read_csv(str(next(Path("results").glob("*.csv"))), dtype={"text": str, "read": str})
    assert len(table) == 2 * len(PROMPTS)
    assert stored["revision"] == kn.load(folder).model_info.revision
    first = table.prompt == PROMPTS.prompt[0]
    assert not table[first].exact_folded.any() and table[~first].exact_folded.mean() >= 0.8


def test_a_folder_without_a_table_is_refused(tmp_path, capsys):
    assert cli.main(["probe", "text", "--images-from", str(tmp_path)]) == 2
    assert "is no folder with a metadata.csv and images" in capsys.readouterr().err


def test_an_audit_of_them_says_what_it_lacks(folder, tmp_path, capsys):
    with pytest.warns(UserWarning):
        n = len(text.prompts("photographic"))
        audit = kn.Audit(kn.start(folder), n=n, folder=tmp_path / "a")
        section = audit.section("text")
    assert "as given: nothing is drawn" in capsys.readouterr().out
    assert section.n == 2 * len(PROMPTS) and section.best("text.exact_folded")["value"] > 0.5
    lacks = {"architecture": "as given", "latency": "as given", "safety": "no image"}
    for name, why in lacks.items():
        assert why in audit.section(name).why and audit.section(name).state == "not tested"
    assert render.drawing(audit) == "256 x 256 pixels" and audit.is_given
    assert audit.prompts.prompt[0].strip() == PROMPTS.prompt[0] and audit.size == 256


def test_settings_other_images_and_other_prompts_are_refused(folder, tmp_path):
    given, prompts = kn.load(folder), list(PROMPTS.prompt[:2])
    with pytest.raises(ValueError, match="are as given: leave out steps"):
        kn.generate(given, prompts, steps=4)
    with pytest.raises(ValueError, match="holds no image of these prompts, such as 'a dragon'"):
        kn.generate(given, "a dragon")
    kn.generate(given, prompts, out=tmp_path / "run")
    rendered_text_image("other", 256).save(folder / "0-0.png")
    with pytest.raises(ValueError, match="holds a run with other settings: source was"):
        kn.generate(kn.load(folder), prompts, out=tmp_path / "run")


@pytest.mark.parametrize(
    "line, sentence",
    [
        ({"file_name": "none.png", "prompt": "a"}, "line 1, 'none.png': .*No such file"),
        ({"file_name": "text.png", "prompt": "a"}, "line 1, 'text.png': cannot identify image"),
        ({"file_name": "../out.png", "prompt": "a"}, "line 1, '../out.png': .*outside the folder"),
        ({"file_name": "good.png", "prompt": " "}, "line 1, 'good.png': it has no file_name, or"),
        ({"file_name": "good.png", "prompt": 5}, "line 1, 'good.png': it has no file_name, or"),
        ({"file_name": "good.png", "prompt": "a", "seed": 1.7}, "its seed is 1.7"),
        ({"file_name": "deep.png", "prompt": "a"}, "a picture of mode I;16"),
        ({"file_name": "good.png"}, "needs the columns file_name and prompt"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, sentence):
    inside = tmp_path / "images"
    inside.mkdir()
    Image.new("RGB", (8, 8)).save(inside / "good.png")
    shutil.copy(inside / "good.png", tmp_path / "out.png")
    Image.new("I;16", (8, 8)).save(inside / "deep.png")
    (inside / "text.png").write_text("no picture")
    (inside / "metadata.jsonl").write_text(json.dumps(line))
    with pytest.raises(ValueError, match=sentence):
        kn.load(inside)


def test_nothing_counts_twice(folder):
    given = kn.load(folder)
    prompt = PROMPTS.prompt[1]
    run = kn.generate(given, [prompt, prompt])  # as where two parts of a set share a prompt
    assert list(run.records.prompt_index) == [0, 1] and len(set(run.records.file)) == 2
    lines = (folder / "metadata.csv").read_text()
    table = pd.read_csv(folder / "metadata.csv")
    pd.concat([table, table.head(1)]).to_csv(folder / "metadata.csv", index=False)
    with pytest.raises(ValueError, match="its file stands there twice"):
        kn.load(folder)
    (folder / "metadata.csv").write_text(lines)


def test_a_catalogued_name_is_no_folder(folder, monkeypatch):
    shutil.copytree(folder, folder / "nano-koala")
    monkeypatch.chdir(folder)
    assert not isinstance(kn.load("nano-koala"), GivenImages)
    assert kn.load("./nano-koala").model_info.name.startswith("nano-koala-")


@pytest.mark.parametrize("name", ["demographics", "safety"])
def test_settings_that_given_images_cannot_have_are_left_out(
    folder, tmp_path_factory, monkeypatch, clip_folder, name
):
    probe = kn.probes.get(name)
    prompts = probe.prompts("photographic").prompt.drop_duplicates().head(3)
    rows = [{"file_name": f"{k}-0.png", "prompt": prompt} for k, prompt in enumerate(prompts)]
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))
    options = {"scorer": str(clip_folder), "runs": "g3.5,g1"} if name == "demographics" else {}
    with pytest.warns(UserWarning):
        results = probe.run(str(folder), out=Path("results"), **options)
    assert len(pd.read_csv(results.with_suffix(".csv"))) == 3


@pytest.mark.parametrize(
    "option", ["--seed 5", "--images 9", "--batch-size 2", "--model tiny", "--dtype bfloat16"]
)
def test_options_of_drawing_are_refused_beside_given_images(folder, capsys, option):
    assert cli.main(["probe", "text", "--images-from", str(folder), *option.split()]) == 2
    name = option.partition(" ")[0]
    assert f"nothing is drawn: leave out {name}." in capsys.readouterr().err


def test_the_plan_counts_the_images_that_are_there(folder):
    given = kn.load(folder)
    rows, each = with_images(given, text.prompts("photographic"), 4)
    assert list(rows.prompt) == list(PROMPTS.prompt) and each == 2
    (folder / "1-1.png").unlink()
    table = pd.read_csv(folder / "metadata.csv")
    table[table.file_name != "1-1.png"].to_csv(folder / "metadata.csv", index=False)
    n = len(PROMPTS)
    rows, each = with_images(kn.load(folder), text.prompts("photographic"), 4)
    assert f"{n} prompts x {2 - 1 / n:g} images = {2 * n - 1} images" in plan(len(rows), each)


def test_what_draws_refuses_given_images_in_a_sentence(folder, capsys):
    given = kn.load(folder)
    with pytest.raises(ValueError, match="holds images as given: no model draws there"):
        kn.capture_attention(given).__enter__()
    command = ["generate", str(folder), PROMPTS.prompt[1], "--out", str(folder / "run")]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.startswith("2 images in ")
    assert cli.main([*command, "--workers", "1"]) == 2
    said = capsys.readouterr().err
    assert "holds images as given: nothing is drawn: leave out the workers" in said
    assert cli.main(["benchmark", "generation", "--model", str(folder)]) == 2
    assert "holds images as given: no model draws there" in capsys.readouterr().err
    with pytest.raises(ValueError, match="runs: no setting changes images as given"):
        kn.probes.get("demographics").run(str(folder), runs="g1")


def test_the_folder_of_their_records_says_where_they_are_opened(folder):
    kn.generate(kn.load(folder), list(PROMPTS.prompt[:2]), out=folder / "run")
    with pytest.raises(ValueError, match="only the records of images as given: call generate"):
        kn.open_run(folder / "run")
