"""The built site: no dead link inside, nothing asked of a network, every picture described."""

import subprocess
import sys
from urllib.parse import unquote

import pytest

from koala_nb.report import run

pytest.importorskip("myst_nb")
pytest.importorskip("sphinx_book_theme")
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    from bs4 import BeautifulSoup

    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    command += ["-d", out / "trees", run.ROOT / "docs", out / "html"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = (out / "html").rglob("*.html")
    return {page: BeautifulSoup(page.read_text("utf-8"), "html.parser") for page in pages}


def test_links_inside_lead_somewhere(site):
    dead = set()
    for page, soup in site.items():
        for link in soup("a", href=True):
            address, _, anchor = unquote(link["href"]).partition("#")
            if ":" in address or link["href"] == "#":
                continue
            target = (page.parent / address).resolve() if address else page
            known = site.get(target)
            if not target.exists() or anchor and known and not known.find(id=anchor):
                dead.add((page.name, link["href"]))
    assert not dead


def test_no_page_asks_a_network_for_anything(site):
    asked = [
        tag.get("src") or tag.get("href")
        for soup in site.values()
        for tag in (*soup(["script", "img", "iframe"], src=True), *soup("link", rel="stylesheet"))
    ]
    assert asked and not [address for address in asked if address.startswith(("http", "//"))]


def test_every_picture_is_there(site):
    sources = [(page.parent, image["src"]) for page, soup in site.items() for image in soup("img")]
    shown = {place / source for place, source in sources if not source.startswith("data:")}
    assert shown and not [path for path in shown if not path.is_file()]


def test_every_picture_of_a_notebook_is_described(site):
    pictures = [i for page, s in site.items() if page.parent.name == "notebooks" for i in s("img")]
    drawn = [picture for picture in pictures if picture["src"].startswith("data:")]
    assert drawn and all(len(picture.get("alt", "")) > 20 for picture in drawn)
