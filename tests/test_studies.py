"""The studies measure what they say, write their file and leave the model as it was."""

import json

import numpy as np
import pytest
import torch

from koala_nb import generate
from koala_nb.generation import run_folder
from koala_nb.speed import cost, throughput
from studies import attention, full, generation, records

SMALL = {"height": 64, "width": 64, "steps": 3, "guidance": 3.5, "progress": False}


def result(folder, name):
    return json.loads((folder / f"benchmark-{name}.json").read_text("utf-8"))


def test_variants_of_capturing_draw_the_same(loaded):
    rows = {row["way"]: row for row in attention.compare(loaded, 64, 1, 2)}
    assert list(rows) == list(attention.variants()) and len(rows) >= 4
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


def test_attention_writes_ratios_and_memory(tmp_path, monkeypatch):
    variants = dict(list(attention.variants().items())[:2])
    monkeypatch.setattr(attention, "variants", lambda: variants)
    assert attention.main(["--repeats", "2", "--steps", "1", "--out", str(tmp_path)]) == 0
    found = result(tmp_path, "attention-nano-koala")
    assert [row["way"] for row in found["rows"]] == ["no capture", "koala_nb, by layer"]
    assert all(row["extra_peak_mb"] >= 0 for row in found["rows"])
    assert found["command"].startswith("python -m studies.attention --repeats 2")


def test_generation_compares_shortcuts_and_watches_a_long_run(tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "BLOCK", 2)
    names = ("guidance on the first half of the steps", "every second answer used twice")
    used = {name: throughput.SHORTCUTS[name] for name in names}
    monkeypatch.setattr(generation, "SHORTCUTS", used)
    given = ["--images", "2", "--repeats", "2", "--run", "4", "--threads", "1"]
    assert generation.main([*given, "--out", str(tmp_path)]) == 0
    found = result(tmp_path, "generation-nano-koala")
    different = {row["way"]: row for row in found["rows"] if not row["same_image"]}
    assert different.keys() == used.keys()
    assert all(row["mean_difference"] > 0 for row in different.values())
    assert [row["images"] for row in found["run"]] == [2, 4, 4]
    assert found["recipe"]["batch_size"] == 2 and found["recipe"]["negative_prompt"] is None


def test_shortcuts_leave_the_pipeline_as_it_was(loaded):
    def draw():
        return generate(loaded, "a koala", seeds=range(2), **SMALL).images

    expected = [np.asarray(image) for image in draw()]
    for shortcut in throughput.SHORTCUTS.values():
        assert len(shortcut(loaded, draw)) == 2
        assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(expected, draw()))
    assert loaded.unet.dtype == torch.float32


def test_early_guidance_halves_the_later_passes(loaded, monkeypatch):
    sizes, forward = [], loaded.unet.forward
    monkeypatch.setattr(
        loaded.unet, "forward", lambda x, *a, **k: (sizes.append(len(x)), forward(x, *a, **k))[1]
    )
    throughput.early_guidance(loaded, lambda: generate(loaded, "a", **{**SMALL, "steps": 4}).images)
    assert sizes == [2, 2, 1, 1]


def test_full_writes_loads_and_draws(tmp_path):
    given = ["--small", "--sizes", "64", "--steps", "1", "--out", str(tmp_path), "--device", "cpu"]
    assert full.main(given) == 0
    found = result(tmp_path, "full-koala-lightning-700m-small")["result"]
    assert found["outcome"] == "measured" and found["images"][0]["finite"]
    assert found["weights_gb"] > 0 and found["load_peak_gb"] > 0
    with pytest.raises(ValueError, match="choose another"):
        full.write_to_hub_cache(tmp_path, "sdm-v2.0")


def test_records_writes_what_the_plan_reads(snapshot, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_folder, "CHUNK", 8)
    given = ["--model", str(snapshot), "--counts", "20", "10", "--sizes", "64", "--repeats", "2"]
    assert records.main([*given, "--out", str(tmp_path)]) == 0
    rows = result(tmp_path, "records")["rows"]
    assert [row["count"] for row in rows] == [10] * 5 + [20] * 5 + [1] * 2
    assert all(row["seconds"] > 0 and row["low"] <= row["seconds"] <= row["high"] for row in rows)
    assert {row["ratio"] for row in rows if row["way"] == records.LINES} == {1.0}
    cost.print_plan(records=tmp_path / "benchmark-records.json")
    assert "read out of PNGs of noise, 64 px" in capsys.readouterr().out


def test_synthetic_records_have_the_columns_of_a_real_one(loaded):
    real = generate(loaded, "a koala", steps=1, progress=False).records.iloc[0].to_dict()
    many = records.records_like(real, 2001)
    assert all(list(record) == list(real) for record in many)
    assert len({record["file"] for record in many}) == 2001
    assert many[2000]["prompt_index"] == 2 and many[2000]["seed"] == 0
    assert many[2000]["file"].startswith("images/00002/00002-a-koala-2-0")
