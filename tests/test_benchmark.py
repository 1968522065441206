"""The benchmark measures what it says; its numbers are no test."""

import json

import torch

from koala_nb import cli
from koala_nb.speed import attention


def test_ways_take_turns_and_draw_the_same(loaded):
    rows = {row["way"]: row for row in attention.take_turns(loaded, 64, 1, 2)}
    assert list(rows) == list(attention.ways()) and len(rows) >= 4
    assert rows["no capture"]["ratio"] == 1 and "low" not in rows["no capture"]
    for name, row in rows.items():
        assert row["seconds"] > 0 and row["n"] == 2
        if "koala_nb" in name:
            assert row["same_latents"] and row["low"] <= row["ratio"] <= row["high"]


def test_a_unet_with_random_weights_draws():
    pipe = attention.random_pipeline("nano-koala", "bfloat16")
    latents = attention.draw(pipe, 64, 2)
    assert latents.shape == (1, 4, 8, 8) and torch.isfinite(latents.float()).all()
    assert sum(p.numel() for p in pipe.unet.parameters()) > 3e6


def test_the_command_writes_ratios_and_memory(tmp_path, monkeypatch):
    ways = {name: way for name, way in attention.ways().items() if name != "koala_nb, merged"}
    monkeypatch.setattr(attention, "ways", lambda: dict(list(ways.items())[:2]))
    given = ["attention", "--repeats", "2", "--steps", "1", "--out", str(tmp_path)]
    assert cli.main(["benchmark", *given]) == 0
    found = json.loads((tmp_path / "benchmark-attention-nano-koala.json").read_text("utf-8"))
    assert [row["way"] for row in found["rows"]] == ["no capture", "koala_nb, by layer"]
    assert all(row["extra_peak_mb"] >= 0 for row in found["rows"])
    assert found["command"].startswith("koala-nb benchmark attention --repeats 2")
