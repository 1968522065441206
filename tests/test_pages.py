"""Pages that stand alone, of knobs, of blocks, of a student: what they hold, and their use."""

import base64
import io
import json
import re

import numpy as np
import pytest
from browsing import stands_alone
from PIL import Image

import koala_nb as kn
from koala_nb.core import card
from koala_nb.core.catalog import data_folder
from koala_nb.display.page import webp
from koala_nb.generation import page as knobs
from koala_nb.models import page as blocks

NASTY = '</script><img src="https://example.org/x">'
CHOICE = {"seeds": [3, 5], "steps": [1, 2, 3], "guidances": [1.0, 4.0], "size": 64}
WHOLE = Image.new("RGB", (64, 64), "navy")
WITHOUT = {
    "down_blocks.1.attentions.0": Image.new("RGB", (64, 64), "red"),
    "up_blocks.2": Image.new("RGB", (64, 64), "green"),
}
PROMPTS = ["a koala", NASTY]
WIDTHS = "return [...document.images].map(i => i.naturalWidth)"


def images(red):
    return [Image.new("RGB", (64, 64), (red, blue, 0)) for blue in (0, 200)]


STUDENT = {5: images(60), 0: images(0), 12: images(120)}
PICTURES = {"Student": STUDENT, "Teacher": dict.fromkeys(STUDENT, images(250))}


