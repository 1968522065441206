"""The notebooks as a reader has them: in JupyterLab, in a browser, driven by keyboard alone."""

import shutil

import nbformat
import pytest
from browsing import asked, complaints, resize, serious
from lab import Lab, server

from koala_nb.report import run as reports

pytestmark = pytest.mark.browser
NOTEBOOKS = sorted(reports.NOTEBOOKS.glob("*.ipynb"))
THREE = ("01", "02", "03")
# JupyterLab gives a figure no alternative text, though the notebook holds one: the pages show it.
OUTPUTS = {"include": [[".jp-OutputArea"]], "exclude": [[".jp-RenderedImage > img"]]}
LABELLING = """
from pathlib import Path

import pandas as pd
from PIL import Image
from koala_nb import widgets
from koala_nb.generation.run_folder import Run
from koala_nb.probes import labels

grey = [Image.new("RGB", (8, 8), (40 * k,) * 3) for k in range(4)]
rows = [{"file": f"{k}.png", "prompt_index": k, "prompt": "a judge", "seed": k, "guidance": 1.0}
        for k in range(4)]
sample = labels.sample([Run(grey, pd.DataFrame(rows))], 4, seed=0)
widgets.Labeller(sample, Path("labels.csv"), {"presentation": labels.PRESENTATIONS})
"""
UNNAMED = """
import ipywidgets
from IPython.display import HTML, display

display(HTML('<p style="color:#ddd;background:#fff">pale</p>'))
display(ipywidgets.Text())
ipywidgets.HTML("<input>")
"""

