"""The collection as a static site: `make site`, then open docs/_build/html/index.html."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

import api_pages  # noqa: E402

import koala_nb  # noqa: E402

project = "KOALA Notebooks"
author = "KOALA Notebooks"
project_copyright = "Apache-2.0; emoji drawings under their own licences"
release = version = koala_nb.__version__
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "mathml", "plain_docstrings"]
exclude_patterns = ["_build", "README.md", "slurm"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # the committed outputs are what is shown
nb_mime_priority_overrides = [("html", "image/png", 5)]  # the text beside a picture is its alt
html_math_renderer = "mathml"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_mock_imports: list[str] = []
nitpicky = False

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
}

# What the site shows lies outside docs/: copied to the same relative places, so that links hold.
COPIED = ("notebooks/*.ipynb", "notebooks/*.md", "data/README.md", "data/*/README.md")
COPIED += ("data/models/*/README.md", "data/results/first-look-*.png", "CITATION.cff")


def collect(app: object) -> None:
    """Copy what COPIED names and write a page a module; what is newer than its copy is copied."""
    for pattern in COPIED:
        for source in ROOT.glob(pattern):
            target = HERE / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
                shutil.copy2(source, target)
    api_pages.write(ROOT / "koala_nb", HERE / "api")


def setup(app) -> None:  # noqa: ANN001
    """Collect before Sphinx looks for its sources."""
    app.connect("builder-inited", collect)
