"""A headless Chromium that reaches nothing but this machine, and what is asked of its pages."""

import json
import shutil
from pathlib import Path

import pytest

AXE = Path(__file__).parent / "data" / "axe-core" / "axe.min.js"
SERIOUS = """
const done = arguments[1];
axe.run(arguments[0] || document, {resultTypes: ["violations"]}).then(found => done(found.violations
  .filter(v => ["serious", "critical"].includes(v.impact))
  .map(v => v.id + ": " + v.nodes.slice(0, 3).map(n => n.target.join(" ")).join(", "))));
"""


def chromium():
    """Start a Chromium that logs what it asks for; skip the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("Chromium and its driver are not installed (Debian: chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    hosts = "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"
    for argument in ("--headless=new", "--no-sandbox", f"--host-resolver-rules={hosts}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    found.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})  # for axe, not for the page
    found.set_script_timeout(120)
    return found


def resize(browser, width, height=900):
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def asked(browser):
    """URLs that the browser has asked for since the last call."""
    events = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [p["request"]["url"] for p in sent]


def complaints(browser):
    """What the console has said since the last call that is severe."""
    return [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def serious(browser, within=None):
    """What axe-core finds that is serious, in the page or in the context that axe is given."""
    browser.execute_script(AXE.read_text("utf-8"))
    return browser.execute_async_script(SERIOUS, within)


def stands_alone(browser, page):
    """Open a page at a phone's and a desk's width: nothing serious, nothing asked of a network."""
    asked(browser)
    for width in (390, 1280):
        resize(browser, width)
        browser.get(page.as_uri())
        assert serious(browser) == []
    assert {u for u in asked(browser) if not u.startswith("data:")} == {page.as_uri()}
    assert complaints(browser) == []
