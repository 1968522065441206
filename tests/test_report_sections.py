"""The sections of the audit report, and the page of notebook 11 that they make."""

import json
import re
from types import SimpleNamespace

import pytest
from hub_layout import tiny_pipeline
from PIL import Image

from koala_nb.core import catalog, files
from koala_nb.display import figures
from koala_nb.models import hub
from koala_nb.report import run
from koala_nb.report import sections as section

HOSTILE = '<script>alert(1)</script> & "quotes", $x'


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder whose nano-koala has random weights, with two prompts and a measurement."""
    folder = tmp_path_factory.mktemp("data")
    model = folder / "models" / "nano-koala"
    tiny_pipeline(folder / "scratch").save_pretrained(model, safe_serialization=True)
    (folder / "prompts").mkdir()
    prompts = (
        f'id,prompt\na,a koala on a blue background\nb,"{HOSTILE.replace(chr(34), chr(34) * 2)}"\n'
    )
    (folder / "prompts" / "first_look_emoji-world.csv").write_text(prompts)
    row = {"measure": "background <colour>", "small_must": 0.9, "value": 0.8125, "n": 16}
    row |= {"low": 0.57, "high": 0.93, "instrument": "a reader"}
    measured = {"rows": [row], "revision": hub.from_folder(model, None).revision}
    (folder / "results").mkdir()
    (folder / "results" / "quality-nano-koala.json").write_text(json.dumps(measured))
    return folder


@pytest.fixture(scope="module")
def page(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KOALA_NB_DATA", str(data))
        out = tmp_path_factory.mktemp("out")
        return run.run_report("11", seeds=2, steps=2, size=64, out=out)


def test_the_embedded_model_carries_its_banner(page):
    text = page.read_text("utf-8")
    assert text.index("<h1>") < text.index(files.EMBEDDED_BANNER) < text.index("<h2")
    assert json.loads((page.parent / "results.json").read_text())["banner"]


def test_results_hold_what_a_program_wants(page):
    results = json.loads((page.parent / "results.json").read_text())
    assert results["model"]["system"] == "nano-koala"
    assert results["model"]["revision"].startswith("weights-")
    assert results["settings"] == {
        "seeds": [0, 1], "steps": 2, "height": 64, "width": 64, "n": 24,
    }  # fmt: skip
    assert results["images"] == 4 and results["seconds_per_image"] > 0
    assert [p["prompt"] for p in results["prompts"]] == ["a koala on a blue background", HOSTILE]
    assert len(list((page.parent / results["files"]["images"]).glob("*.png"))) == 4
    assert len(files.read_lines(page.parent / results["files"]["records"])) == 4


def test_a_hostile_prompt_is_shown_as_text(page):
    text = page.read_text("utf-8")
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 2, "in the table and the figure"
    assert "background &lt;colour&gt;" in text


def test_the_page_is_accessible(page):
    text = page.read_text("utf-8")
    assert '<html lang="en">' in text and text.count("<h1") == 1
    heads = re.findall(r"<th\b[^>]*>", text)
    assert heads and all('scope="' in head for head in heads)
    images = re.findall(r"<img[^>]*>", text)
    assert len(images) >= 2 and all(re.search(r"alt=.[^\"']{20}", image) for image in images)
    assert sum("prompts x 2 seeds" in image for image in images) == 1
    assert len(re.findall("<table", text)) == len(re.findall("<caption", text))


def test_every_link_of_the_list_leads_to_a_heading(page):
    text = page.read_text("utf-8")
    targets = re.findall(r'href="#([^"]+)"', text)
    assert len(targets) >= 15
    assert set(targets) == set(re.findall(r'<h2[^>]* id="([^"]+)"', text))


def test_a_section_that_lacks_its_prompts_says_so_and_the_rest_goes_on(page):
    results = json.loads((page.parent / "results.json").read_text())
    for name in ("text", "composition", "frequency", "demographics", "safety"):
        section = results["sections"][name]
        assert section["state"] == "not tested" and "There is no file" in section["why"]
        assert any(name in line or section["why"][:20] in line for line in results["summary"])
    assert page.read_text("utf-8").count("<strong>Not tested.</strong>") == 5
    assert results["sections"]["latency"]["state"] == "measured"
    assert results["key_figures"]["milliseconds, VAE"]["low"] > 0


def test_the_model_card_lies_beside_the_page(page):
    text = (page.parent / "model_card.md").read_text("utf-8")
    assert files.EMBEDDED_BANNER in text and "## Evaluation" in text
    assert "](" not in text and "http" not in text


def test_the_page_leaves_the_lesson_out(page):
    text = page.read_text("utf-8")
    assert "You will learn" not in text and "will learn" not in text
    assert "colab" not in text.lower() and "import koala_nb" not in text


def test_the_page_holds_the_published_figures_and_the_measured_ones(page):
    text = page.read_text("utf-8")
    assert "782,822,724" in text and "2.88 s, 6.8 GB" in text and "out of memory" in text
    assert "0.812" in text or "0.813" in text
    assert catalog.find("koala-lightning-700m").licence in text


def test_a_model_without_measurement_says_so():
    assert "Not measured" in section.quality_table(fake("koala-lightning-700m")).data


def test_the_quality_of_other_weights_is_not_shown(data, monkeypatch):
    monkeypatch.setenv("KOALA_NB_DATA", str(data))
    assert "Not measured" in section.quality_table(fake("nano-koala")).data


def fake(name):
    from koala_nb.models.load import ModelInfo

    system = catalog.find(name)
    loaded = ModelInfo(system, name, None, None, "float32", "cpu", system.domain, system.recipe)
    return SimpleNamespace(model_info=loaded)


def test_no_banner_for_a_real_model():
    assert "role=" not in section.title(fake("koala-lightning-700m")).data
    assert 'role="note"' in section.title(fake("nano-koala")).data


@pytest.mark.parametrize("domain", ["photographic", "emoji-world"])
def test_the_prompts_that_come_with_the_project(domain):
    frame = section.read_prompts(domain)
    assert len(frame) >= 16 and frame["id"].is_unique and frame["prompt"].is_unique
    assert (frame["factors"] != "").all()


def test_the_cards_prompt_is_the_first():
    card = catalog.find("koala-lightning-700m").recipe.prompt
    assert section.read_prompts("photographic")["prompt"][0] == card


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name\nx\n", "no column `prompt`"),
        ("prompt\n", "the file holds no prompt"),
        ("id,prompt\n1,a\n2,  \n", "line 3 holds no prompt"),
    ],
)
def test_a_bad_prompts_file_is_refused(tmp_path, text, words):
    (file := tmp_path / "own.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        section.read_prompts("photographic", str(file))


def test_an_absent_prompts_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="none.csv"):
        section.read_prompts("photographic", str(tmp_path / "none.csv"))


@pytest.mark.parametrize("bad", [{"seeds": 0}, {"seeds": 1, "steps": -1}, {"seeds": 1, "seed": -2}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match="or more"):
        section.settings(**bad)


def test_zero_means_the_recipes():
    assert section.settings(seeds=2, seed=3) == {"seeds": range(3, 5)}
    assert section.settings(seeds=1, size=64)["width"] == 64


def test_a_grid_needs_an_image_a_cell():
    with pytest.raises(ValueError, match="1 images do not fill 1 rows x 2 columns"):
        figures.image_grid([Image.new("RGB", (8, 8))], ["a"], ["0", "1"])


def test_a_figure_without_alternative_text_is_refused():
    with pytest.raises(ValueError, match="alternative text"):
        figures.show(figures.image_grid([Image.new("RGB", (8, 8))], ["a"], ["0"]), " ")
