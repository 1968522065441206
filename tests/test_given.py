"""Images as given: probes and reports read a folder of another tool's images with prompts."""

import json
import shutil

import pandas as pd
import pytest
from PIL import Image

import koala_nb as kn
from koala_nb import cli
from koala_nb.core.files import read_json
from koala_nb.models.given import GivenImages
from koala_nb.probes import text
from koala_nb.probes.text_reader import rendered_text_image

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
    stored = read_json(f"results/probe-text-{folder.name}.json")
    table = pd.read_csv(f"results/probe-text-{folder.name}.csv", dtype={"text": str, "read": str})
    assert (
        len(table) == 2 * len(PROMPTS) and stored["revision"] == kn.load(folder).model_info.revision
    )
    first = table.prompt == PROMPTS.prompt[0]
    assert not table[first].exact_folded.any() and table[~first].exact_folded.mean() >= 0.8


def test_a_folder_without_a_table_is_refused(tmp_path, capsys):
    assert cli.main(["probe", "text", "--images-from", str(tmp_path)]) == 2
    assert "is no folder with a metadata.csv and images" in capsys.readouterr().err


def test_an_audit_of_them_says_what_it_lacks(folder, tmp_path, capsys):
    with pytest.warns(UserWarning):
        audit = kn.Audit(
            kn.start(folder), n=len(text.prompts("photographic")), folder=tmp_path / "a"
        )
        section = audit.section("text")
    assert "as given: nothing is drawn" in capsys.readouterr().out
    assert section.n == 2 * len(PROMPTS) and section.best("text.exact_folded")["value"] > 0.5
    for name, why in {
        "architecture": "as given",
        "latency": "as given",
        "safety": "no image",
    }.items():
        assert why in audit.section(name).why and audit.section(name).state == "not tested"
    assert audit.prompts.prompt[0].strip() == PROMPTS.prompt[0] and audit.size == 256


def test_settings_other_images_and_other_prompts_are_refused(folder, tmp_path):
    given, prompts = kn.load(folder), list(PROMPTS.prompt[:2])
    with pytest.raises(ValueError, match="are as given: leave out steps"):
        kn.generate(given, prompts, steps=4)
    with pytest.raises(ValueError, match="holds no image of these prompts, such as 'a dragon'"):
        kn.generate(given, "a dragon")
    kn.generate(given, prompts, out=tmp_path / "run")
    rendered_text_image("other", 256).save(folder / "0-0.png")
    with pytest.raises(ValueError, match="holds a run with other settings: revision was"):
        kn.generate(kn.load(folder), prompts, out=tmp_path / "run")


@pytest.mark.parametrize(
    "line, sentence",
    [
        ({"file_name": "none.png", "prompt": "a"}, "line 2, none.png: .*No such file"),
        ({"file_name": "text.png", "prompt": "a"}, "line 2, text.png: cannot identify image"),
        ({"file_name": "../out.png", "prompt": "a"}, "line 2, ../out.png: .*outside the folder"),
        ({"file_name": "good.png", "prompt": " "}, "line 2, good.png: no prompt"),
        ({"file_name": "good.png"}, "needs the columns file_name and prompt"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, sentence):
    inside = tmp_path / "images"
    inside.mkdir()
    Image.new("RGB", (8, 8)).save(inside / "good.png")
    shutil.copy(inside / "good.png", tmp_path / "out.png")
    (inside / "text.png").write_text("no picture")
    (inside / "metadata.jsonl").write_text(json.dumps(line))
    with pytest.raises(ValueError, match=sentence):
        kn.load(inside)