SLOW = """
import time
import ipywidgets

picture, text = ipywidgets.HTML(), ipywidgets.HTML("old")
button = ipywidgets.Button(description="Go")
def clicked(_):
    picture.value = '<img alt="new" src="data:,">'
    time.sleep(0.5)
    text.value = "new"
button.on_click(clicked)
ipywidgets.VBox([picture, text, button])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the notebooks, without outputs: what is seen is of this run."""
    copy = tmp_path_factory.mktemp("lab") / "notebooks"
    shutil.copytree(reports.NOTEBOOKS, copy, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for path in copy.glob("*.ipynb"):
        book = nbformat.read(path, 4)
        for cell in book.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(book, path)
    return copy


@pytest.fixture(scope="module")
def lab(browser, folder):
    with server(folder, folder.parent) as address:
        yield Lab(browser, address)


@pytest.fixture
def opened(lab, folder):
    """Open a notebook by name, of the cells that are given or as it stands, and run all of it."""

    def run(name, *cells):
        if cells:
            new = nbformat.v4
            book = new.new_notebook(cells=[new.new_code_cell(cell) for cell in cells])
            book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
            nbformat.write(book, folder / name)
        asked(lab.browser), complaints(lab.browser)
        lab.open(name)
        lab.run_all()
        return lab

    return run


def check(lab):
    """A notebook has run as a whole, asked nobody outside, and its outputs are accessible."""
    assert lab.failed() == []
    counts = lab.counts()
    assert all(c in (str(k + 1), "folded") for k, c in enumerate(counts)), counts
    assert counts[-1] == str(len(counts))
    assert lab.dialogs() == [] and lab.unnamed() == []
    own = (lab.address, lab.address.replace("http", "ws"), "data:", "blob:", "about:")
    assert [url for url in asked(lab.browser) if not url.startswith(own)] == []
    assert complaints(lab.browser) == []
    lab.unroll()
    assert serious(lab.browser, OUTPUTS) == []
    resize(lab.browser, 1280)


def drive_prompt(lab):
    """Every setting by keyboard, and an image drawn after each, without the focus getting lost."""
    from selenium.webdriver import Keys

    button = "Draw the image"
    names = ("Prompt", "Seed", "Steps", "Guidance", button)
    lab.start_at("Prompt")
    lab.press("a", held=[Keys.CONTROL])
    lab.press("a blue car on a white background")
    for name in names[1:]:
        lab.tab_to(name)
    lab.changes(Keys.SPACE, told="Drawn: a blue car on a white background, seed 0")
    edits = [("Seed", Keys.ARROW_UP, "seed 1,"), ("Steps", "3", " 3 steps")]
    for name, key, told in [*edits, ("Guidance", "2", "guidance 2")]:
        assert lab.focus() == button, "drawing takes the focus from the button"
        back = len(names) - 1 - names.index(name)
        lab.press(Keys.TAB * back, held=[Keys.SHIFT])
        assert lab.focus() == name
        lab.press(key)  # a digit takes the place of the number, which Tab has selected
        lab.press(Keys.TAB * back)
        lab.changes(Keys.ENTER, told=told)


def drive_choice(lab, *names):
    """Each drop-down list by End: what is shown follows, and the focus stays.

    Not by arrow keys: outside of text boxes JupyterLab moves between cells by them.
    """
    from selenium.webdriver import Keys

    lab.start_at(names[0])
    for name in names:
        assert lab.focus() == name
        told = lab.changes(Keys.END)
        assert lab.focus() == name and "No table" not in told and "No map" not in told
        lab.press(Keys.TAB)


def drive_unet(lab):
    drive_choice(lab, "System", "Stage", "Block")


def drive_attention(lab):
    lab.start_at("Image")  # one image: nothing to choose, and the next lists can be reached
    lab.tab_to("Word")
    drive_choice(lab, "Word", "Layers", "Step")


def drive_labels(lab):
    """Answers by key and by button, and the last one taken back, in one go."""
    from selenium.webdriver import Keys

    lab.start_at("Key")
    lab.changes("1", told="Image 2 of")
    lab.changes("9", told="means nothing here")
    lab.changes("2", told="Image 3 of")
    assert lab.focus() == "Key"
    lab.changes("z", told="Took the last answer back. Image 2 of")
    lab.tab_to("1 woman")
    lab.changes(Keys.SPACE, told="Image 3 of")
    assert lab.focus() == "1 woman", "the answer takes the focus from the button"
    lab.tab_to("2 man")
    lab.changes(Keys.ENTER, told="presentation: man. Image 4 of")
    lab.tab_to("u unsure")
    lab.tab_to("z undo")
    lab.changes(Keys.SPACE, told="Image 3 of")


WIDGETS = {"01": drive_prompt, "02": drive_unet, "03": drive_attention, "09": drive_labels}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_widget_moves_by_keyboard(opened, path, request):
    number = path.name[:2]
    if request.config.getoption("--browser") != "all" and number not in THREE:
        pytest.skip("not one of the three: run `make test-all`")
    lab = opened(path.name)
    check(lab)
    explorers = lab.run("return document.querySelectorAll('.jp-OutputArea .widget-vbox').length")
    assert explorers == (number in WIDGETS), "a widget that no test drives, or one that is missing"
    if number in WIDGETS:
        WIDGETS[number](lab)
        check(lab)


def test_after_a_restart_of_the_kernel_all_is_as_before(opened):
    lab = opened("02_inspect_the_unet.ipynb")
    before = lab.outputs()
    assert len(before) > 5
    lab.restart_and_run_all()
    assert lab.outputs() == before
    check(lab)  # cells count from 1 again
    drive_unet(lab)  # the widget is that of the new kernel


def test_the_labelling_widget_moves_by_keyboard(opened, folder):
    lab = opened("labelling.ipynb", LABELLING)
    drive_labels(lab)
    check(lab)
    assert (folder / "labels.csv").read_text().count("\n") == 3  # the heading and two answers


def test_what_these_checks_would_find(opened):
    lab = opened("raises.ipynb", "1 + 1", "raise RuntimeError('no koala')", "3")
    assert lab.counts() == ["1", "2", ""]
    assert len(lab.failed()) == 1 and "no koala" in lab.failed()[0]
    lab = opened("unnamed.ipynb", UNNAMED)
    assert lab.failed() == [] and lab.counts() == ["1"]
    assert len(lab.unnamed()) == 2
    lab.unroll()
    found = {line.partition(":")[0] for line in serious(lab.browser, OUTPUTS)}
    assert {"label", "color-contrast"} <= found
    lab.run("console.error('no koala'); fetch('http://example.org/a').catch(() => 0)")
    assert any("no koala" in said for said in complaints(lab.browser))
    assert "http://example.org/a" in asked(lab.browser)


def test_a_changed_widget_is_read_once_it_rests(opened):
    lab = opened("slow.ipynb", SLOW)
    lab.start_at("Go")
    assert "new" in lab.changes("\n"), "read between the picture and its text"
