"""Simulated coverage: the published grid, and what of it can be done again in seconds."""

import json

import numpy as np
import pytest

from koala_nb.stats import coverage

CELLS = [(told, audit) for told, audit in coverage.cells() if told["interval"] == "clustered_share"]


def test_the_published_grid_is_that_of_the_code():
    published = coverage.published()
    told = [told for told, _ in coverage.cells()]
    assert [{k: cell[k] for k in one} for cell, one in zip(published, told)] == told
    assert len(published) == len(told)
    assert all(cell["audits"] >= 1900 for cell in published)  # those without an interval left out


def test_shares_are_covered_as_promised():
    for cell in coverage.published():
        if cell["interval"] == "clustered_share":
            easy = cell["correlation"] <= 0.05 and 0.1 <= cell["share"] <= 0.9
            # 2,500 audits tell .93 and .98 to about a third of a percent.
            assert (0.93 <= cell["coverage"] <= 0.983) if easy else cell["coverage"] >= 0.90, cell


def test_every_other_interval_is_covered():
    for cell in coverage.published():
        assert cell["coverage"] >= 0.90, cell


@pytest.mark.parametrize("told, audit", CELLS[::23])
def test_simulating_again_agrees_with_what_is_published(told, audit):
    found = coverage.simulate(audit, 600, seed=1)["coverage"]
    (cell,) = [c for c in coverage.published() if all(c.get(k) == v for k, v in told.items())]
    assert found == pytest.approx(cell["coverage"], abs=0.035)


def test_the_same_seed_gives_the_same_audits():
    audit = CELLS[40][1]
    assert coverage.simulate(audit, 50, 3) == coverage.simulate(audit, 50, 3)
    assert coverage.simulate(audit, 200, 3) != coverage.simulate(audit, 200, 4)


def test_caution_only_where_a_cell_is_low():
    shares = [c for c in coverage.published() if c["interval"] == "clustered_share"]
    low = [c for c in shares if c["coverage"] < coverage.LOW]
    assert low
    prompts, images, share = (low[0][k] for k in ("prompts", "images", "share"))
    hits = np.zeros((prompts, images))
    hits[: round(prompts * share)] = 1  # correlation 1: the nearest cell has the largest
    names = np.repeat(np.arange(prompts), images)
    told = coverage.caution(hits.ravel(), names)
    assert told and f"{low[0]['coverage']:.1%}" in told
    even = np.tile([1, 0] * (images // 2), (prompts, 1))
    assert coverage.caution(even.ravel(), names) is None


def test_main_writes_the_grid(tmp_path, monkeypatch):
    monkeypatch.setattr(coverage, "cells", lambda: iter(CELLS[:2]))
    assert coverage.main(["--audits", "20", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "coverage.json").read_text())
    assert [cell["audits"] for cell in found["cells"]] == [20, 20]
    with pytest.raises(SystemExit):
        coverage.main(["--audits", "0"])


def test_a_row_a_design_and_a_column_a_share():
    table = coverage.by_design()
    assert list(table.columns) == list(coverage.SHARES)
    assert len(table) == len(coverage.DESIGNS) * len(coverage.CORRELATIONS)
    first = CELLS[0][0]
    assert table.iloc[0, 0] == coverage.published()[0]["coverage"] and first["share"] == 0.02