@pytest.fixture(scope="module")
def knobs_page(loaded, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "knobs.html"
    return knobs.write_page(path, loaded, NASTY, **CHOICE)


@pytest.fixture(scope="module")
def unet_page(loaded, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "unet.html"
    maps = {"up_blocks.2.resnets.1": WHOLE}
    return blocks.write_page(path, loaded.unet, WHOLE, WITHOUT, NASTY, "Careful", maps)


@pytest.fixture(scope="module")
def student_page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "student.html"
    path.write_bytes(kn.slider_page(NASTY, "Step", PROMPTS, PICTURES, {12: "L 0.1"}, "Careful"))
    return path


@pytest.fixture(scope="module")
def speed_page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "speed.html"
    return kn.speed.write_page(path, {"SDXL-Base-1.0": {"weights": 6.9, "unet": 0.3, "vae": 3.4}})


def data_of(path):
    text = path.read_text("utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])


def assert_alike(stored, drawn):
    kept = Image.open(io.BytesIO(base64.b64decode(stored)))
    assert kept.size == drawn.size
    small = [np.asarray(i.convert("RGB").resize((8, 8)), dtype=int) for i in (kept, drawn)]
    assert abs(small[0] - small[1]).max() < 24  # WebP is not exact


@pytest.mark.parametrize("name", ["knobs_page", "unet_page", "student_page", "speed_page"])
def test_no_text_breaks_out_of_a_page_and_its_banner_is_there(request, name):
    text = request.getfixturevalue(name).read_text("utf-8")
    assert text.count("<script") == text.count("</script>") == 2 and "<img src" not in text
    assert ("Careful." in text) == (name in ("unet_page", "student_page"))


def test_knobs_show_what_generate_draws(knobs_page, loaded):
    data = data_of(knobs_page)
    assert (data["steps"], data["guidance"], data["seed"]) == ([1, 2, 3], [1, 4], [3, 5])
    assert np.shape(data["pictures"]) == (3, 2, 2)
    settings = {"steps": 2, "guidance": 4.0, "height": 64, "width": 64, "progress": False}
    (drawn,) = kn.generate(loaded, NASTY, [5], **settings).images
    assert_alike(data["pictures"][1][1][1], drawn)


def test_the_stored_page_was_drawn_by_the_shipped_weights(pipe):
    data = data_of(data_folder() / "results" / "knobs-nano-koala.html")
    assert (data["steps"], data["guidance"]) == (list(knobs.STEPS), list(knobs.GUIDANCES))
    for k, steps in enumerate(data["steps"][:3]):
        how = {"steps": steps, "guidance": 3.5, "progress": False}
        (drawn,) = kn.generate(pipe, "a koala", [1], **how).images
        assert_alike(data["pictures"][k][2][1], drawn)


def test_a_unets_page_holds_every_block_once(unet_page, loaded):
    data = data_of(unet_page)
    parts = {part["label"]: part for part in data["parts"]}
    kinds = ("ResnetBlock2D", "Transformer2DModel", "Downsample2D", "Upsample2D")
    named = {n: m for n, m in loaded.unet.named_modules() if type(m).__name__ in kinds}
    for name, module in named.items():
        assert parts[name]["parameters"] == sum(p.numel() for p in module.parameters())
    skips = {f"skip connections into up_blocks.{i}" for i in range(3)}
    assert parts.keys() == named.keys() | {"conv_in", "conv_out"} | skips
    assert [len(parts[name]["boxes"]) for name in sorted(skips)] == [2, 2, 2]
    assert sum("picture" in part for part in data["parts"]) == 2
    assert [label for label, part in parts.items() if "map" in part] == ["up_blocks.2.resnets.1"]


def test_a_students_page_holds_every_picture_in_the_order_of_steps(student_page):
    data = data_of(student_page)
    assert data["values"] == [0, 5, 12] and data["notes"] == ["", "", "L 0.1"]
    assert data["files"] == [webp(image) for red in (0, 60, 120, 250) for image in images(red)]
    assert data["shown"] == {"Student": [[0, 1], [2, 3], [4, 5]], "Teacher": [[6, 7]] * 3}


def test_a_page_of_speed_holds_what_is_published(speed_page):
    data = data_of(speed_page)
    assert [gpu["gb"] for gpu in data["gpus"]] == [8, 11, 24]
    systems = {one["name"]: one for one in data["systems"]}
    published = {n: [p and tuple(p) for p in one["published"]] for n, one in systems.items()}
    assert published == {name: list(pairs) for name, pairs in card.LATENCY_FIGURE.items()}
    assert {n for n, one in systems.items() if one["predicted"]} == {"SDXL-Base-1.0"}


def test_what_does_not_fit_is_refused(loaded, tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    with pytest.raises(ValueError, match="no block 'up_blocks.9': give names"):
        blocks.write_page(path, loaded.unet, WHOLE, {"up_blocks.9": WHOLE}, "")
    with pytest.raises(ValueError, match="'nano-koala' has no published times: give a title"):
        kn.speed.write_page(path, {"nano-koala": {}})
    for wrong in ({}, {"A": {0: images(0)[:1]}}, {"A": STUDENT, "B": {0: images(0)}}):
        with pytest.raises(ValueError, match="one image per choice for each name and value"):
            kn.slider_page("", "Step", PROMPTS, wrong)
    monkeypatch.setattr("koala_nb.display.page.LARGEST_PAGE", 1000)
    for write, advice in (
        (lambda: knobs.write_page(path, loaded, "a koala", [0], [1], [1.0], 64), "values"),
        (lambda: blocks.write_page(path, loaded.unet, WHOLE, {}, ""), "pictures"),
        (lambda: kn.slider_page("", "Step", PROMPTS, PICTURES), "values"),
    ):
        with pytest.raises(ValueError, match=rf"would take [\d,]+ bytes: give fewer {advice}"):
            write()
    assert not list(tmp_path.iterdir())


# --- in a browser ---------------------------------------------------------------------------------


def status(browser):
    return browser.find_element("id", "status").text


@pytest.mark.browser
def test_knobs_are_used_by_keyboard_and_by_pointing(knobs_page, browser):
    from selenium.webdriver.common.keys import Keys

    def source():
        return browser.find_element("id", "picture").get_attribute("src")

    stands_alone(browser, knobs_page)
    assert status(browser) == "Shown: 3 steps, guidance 4, seed 3."
    sources = {source()}
    for knob, key in (("steps", Keys.ARROW_LEFT), ("guidance", Keys.HOME), ("seed", Keys.END)):
        browser.find_element("id", knob).send_keys(key)
        sources.add(source())
    assert status(browser) == "Shown: 2 steps, guidance 1, seed 5." and len(sources) == 4
    small = browser.find_elements("css selector", "td img")
    assert len(small) == 6
    small[0].click()
    assert status(browser) == "Shown: 1 step, guidance 1, seed 5."
    assert small[0].get_attribute("src") == source()
    assert set(browser.execute_script(WIDTHS)) == {64}


@pytest.mark.browser
def test_a_block_is_chosen_by_keyboard_and_by_pointing(unet_page, browser):
    from selenium.webdriver.common.keys import Keys

    stands_alone(browser, unet_page)
    picture = browser.find_element("id", "without")
    assert status(browser).startswith("down_blocks.1.attentions.0:") and picture.is_displayed()
    block = browser.find_element("css selector", '[aria-label="up_blocks.0.resnets.0"]')
    block.send_keys(Keys.ENTER)
    assert status(browser).startswith("up_blocks.0.resnets.0:")
    assert "% of the U-Net" in status(browser)
    names = browser.find_elements("css selector", "#unet text")
    named = [name.get_attribute("textContent") for name in names]
    beside = dict(zip(named[::2], named[1::2]))
    assert beside["down_blocks.0"] == beside["up_blocks.2"] == "8 x 8 cells"
    assert beside["up_blocks.0"] == "2 x 2 cells" and len(beside) == 6
    assert block.get_attribute("aria-pressed") == "true" and not picture.is_displayed()
    label = '[aria-label="skip connections into up_blocks.2"] rect'
    browser.find_element("css selector", label).click()
    assert "no parameters of their own" in status(browser) and picture.is_displayed()


@pytest.mark.browser
def test_a_students_page_is_used_by_keyboard_and_plays(student_page, browser):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select, WebDriverWait

    stands_alone(browser, student_page)
    assert status(browser) == "Shown: step 12, a koala. L 0.1"
    browser.find_element("id", "value").send_keys(Keys.ARROW_LEFT)
    assert status(browser) == "Shown: step 5, a koala."
    Select(browser.find_element("id", "choice")).select_by_index(1)
    assert status(browser) == f"Shown: step 5, {NASTY}."
    play, sources = browser.find_element("id", "play"), set()
    play.send_keys(Keys.SPACE)
    assert play.text == "Stop"

    def ended(_):
        sources.add(browser.find_element("tag name", "img").get_attribute("src"))
        return play.text == "Play"

    WebDriverWait(browser, 30, poll_frequency=0.05).until(ended)
    assert status(browser).startswith("Shown: step 12") and len(sources) == 3
    assert set(browser.execute_script(WIDTHS)) == {64}


@pytest.mark.browser
def test_a_page_of_speed_says_hours_or_that_memory_runs_out(speed_page, browser):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    stands_alone(browser, speed_page)
    hours = 10_000 * card.LATENCY_FIGURE["KOALA-Lightning-700M"][0][0] / 3600
    assert f"10,000 images in {hours:.2f} hours" in status(browser)
    browser.find_element("id", "gpu").send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    images = browser.find_element("id", "images")
    images.send_keys(Keys.CONTROL, "a", Keys.NULL, "1")
    assert "on an RTX 4090 24GB: 1 image in 0.66 seconds" in status(browser)
    images.send_keys(Keys.BACKSPACE)
    assert status(browser).startswith("Give a whole number of images")
    Select(browser.find_element("id", "gpu")).select_by_index(0)
    images.send_keys("7")
    rows = browser.find_elements("css selector", "tbody tr")
    rows[list(card.LATENCY_FIGURE).index("SDXL-Base-1.0")].click()
    assert "out of memory, as published. Predicted: 10.3 GB of 8." in status(browser)
    assert len(browser.find_elements("css selector", ".bar")) == 3
