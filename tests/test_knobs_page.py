"""The page of one prompt over steps, guidance and seeds: its pictures, and how it is used."""

import base64
import io
import json
import re

import numpy as np
import pytest
from browsing import stands_alone
from PIL import Image

import koala_nb as kn
from koala_nb.core.catalog import data_folder
from koala_nb.generation import page as knobs

NASTY = '</script><img src="https://example.org/x">'
CHOICE = {"seeds": [3, 5], "steps": [1, 2, 3], "guidances": [1.0, 4.0], "size": 64}


@pytest.fixture(scope="module")
def page(loaded, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "knobs.html"
    return knobs.write_page(path, loaded, NASTY, **CHOICE)


def data_of(path):
    text = path.read_text("utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])


def assert_alike(stored, drawn):
    kept = Image.open(io.BytesIO(base64.b64decode(stored)))
    assert kept.size == drawn.size
    small = [np.asarray(i.convert("RGB").resize((8, 8)), dtype=int) for i in (kept, drawn)]
    assert abs(small[0] - small[1]).max() < 24  # WebP is not exact


def test_the_page_holds_what_generate_draws(page, loaded):
    data, text = data_of(page), page.read_text("utf-8")
    assert (data["steps"], data["guidance"], data["seed"]) == ([1, 2, 3], [1, 4], [3, 5])
    assert np.shape(data["pictures"]) == (3, 2, 2)
    settings = {"steps": 2, "guidance": 4.0, "height": 64, "width": 64, "progress": False}
    (drawn,) = kn.generate(loaded, NASTY, [5], **settings).images
    assert_alike(data["pictures"][1][1][1], drawn)
    assert text.count("<script") == text.count("</script>") == 2 and "<img src" not in text


def test_the_stored_page_was_drawn_by_the_shipped_weights(pipe):
    data = data_of(data_folder() / "results" / "knobs-nano-koala.html")
    assert (data["steps"], data["guidance"]) == (list(knobs.STEPS), list(knobs.GUIDANCES))
    for k, steps in enumerate(data["steps"][:3]):
        (drawn,) = kn.generate(
            pipe, "a koala", [1], steps=steps, guidance=3.5, progress=False
        ).images
        assert_alike(data["pictures"][k][2][1], drawn)


def test_a_page_too_large_is_refused(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr("koala_nb.display.page.LARGEST_PAGE", 1000)
    with pytest.raises(ValueError, match=r"would take [\d,]+ bytes: give fewer values"):
        knobs.write_page(tmp_path / "page.html", loaded, "a koala", [0], [1], [1.0], 64)
    assert not list(tmp_path.iterdir())


@pytest.mark.browser
def test_the_page_is_used_by_keyboard_and_by_pointing(page, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def shown():
        status = browser.find_element(By.ID, "status").text
        return status, browser.find_element(By.ID, "picture").get_attribute("src")

    stands_alone(browser, page)
    assert shown()[0] == "Shown: 3 steps, guidance 4, seed 3."
    sources = {shown()[1]}
    for knob, key in (("steps", Keys.ARROW_LEFT), ("guidance", Keys.HOME), ("seed", Keys.END)):
        browser.find_element(By.ID, knob).send_keys(key)
        sources.add(shown()[1])
    assert shown()[0] == "Shown: 2 steps, guidance 1, seed 5." and len(sources) == 4
    small = browser.find_elements(By.CSS_SELECTOR, "td img")
    assert len(small) == 6
    small[0].click()
    assert shown()[0] == "Shown: 1 step, guidance 1, seed 5."
    assert small[0].get_attribute("src") == shown()[1]
    widths = "return [...document.images].map(i => i.naturalWidth)"
    assert set(browser.execute_script(widths)) == {64}
