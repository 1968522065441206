"""The collection as a static site: `make site`, then open docs/_build/html/index.html."""

from __future__ import annotations

import shutil
import sys
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

import api_pages  # noqa: E402
import nbformat  # noqa: E402

import koala_nb  # noqa: E402

project = "KOALA Notebooks"
author = "KOALA Notebooks"
project_copyright = "Apache-2.0; emoji drawings under their own licences"
release = version = koala_nb.__version__
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "mathml", "plain_docstrings"]
exclude_patterns = ["_build", "README.md", "slurm"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # the committed outputs are what is shown
html_math_renderer = "mathml"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# Pages that an installation may lack; `Reader` and `Scorer`, which several modules define.
suppress_warnings = ["toc.empty_glob", "ref.python"]

html_theme = "sphinx_book_theme"
html_title = "KOALA Notebooks"
html_logo = "_static/koala.svg"
html_favicon = "_static/koala.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "navbar_persistent": [],  # else a second search button above the page
}

# What the site shows lies outside docs/: copied to the same relative places, so that links hold.
COPIED = ("notebooks/*.ipynb", "notebooks/*.md", "data/README.md", "data/*/README.md")
COPIED += ("data/*/*/README.md", "data/results/first-look-*.png", "CITATION.cff")
COPIED += ("studies/README.md", "data/world/LICENSE-unicode.txt")
COPIED += ("data/reference/t2i_biasbench/nature.jpg", "data/reference/t2i_biasbench/LICENSE")
COPIED += ("data/reference/centerface/LICENSE",)


def collect(app: object) -> None:
    """Copy what COPIED names and write a page a module; what is newer than its copy is copied."""
    for pattern in COPIED:
        for source in ROOT.glob(pattern):
            target = HERE / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
                shutil.copy2(source, target)
                if source.suffix == ".ipynb":
                    describe_images(target)
    api_pages.write(ROOT / "koala_nb", HERE / "api")


def describe_images(path: Path) -> None:
    """Give the pictures of a copied notebook their alternative texts, which myst-nb leaves out."""
    book = nbformat.read(path, as_version=4)
    for output in (o for cell in book.cells for o in cell.get("outputs", ())):
        for form in ("image/png", "image/jpeg"):
            if picture := output.get("data", {}).pop(form, None):
                alt = escape(output.metadata[form]["alt"])
                source = f"data:{form};base64,{picture.strip()}"
                output.data["text/html"] = f'<img alt="{alt}" src="{source}">'
    nbformat.write(book, path)


def setup(app) -> None:  # noqa: ANN001
    """Collect before Sphinx looks for its sources."""
    app.connect("builder-inited", collect)
