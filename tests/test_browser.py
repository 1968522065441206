"""The notebooks' pages opened from a file in headless Chromium, with the network cut."""

import json
import shutil
from pathlib import Path

import pytest

from koala_nb import reports

pytestmark = pytest.mark.browser
AXE = Path(__file__).parent / "data" / "axe-core" / "axe.min.js"
NOTEBOOKS = sorted(reports.NOTEBOOKS.glob("*.ipynb"))
THREE = ("01", "09", "11")
SERIOUS = """
const done = arguments[0];
axe.run({resultTypes: ["violations"]}).then(found => done(found.violations
  .filter(v => ["serious", "critical"].includes(v.impact))
  .map(v => v.id + ": " + v.nodes.slice(0, 3).map(n => n.target.join(" ")).join(", "))));
"""
BLANK = """
return [...document.querySelectorAll(".jp-OutputArea-output, .output")]
  .filter(e => !e.innerText.trim() && !e.querySelector("img, svg, math"))
  .map(e => e.outerHTML.slice(0, 200));
"""
PICTURES = """
return [...document.images].filter(i => !(i.complete && i.naturalWidth && i.alt))
  .map(i => i.outerHTML.slice(0, 100));
"""
TOO_WIDE = "return document.documentElement.scrollWidth - document.documentElement.clientWidth;"


@pytest.fixture(scope="module")
def browser():
    """A Chromium that no host name resolves for, and that logs what it asks for."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("Chromium and its driver are not installed (Debian: chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    found.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})  # for axe, not for the page
    yield found
    found.quit()


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def page(request, tmp_path):
    """The page of a committed notebook; three of them unless `--browser=all`."""
    path = request.param
    if request.config.getoption("--browser") != "all" and path.name[:2] not in THREE:
        pytest.skip("not one of the three: run `make check-browser`")
    file = tmp_path / "index.html"
    file.write_text(reports.html(path), encoding="utf-8")
    return file


def show(browser, page, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.as_uri())


def asked(browser):
    """URLs that the browser has asked for since the last call."""
    events = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [p["request"]["url"] for p in sent]


def test_a_page_stands_alone_and_is_accessible(browser, page):
    asked(browser)
    for width in (1280, 390):
        show(browser, page, width)
        urls = [url for url in asked(browser) if not url.startswith("data:")]
        assert urls == [page.as_uri()]
        assert browser.execute_script("return document.title")
        assert browser.execute_script(BLANK) == []
        assert browser.execute_script(PICTURES) == []
        assert browser.execute_script(TOO_WIDE) <= 0
        browser.execute_script(AXE.read_text("utf-8"))
        assert browser.execute_async_script(SERIOUS) == []
    said = [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert said == []


def test_what_a_browser_would_find(browser, tmp_path):
    file = tmp_path / "bad.html"
    file.write_text(
        '<title>Bad</title><div class="output"></div><img src="data:,"><p style="width:2000px">'
        '<img src="https://example.org/a.png" alt="a">'
    )
    asked(browser)
    show(browser, file, 390)
    assert any("example.org" in url for url in asked(browser))
    assert len(browser.execute_script(BLANK)) == 1
    assert len(browser.execute_script(PICTURES)) == 2
    assert browser.execute_script(TOO_WIDE) > 0
    browser.execute_script(AXE.read_text("utf-8"))
    assert any(found.startswith("image-alt") for found in browser.execute_async_script(SERIOUS))
