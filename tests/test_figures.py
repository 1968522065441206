"""Figures: sizes that fit, alternative texts, honest refusals, and the small measures."""

import io
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from koala_nb.display import exercises, figures, tables


@pytest.fixture
def displayed(monkeypatch):
    """What the notebook would have displayed: a list of (data, options)."""
    seen = []
    monkeypatch.setattr("IPython.display.display", lambda data, **how: seen.append((data, how)))
    return seen


def grey(value, size=8):
    return Image.new("RGB", (size, size), (value,) * 3)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would have been displayed: a list of (figure, alternative text)."""
    figures_and_texts = []
    monkeypatch.setattr(figures, "show", lambda *both, **_: figures_and_texts.append(both))
    return figures_and_texts


def test_show_carries_the_alternative_text(displayed):
    figures.show(figures.image_grid([grey(9)], ["a koala"], ["seed 0"], "title"), "one koala")
    (data, how), *_ = displayed
    assert data["text/plain"] == how["metadata"]["image/png"]["alt"] == "one koala"
    assert Image.open(io.BytesIO(data["image/png"])).width > 100
    with pytest.raises(ValueError, match="alternative text is empty"):
        figures.show(figures.image_grid([grey(9)], ["a koala"], ["seed 0"]), " ")


def test_photographs_are_kept_as_jpeg(displayed):
    for side in (255, 256):
        figures.show_images([grey(9, side)], ["a koala"])
    (small, _), (large, how) = displayed
    assert Image.open(io.BytesIO(small["image/png"])).mode == "P"
    assert Image.open(io.BytesIO(large["image/jpeg"])).format == "JPEG"
    assert how["metadata"]["image/jpeg"]["alt"] == large["text/plain"]


def test_a_figure_has_the_same_bytes_each_time(displayed):
    for _ in range(2):
        figures.show_lines({"a": ([1, 2], [3, 4])}, "x", "y")
    assert displayed[0][0]["image/png"] == displayed[1][0]["image/png"]


@pytest.mark.parametrize("rows, columns, images", [(1, 2, 1), (1, 1, 0), (2, 1, 3)])
def test_image_grid_wants_one_image_a_cell(rows, columns, images):
    with pytest.raises(ValueError, match="image_grid"):
        figures.image_grid([grey(0)] * images, ["r"] * rows, ["c"] * columns)


def test_a_grid_of_images_says_each_rows_numbers(drawn):
    images = [grey(v) for v in (0, 50, 100, 200)]
    labels = {"rows": ["a koala", "a dog"], "columns": ["1\nstep", "2 steps"], "title": "t"}
    numbers = {"numbers": [0.4, 49.6, 100, 200], "meaning": "brightness"}
    figures.show_images(images, **labels, **numbers)
    figures.show_images(images, **labels)
    (figure, with_numbers), (_, plain) = drawn
    assert [axis.get_xlabel() for axis in figure.axes] == ["0", "50", "100", "200"]
    assert figure.get_supxlabel() == "Number below an image: brightness"
    columns = "t. Columns: 1 step, 2 steps."
    assert with_numbers == f"{columns} brightness: a koala: 0, 50; a dog: 100, 200."
    assert plain == f"{columns} Rows: a koala; a dog."
    figures.show_images(images, **labels, scale=(64, "levels of 255"))
    scale = drawn[2][0].axes[4]
    assert scale.get_ylabel() == "levels of 255" and scale.get_ylim() == (0, 64)
    figures.show_images(images, columns=list("abcd"), title="t", numbers=[1] * 4, meaning="focus")
    assert drawn[3][1] == "t. Columns: a, b, c, d. focus: 1, 1, 1, 1."
    with pytest.raises(ValueError, match="1 numbers do not fit 4 images"):
        figures.show_images(images, **labels, numbers=[1], meaning="brightness")


def test_every_line_has_its_own_marker(drawn):
    figures.show_lines({"one $": ([1, 2], [3, 4]), "two": ([1], [2])}, "step", "sigma", "t")
    (axis,) = drawn[0][0].axes
    assert [tuple(line.get_ydata()) for line in axis.lines] == [(3, 4), (2,)]
    assert len({line.get_marker() for line in axis.lines}) == 2
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("step", "sigma")
    assert [text.get_text() for text in axis.texts] == ["two", r"one \$"]  # each at its end, by y
    assert axis.texts[0].get_color() == axis.lines[1].get_color()


def test_levels_and_stretches_are_named(drawn):
    column = pd.Series([3, 4])  # -1 is no label of it
    figures.show_lines({"a": ([1, 2], column)}, "x", "y", level={"goal": 5.0}, starts={"up 1": 2})
    ((figure, alt),) = drawn
    assert {text.get_text() for text in figure.axes[0].texts} == {"a", "goal", " up 1"}
    assert alt.endswith("a: 3.00 at 1, 4.00 at 2; goal: 5.00 throughout.")


def test_few_runs_are_drawn_one_by_one(drawn):
    row = {"label": "a", "value": 2.0, "low": None, "high": None, "each": [1, 3]}
    figures.show_intervals(pd.DataFrame([row]))
    ((figure, alt),) = drawn
    assert list(figure.axes[0].lines[-1].get_xdata()) == [1, 3] and alt.endswith(
        "a 2.00, each 1, 3."
    )


@pytest.mark.parametrize("series", [{}, {"a": ([1, 2], [1])}, {"a": ([], [])}])
def test_what_are_no_lines_is_refused(series):
    with pytest.raises(ValueError, match="lines"):
        figures.show_lines(series, "x", "y")


def test_a_heatmap_writes_each_number(drawn):
    figures.show_heatmap(pd.DataFrame([[0.1, 0.25, 1]], ["row"], list("abc")), "title", ".0%")
    axis = drawn[0][0].axes[0]
    assert [text.get_text() for text in axis.texts] == ["10%", "25%", "100%"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="heatmap: the frame is empty"):
        figures.show_heatmap(pd.DataFrame())


def test_banner_is_escaped_and_only_there_where_needed(displayed):
    figures.show_banner(None)
    figures.show_banner("teaching <model>")
    ((data, _),) = displayed
    assert "&lt;model&gt;" in data["text/html"] and 'role="note"' in data["text/html"]
    assert data["text/plain"] == "teaching <model>"


def test_an_exercise_may_be_checked_by_a_function(capsys):
    exercises.check(42, lambda a: a == 42, "six times seven")
    assert capsys.readouterr().out == "Right.\n"
    with pytest.raises(exercises.NotRightYet, match="41 is not the answer. Hint: six"):
        exercises.check(41, lambda a: a == 42, "six times seven")
    assert "\n" not in exercises.NotRightYet("one line")._render_traceback_()[0]


def test_intervals_show_value_and_ends(drawn):
    columns = ["label", "value", "low", "high"]
    rows = [("none", 2.0, 1.0, 4.0), ("self-attention", 1.5, None, None), ("none", 1.0, 0.5, 2.0)]
    figures.show_intervals(pd.DataFrame(rows, columns=columns), "title", "loss", reference=0.0)
    axis = drawn[0][0].axes[0]
    ends = [list(line.get_xdata()) for line in axis.lines]
    assert ends[:4] == [[1.0, 4.0], [2.0], [1.5, 1.5], [1.5]] and len(ends) == 7
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["none", "self-attention", "none (3)"]
    with pytest.raises(ValueError, match="intervals: a: 1.0 is not within 2.0 to 3.0"):
        figures.show_intervals(pd.DataFrame([("a", 1.0, 2.0, 3.0)], columns=columns))


ESTIMATES = pd.DataFrame(
    [
        ("text.long", "long <texts>", 0.3123, 0.22, 0.411, 12345, 4, "Wilson", "rapidocr"),
        ("text.delta", "difference", -0.0003, None, None, 5, 4, "Wilson", "rapidocr"),
    ],
    columns=["id", "label", "value", "low", "high", "n", "clusters", "method", "scorer"],
)


def test_a_table_of_estimates_is_read_by_people_and_by_screen_readers(displayed):
    tables.show_table(ESTIMATES, "Texts")
    data = displayed[0][0]
    html, text = data["text/html"], data["text/plain"]
    assert "<caption>Texts. Method: Wilson. Scorer: rapidocr.</caption>" in html
    assert '<th scope="col">value (95 % interval)</th>' in html
    assert '<th scope="row">long &lt;texts&gt;</th><td>0.31 (0.22 to 0.41)</td>' in html
    assert "<td>12,345</td>" in html and "\N{MINUS SIGN}0.0003</td>" in html  # no false zero
    assert "text.long" not in html and "0.31 (0.22 to 0.41) 12,345" in text


def test_a_table_of_anything(displayed):
    wide = pd.DataFrame({"corrected value": [0.1], "corrected low": [0], "corrected high": [0.2]})
    html = tables.table_html(wide.assign(share=0.314, p=0.04), units={"share": "%"})
    assert "<td>31</td><td>0.040</td>" in html and ">0.10 (0 to 0.20)<" in html
    html = tables.table_html({"steps": 10, "licence": None, "is it": True}, "Facts")
    assert "<td>10</td>" in html and "<td>n/a</td>" in html and "<td>yes</td>" in html
    crossed = pd.crosstab(pd.Series([1, 2], name="guidance"), pd.Series(["a", "b"], name="read"))
    assert '<th scope="col">guidance</th>' in tables.table_html(crossed)
    tables.show_table(ESTIMATES.head(0), "Texts", empty="Not <planted> here.")
    assert displayed[0][0]["text/html"] == "<p>Texts: Not &lt;planted&gt; here.</p>"


def test_figures_write_their_own_alternative_text(displayed, capsys):
    figures.show_intervals(ESTIMATES, "Texts")
    figures.show_lines({"a": ([1, 2], [0.1, 0.2])}, "step", "loss")
    figures.show_heatmap(pd.DataFrame([[1, np.nan]], ["row"], ["x", "y"]), "map")
    alts = [how["metadata"]["image/png"]["alt"] for _, how in displayed]
    assert "long <texts> 0.31 (0.22 to 0.41), n 12,345; difference" in alts[0]
    assert alts[1] == "loss against step. a: 0.10 at 1, 0.20 at 2."
    assert alts[2] == "map. Columns: x, y. row: 1.00, n/a."
    bounds = ESTIMATES.assign(bounds_low=[0.2, None], bounds_high=[0.9, None])
    figures.show_intervals(bounds.assign(claimed=[True, False]), "Texts")
    long, difference = displayed[-1][1]["metadata"]["image/png"]["alt"].split(";")[1:]
    assert "(0.22 to 0.41), whatever the unsure are 0.20 to 0.90, claimed, n" in long
    assert "unsure" not in difference and "claimed" not in difference
    figures.show_heatmap(pd.DataFrame([[0.92, 0.95]]), "map", least=0.93)
    assert "map. Below 0.93, framed: 1 of 2." in displayed[-1][1]["metadata"]["image/png"]["alt"]
    figures.show_intervals(ESTIMATES.head(0), "Texts")
    assert capsys.readouterr().out == "Texts: Nothing of this was measured here.\n"


def test_a_runs_images_say_their_prompts_and_seeds(displayed):
    cells = [(prompt, seed) for prompt in "abcde" for seed in (0, 1)]
    records = pd.DataFrame(cells, columns=["prompt", "seed"])
    run = SimpleNamespace(images=[grey(9)] * 10, records=records)
    figures.show_images(run)
    figures.show_images(run.images[:2], ["right", "wrong"], title="Two")
    alts = [data["text/plain"] for data, _ in displayed]
    assert len(alts) == 3  # four prompts a figure
    assert alts[1] == "1 prompt x 2 seeds, one row per prompt: e (mean brightness 0.0)."
    assert alts[2] == "Two. 2 images: right; wrong."


def test_a_page_is_shown_in_a_frame(tmp_path, displayed):
    page = tmp_path / "page.html"
    html = """<p title="x">&amp; "all" 'this' </p><script>let a = 1 < 2</script>"""
    page.write_text(html, "utf-8")
    for given in (page, page.read_bytes()):
        figures.show_page(given, "Words & steps", height=300)
    (data, _), (again, _) = displayed
    frame = BeautifulSoup(data["text/html"], "html.parser").iframe
    assert frame["srcdoc"] == html and frame["title"] == "Words & steps"
    assert "allow-scripts" in frame["sandbox"] and "height:300px" in frame["style"]
    assert again == data and data["text/plain"] == "Words & steps"
    assert data["text/html"].startswith("<p>Words &amp; steps</p>")
