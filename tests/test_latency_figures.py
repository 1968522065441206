"""Figures of stored benchmarks say in words what they show."""

import json

import pytest

from koala_nb.core.catalog import data_folder
from koala_nb.speed import figures


@pytest.fixture
def shown(monkeypatch):
    """What each figure displays: (figure, alternative text)."""
    found = []
    monkeypatch.setattr(figures, "show", lambda figure, alt: found.append((figure, alt)))
    return found


def stored(name):
    return json.loads((data_folder() / "results" / f"benchmark-{name}.json").read_text("utf-8"))


def test_cost_by_batch_has_a_panel_a_size_and_a_line_a_system(shown):
    rows = [
        {"system": system, "size": size, "batch": batch, "seconds": 0.04 * batch,
         "low": 0.03 * batch, "high": 0.06 * batch}
        for system in ("large", "small") for size in (64, 128) for batch in (1, 4)
    ]  # fmt: skip
    figures.show_scaling(rows)
    ((figure, alt),) = shown
    assert [axis.get_title() for axis in figure.axes] == ["64 px", "128 px"]
    assert all(len(axis.containers) == 2 for axis in figure.axes)
    assert "small, 128 px, batch 4: 40" in alt and alt.count("batch") == len(rows)


def test_no_pass_lies_above_the_roof(shown):
    found = stored("latency-embedded")
    figures.show_roofline(found["machine"], found["roofline"])
    ((figure, alt),) = shown
    roof, *systems = figure.axes[0].lines
    assert len(systems) == 2 and f"{len(found['roofline'])} passes of nano-sdxl and" in alt
    for line in systems:
        limit = [min(found["machine"]["flop_rate"], x * found["machine"]["bandwidth"]) / 1e9
                 for x in line.get_xdata()]  # fmt: skip
        assert all(y < top for y, top in zip(line.get_ydata(), limit))


def test_ways_that_draw_another_image_are_marked_without_colour(shown):
    rows = [r for r in stored("generation-nano-koala")["rows"] if r["threads"] == 2]
    figures.show_ways(rows)
    ((figure, alt),) = shown
    axis = figure.axes[0]
    hatched = [bool(patch.get_hatch()) for patch in axis.patches]
    assert hatched == [not row["same_image"] for row in rows] and any(hatched)
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names[0] in alt and all(("another" in n) == h for n, h in zip(names, hatched))
