"""The page of a student beside its teacher: its pictures, and how it is used."""

import json
import re

import pytest
from browsing import stands_alone
from PIL import Image

import koala_nb as kn
from koala_nb.display.page import webp

NASTY = '</script><img src="https://example.org/x">'
PROMPTS = ["a koala", NASTY]


def images(red):
    return [Image.new("RGB", (64, 64), (red, blue, 0)) for blue in (0, 200)]


STUDENT = {5: images(60), 0: images(0), 12: images(120)}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "student.html"
    losses = {5: "L_task 0.5", 12: "L_task 0.1"}
    return kn.distillation.write_page(path, PROMPTS, STUDENT, images(250), losses, "Careful")


def test_the_page_holds_every_picture_in_the_order_of_steps(page):
    text = page.read_text("utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert data["steps"] == [0, 5, 12] and data["losses"] == ["", "L_task 0.5", "L_task 0.1"]
    assert data["student"] == [[webp(image) for image in STUDENT[step]] for step in (0, 5, 12)]
    assert data["teacher"] == [webp(image) for image in images(250)] and "Careful." in text
    assert text.count("<script") == text.count("</script>") == 2 and "<img src" not in text


def test_what_does_not_fit_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    for student, teacher in ((STUDENT, images(0)[:1]), ({0: images(0)[:1]}, images(0)), ({}, [])):
        with pytest.raises(ValueError, match="one image per prompt for the teacher and for each"):
            kn.distillation.write_page(path, PROMPTS, student, teacher)
    monkeypatch.setattr("koala_nb.display.page.LARGEST_PAGE", 1000)
    with pytest.raises(ValueError, match=r"would take [\d,]+ bytes: give fewer steps"):
        kn.distillation.write_page(path, PROMPTS, STUDENT, images(0))
    assert not list(tmp_path.iterdir())


@pytest.mark.browser
def test_the_page_is_used_by_keyboard_and_plays(page, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select, WebDriverWait

    def shown():
        return browser.find_element(By.ID, "status").text

    stands_alone(browser, page)
    assert shown() == "Shown: step 12, a koala. L_task 0.1"
    browser.find_element(By.ID, "step").send_keys(Keys.ARROW_LEFT)
    assert shown() == "Shown: step 5, a koala. L_task 0.5"
    Select(browser.find_element(By.ID, "prompt")).select_by_index(1)
    assert shown() == f"Shown: step 5, {NASTY}. L_task 0.5"
    play = browser.find_element(By.ID, "play")
    sources = set()
    play.send_keys(Keys.SPACE)
    assert play.text == "Stop"

    def ended(_):
        sources.add(browser.find_element(By.ID, "student").get_attribute("src"))
        return play.text == "Play"

    WebDriverWait(browser, 30, poll_frequency=0.05).until(ended)
    assert shown().startswith("Shown: step 12") and len(sources) == 3
    assert set(browser.execute_script("return [...document.images].map(i => i.naturalWidth)")) == {
        64
    }
