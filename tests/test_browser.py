"""The notebooks' pages opened from a file in headless Chromium, with the network cut."""

import base64
import re

import pytest
from browsing import asked, complaints, resize, serious

import koala_nb as kn
from koala_nb.attention import page as view
from koala_nb.core import files
from koala_nb.report import run
from koala_nb.report import sweep as sweeps
from koala_nb.report.page import render_page

pytestmark = pytest.mark.browser
NOTEBOOKS = sorted(run.NOTEBOOKS.glob("*.ipynb"))
THREE = ("01", "09", "11")
BLANK = """
return [...document.querySelectorAll(".jp-OutputArea-output, .output")]
  .filter(e => !e.innerText.trim() && !e.querySelector("img, svg, math"))
  .map(e => e.outerHTML.slice(0, 200));
"""
PICTURES = """
return [...document.images].filter(i => !(i.complete && i.naturalWidth && i.alt))
  .map(i => i.outerHTML.slice(0, 100));
"""
READ = "return document.body.innerText.replace(/\\s+/g, '');"
SOURCES = """
return new Set([...document.images].filter(i => i.src.startsWith("data:image/png"))
  .map(i => i.src)).size;
"""
CODE = "return document.querySelectorAll('.jp-CodeCell .jp-InputArea').length;"
A4 = {"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": True}
TOO_WIDE = "return document.documentElement.scrollWidth - document.documentElement.clientWidth;"


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def page(request, tmp_path):
    """The page of a committed notebook; three of them unless `--browser=all`."""
    path = request.param
    if request.config.getoption("--browser") != "all" and path.name[:2] not in THREE:
        pytest.skip("not one of the three: run `make test-all`")
    file = tmp_path / "index.html"
    file.write_text(render_page(path), encoding="utf-8")
    return file


def show(browser, page, width):
    resize(browser, width)
    browser.get(page.as_uri())


@pytest.fixture
def sweep(tmp_path):
    """The index page of a sweep: two models compared, a third failed, a fourth waiting."""
    models = ("nano-koala", "nano-sdxl", "sdxl-turbo", "koala-700m")
    states = [{"state": "done", "seconds": 3.0}] * 2
    states += [{"state": "failed", "cell": 4, "error": "RuntimeError: no weights"}]
    folders = [tmp_path / f"tiny-{name}" for name in models]
    for k, folder in enumerate(folders[:2]):
        folder.mkdir()
        rows = [f"sense,bright,{p},{s},{(3 * s + 5 * k) % 7}" for p in "ab" for s in range(3)]
        text = "\n".join(["section,measure,prompt,seed,value", *rows])
        (folder / "key_images.csv").write_text(text)
        figure = {"value": 0.5 + k / 10, "low": 0.25, "high": 0.75, "n": 6}
        files.write_json(folder / "results.json", {"key_figures": {"bright": figure}})
    (tmp_path / "sweep").mkdir()
    parameters = [{"model": name, "steps": 4} for name in models]
    states.append({"state": "waiting"})
    made = sweeps.Sweep(tmp_path / "sweep", tmp_path / "tiny.ipynb", parameters, folders, states)
    return made.write()


def check(browser, page):
    """A page asks for nothing but itself, fits a wide and a narrow window, and is accessible."""
    asked(browser)
    for width in (1280, 390):
        show(browser, page, width)
        urls = [url for url in asked(browser) if not url.startswith("data:")]
        assert urls == [page.as_uri()]
        assert browser.execute_script("return document.title")
        assert browser.execute_script(BLANK) == []
        assert browser.execute_script(PICTURES) == []
        assert browser.execute_script(TOO_WIDE) <= 0
        assert serious(browser) == []
    assert complaints(browser) == []


def check_print(browser, page):
    """On A4 a page has all of its text and pictures, no code, and nothing beyond the margin."""
    show(browser, page, 1280)
    text, pictures = browser.execute_script(READ), browser.execute_script(SOURCES)
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", A4)["data"])
    assert len(re.findall(rb"/Type /Page\b", printed)) > 0
    assert len(re.findall(rb"/Subtype /Image\b", printed)) >= pictures
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        resize(browser, 716)  # A4 less two margins of 1 cm, at 96 pixels an inch
        assert browser.execute_script(READ) == text and len(text) > 500
        assert browser.execute_script(TOO_WIDE) <= 0
        assert browser.execute_script(CODE) == 0
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_page_stands_alone_and_is_accessible(browser, page):
    check(browser, page)


def test_a_page_can_be_printed(browser, page):
    check_print(browser, page)


def test_the_index_of_a_sweep(browser, sweep):
    check(browser, sweep)
    check_print(browser, sweep)


def test_what_a_printer_would_find(browser, tmp_path):
    file = tmp_path / "bad.html"
    hidden = "<style>@media print { .gone { display: none } }</style>"
    said = "<p>said</p>" * 200
    file.write_text(f'<title>Bad</title>{hidden}{said}<p class="gone">lost</p>')
    with pytest.raises(AssertionError):
        check_print(browser, file)
    file.write_text(f'<title>Bad</title>{said}<table><td style="min-width:900px">wide</table>')
    with pytest.raises(AssertionError):
        check_print(browser, file)


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
    assert any(found.startswith("image-alt") for found in serious(browser))


def test_the_page_of_attention(browser, loaded, tmp_path):
    """Words, layers and steps by keyboard; a faint word stays dark beside a strong one."""
    prompt = "a red koala"
    with kn.capture_attention(loaded, keep_axes=("layer", "step")) as attention:
        settings = {"steps": 2, "height": 64, "width": 64, "progress": False}
        (image,) = kn.generate(loaded, prompt, [0], **settings).images
    file = kn.attention.write_page(tmp_path / "attention.html", attention, image, prompt)
    complaints(browser)  # those of an earlier test's page
    check(browser, file)
    status = "return document.getElementById('said').textContent"
    cover = "const c = document.querySelector('.stage canvas'); return [...c.getContext('2d')"
    cover += ".getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 == 3);"
    browser.execute_script("document.querySelectorAll('#words button')[1].focus()")
    browser.switch_to.active_element.send_keys("\ue007")  # Enter
    assert browser.execute_script(status).startswith('"red", all layers, mean over steps')
    shared = browser.execute_script(cover)
    browser.execute_script("document.getElementById('alone').click()")
    own = browser.execute_script(cover)
    assert min(own) < min(shared) and max(shared) <= round(255 * (1 - view.DIM)) + 1
    browser.execute_script("document.getElementById('layers').focus()")
    browser.switch_to.active_element.send_keys("\ue015")  # arrow down
    browser.execute_script("document.getElementById('step').focus()")
    browser.switch_to.active_element.send_keys("\ue014")  # arrow right
    assert browser.execute_script(status).startswith('"red", down_blocks.1, step 1')
    assert browser.execute_script(cover) != own and complaints(browser) == []
