"""The page of an executed notebook: it stands alone, without code, script or network."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape, unescape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2.runtime import Context
    from nbconvert import HTMLExporter
    from nbformat import NotebookNode

TEMPLATES = Path(__file__).resolve().parent / "templates"
NOT_IN_REPORT = "not-in-report"  # tag of cells that teach or set up
BANNER = re.compile(r'<p class="banner".*?</p>', re.DOTALL)  # as `figures.banner` writes it
NUMBER = re.compile("([-\u2212+]?[0-9][0-9,]*([.][0-9]+)?( ?(%|s|GB|MB|ms))?|[-\u2212]|unknown|)")
LEFT_OUT = (
    "application/vnd.jupyter.widget-view+json",
    "application/javascript",
    "text/markdown",
    "text/vnd.mermaid",
)
SCRIPT = re.compile("<script.*?(</script[^>]*>|$)", re.DOTALL | re.IGNORECASE)


def show_html(html: str, text: str = "") -> None:
    """Display HTML, with a text for who sees none."""
    from IPython.display import display

    display(
        {"text/html": html, "text/plain": text or unescape(re.sub("<.*?>", " ", html)).strip()},
        raw=True,
    )


def fill_template(name: str, **values: object) -> str:
    """Return one of TEMPLATES with its values filled in; in HTML every text is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    jinja = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return jinja.get_template(name).render(values)


def render_page(notebook: Path) -> str:
    """Render an executed notebook as one page: outputs and prose, no code, nothing from a network.

    Cells tagged `not-in-report` are left out, but not a banner that they show; so are pages in
    frames and outputs of widgets, Markdown, diagrams and scripts, which are dead without a kernel
    or bring markup of their own. Formulas become MathML; figures keep their alternative text.
    """
    import nbformat
    from traitlets.config import Config

    nb = nbformat.read(notebook, as_version=4)
    heads = [c for c in nb.cells if c.source.startswith("# ")]
    title = heads[0].source.splitlines()[0][2:] if heads else notebook.stem
    nb.metadata.setdefault("title", title)
    taught = [c for c in nb.cells if NOT_IN_REPORT in c.metadata.get("tags", ())]
    shown = _html_of(c for c in nb.cells if c not in taught)
    if "<h1" not in shown and all(c in taught for c in heads):
        nb.metadata["heading"] = title
    if not BANNER.search(shown) and (hidden := BANNER.search(_html_of(taught))):
        nb.metadata["banner"] = hidden[0]
    for cell in nb.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if _is_shown(output)]
    nb.metadata.pop("widgets", None)
    remove = {"enabled": True, "remove_cell_tags": [NOT_IN_REPORT, "parameters"]}
    exporter = _exporter()(
        template_name="report",
        extra_template_basedirs=[str(TEMPLATES)],
        exclude_input=True,
        exclude_output_prompt=True,
        config=Config({"TagRemovePreprocessor": remove}),
    )
    page: str = _targets(exporter.from_notebook_node(nb)[0])
    page = page.replace("<pre>", '<pre tabindex="0">')  # else no keyboard scrolls it
    return re.sub(r"<table.*?</table>", lambda table: _wide(table[0]), page, flags=re.DOTALL)


def _is_shown(output: NotebookNode) -> bool:
    """Whether an output belongs on the page; what would need a script is taken from it."""
    data = output.get("data", {})
    if "<iframe " in data.get("text/html", ""):  # a page of its own, with its scripts
        return False
    left_out = [data.pop(kind) for kind in LEFT_OUT if kind in data]
    if "text/html" in data:
        data["text/html"] = SCRIPT.sub("", data["text/html"])
    elif left_out:
        return False
    return bool(output.get("text", "text").strip())


def _targets(page: str) -> str:
    """Give the first heading of a name the id that a link on the page leads to, once each."""
    wanted = set(re.findall(r'href="#([^"]+)"', page))

    def named(heading: re.Match[str]) -> str:
        slug = re.sub(r"<.*?>", "", heading[2]).strip().lower().replace(" ", "-")
        if slug not in wanted:
            return heading[0]
        wanted.remove(slug)
        return f'<{heading[1]} id="{escape(slug)}">{heading[2]}</{heading[1]}>'

    return re.sub(r"<(h[2-4])>(.*?)</\1>", named, page)


def _wide(table: str) -> str:
    """Let a table scroll inside the page, also by keyboard, and align its columns of numbers."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(table, "html.parser")
    rows = [row(("th", "td")) for row in soup("tr")]
    if len({len(row) for row in rows}) == 1:  # no cell spans others
        for column in zip(*rows):
            texts = [cell.get_text(strip=True) for cell in column if cell.name == "td"]
            if any(texts) and all(NUMBER.fullmatch(text) for text in texts):
                for cell in column:
                    cell["class"] = "number"
    name = soup.caption.get_text() if soup.caption else "Table"
    return f'<div class="wide" role="group" tabindex="0" aria-label="{escape(name)}">{soup}</div>'


def _html_of(cells: Iterable[NotebookNode]) -> str:
    outputs = (output for cell in cells for output in cell.get("outputs", ()))
    return "".join(o.get("data", {}).get("text/html", "") for o in outputs)


def mathml(tex: str, display: str = "inline") -> str:
    """Return a formula as MathML, or as readable TeX where it cannot be converted.

    display: "inline" or "block".
    """
    from latex2mathml.converter import convert

    try:
        formula = convert(tex.strip(), display=display)
    except Exception:  # latex2mathml raises errors of many kinds, plain IndexError among them
        formula = "\\"
    # It passes commands that it does not know through as text.
    return f"<code>{escape(tex.strip())}</code>" if "\\" in formula else formula


def _exporter() -> type[HTMLExporter]:
    from jinja2 import pass_context
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        """Markdown with formulas that need no script."""

        def inline_math(self, body: str) -> str:
            return mathml(body)

        def block_math(self, body: str) -> str:
            return f'<p class="formula" tabindex="0">{mathml(body, "block")}</p>'

        def latex_environment(self, name: str, body: str) -> str:
            return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")

    class Exporter(HTMLExporter):
        """nbconvert's, with that renderer; pictures attached to a cell are inlined as there."""

        @pass_context
        def markdown2html(self, context: Context, source: str) -> str:
            attachments = context.get("cell", {}).get("attachments", {})
            renderer = Renderer(escape=False, attachments=attachments, exclude_anchor_links=True)
            return MarkdownWithMath(renderer=renderer).render(source)

    return Exporter
