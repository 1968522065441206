"""The page of a U-Net's blocks: what it holds, what it refuses, and how it is used."""

import json
import re

import pytest
from browsing import stands_alone
from PIL import Image

from koala_nb.models import page as blocks

WHOLE = Image.new("RGB", (64, 64), "navy")
WITHOUT = {
    "down_blocks.1.attentions.0": Image.new("RGB", (64, 64), "red"),
    "up_blocks.2": Image.new("RGB", (64, 64), "green"),
}
NASTY = '</script><img src="https://example.org/x">'


@pytest.fixture(scope="module")
def page(loaded, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "unet.html"
    return blocks.write_page(path, loaded.unet, WHOLE, WITHOUT, NASTY, "Careful")


def test_the_page_holds_every_block_once(page, loaded):
    text = page.read_text("utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    parts = {part["label"]: part for part in data["parts"]}
    assert "Careful." in text and text.count("<script") == text.count("</script>") == 2
    kinds = ("ResnetBlock2D", "Transformer2DModel", "Downsample2D", "Upsample2D")
    named = {n: m for n, m in loaded.unet.named_modules() if type(m).__name__ in kinds}
    for name, module in named.items():
        assert parts[name]["parameters"] == sum(p.numel() for p in module.parameters())
    skips = {f"skip connections into up_blocks.{i}" for i in range(3)}
    assert parts.keys() == named.keys() | {"conv_in", "conv_out"} | skips
    assert [len(parts[name]["boxes"]) for name in sorted(skips)] == [2, 2, 2]
    assert sum("picture" in part for part in data["parts"]) == 2


def test_what_is_no_block_is_refused(loaded, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no block 'up_blocks.9': give names"):
        blocks.write_page(tmp_path / "p.html", loaded.unet, WHOLE, {"up_blocks.9": WHOLE}, "")
    monkeypatch.setattr("koala_nb.display.page.LARGEST_PAGE", 1000)
    with pytest.raises(ValueError, match=r"would take [\d,]+ bytes: give fewer pictures"):
        blocks.write_page(tmp_path / "p.html", loaded.unet, WHOLE, {}, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.browser
def test_a_block_is_chosen_by_keyboard_and_by_pointing(page, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    stands_alone(browser, page)

    def status():
        return browser.find_element(By.ID, "status").text

    picture = browser.find_element(By.ID, "without")
    assert status().startswith("down_blocks.1.attentions.0:") and picture.is_displayed()
    block = browser.find_element(By.CSS_SELECTOR, '[aria-label="up_blocks.0.resnets.0"]')
    block.send_keys(Keys.ENTER)
    assert status().startswith("up_blocks.0.resnets.0:") and "% of the U-Net" in status()
    assert block.get_attribute("aria-pressed") == "true" and not picture.is_displayed()
    label = '[aria-label="skip connections into up_blocks.2"] rect'
    browser.find_element(By.CSS_SELECTOR, label).click()
    assert "no parameters of their own" in status() and picture.is_displayed()
