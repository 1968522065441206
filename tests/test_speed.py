"""What is timed, counted, predicted and planned; the speeds themselves are no test."""

import json
import shlex
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import MagicMock, call

import pytest
import torch
from conftest import ROOT
from diffusers import AutoencoderKL

from koala_nb import cli
from koala_nb.core import files
from koala_nb.core.card import LATENCY_FIGURE
from koala_nb.core.catalog import data_folder
from koala_nb.models.unet import build_unet
from koala_nb.speed import cost, figures, latency, roofline, throughput, timing

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


def stored(name):
    return json.loads((data_folder() / "results" / f"benchmark-{name}.json").read_text("utf-8"))


# --- timing ---------------------------------------------------------------------------------------


def test_rounds_rotate_and_memory_that_runs_out_is_a_result():
    order = []
    variants = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds = timing.time_interleaved({**variants, "c": MagicMock(side_effect=OUT_OF_MEMORY)}, 3)
    assert order == list("ab" + "ab" + "ba" + "ab")  # a warm-up, then rounds
    assert [len(values) for values in seconds.values()] == [3, 3, 0]
    with pytest.raises(RuntimeError, match="shapes"):
        timing.time_interleaved({"a": MagicMock(side_effect=RuntimeError("shapes"))}, 2)
    scarce = MagicMock(side_effect=[None, None, OUT_OF_MEMORY])  # in a later round
    seconds = timing.time_interleaved({"a": lambda: None, "b": scarce}, 4)
    assert [len(values) for values in seconds.values()] == [4, 0] and scarce.call_count == 3


def test_the_peak_counts_what_lives_at_once():
    assert timing.peak_gb(lambda: [torch.ones(250) for _ in range(4)]) == pytest.approx(4e-6)
    assert timing.peak_gb(lambda: torch.ones(250).add(1).add(1)) == pytest.approx(2e-6)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
@pytest.mark.parametrize("measure, value", [(timing.seconds_of, 2), (timing.peak_gb, 3)])
def test_times_and_peaks_are_of_the_gpu_that_is_given(monkeypatch, device, measure, value):
    cuda = MagicMock()
    cuda.Event.return_value.elapsed_time.return_value = 2000.0
    cuda.memory_allocated.return_value, cuda.max_memory_allocated.return_value = 1e9, 4e9
    monkeypatch.setattr(torch, "cuda", cuda)
    assert measure(lambda: None, device) == value
    names = [name for name, _, _ in cuda.mock_calls]
    enter, leave = (names.index(f"device().__{end}__") for end in ("enter", "exit"))
    assert cuda.mock_calls[0] == call.device(torch.device(device)) and enter == 1
    assert set(names[leave + 1 :]) <= {"Event().elapsed_time"}  # all else is on that GPU


def test_apples_gpu_has_ended_its_work_when_the_clock_stops(monkeypatch):
    order = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: order.append("wait"))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: order.append("clock") or 0.0)
    timing.seconds_of(lambda: order.append("call"), "mps")
    assert order == ["wait", "clock", "call", "wait", "clock"]


def test_a_result_names_the_device_that_was_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    for device, name in (("cpu", "CPU "), ("cuda:1", "GPU 1"), (None, "GPU None")):
        assert files.environment(device)["device"].startswith(name)
        file = timing.write_result("a", "command", {}, tmp_path, device)
        assert json.loads(file.read_text())["environment"]["device"].startswith(name)


# --- counting -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("latent", "images"), [(8, 1), (16, 2), (48, 2)])
def test_predicted_activations_are_those_of_a_real_pass(loaded, latent, images):
    predicted = roofline.unet_work(loaded.unet.config, latent, images)["activations_gb"]
    inputs = roofline.inputs_like(loaded.unet, latent, images, 77, "cpu", torch.float32)
    with torch.no_grad():
        measured = timing.peak_gb(lambda: loaded.unet(**inputs))
    assert predicted == pytest.approx(measured, rel=0.05)


def test_predicted_decoding_is_that_of_a_real_one(loaded):
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(loaded.vae.config)
        latents = torch.empty(2, 4, 16, 16)
    with torch.no_grad():
        measured = timing.peak_gb(lambda: loaded.vae.decode(torch.zeros(2, 4, 16, 16)))
    predicted = roofline.meta_peak_gb(lambda: vae.decode(latents))
    assert predicted == pytest.approx(measured, rel=0.05)


def test_the_weights_of_a_released_system_are_counted():
    memory = roofline.predicted_gb("koala-lightning-700m", 512)
    assert memory["weights"] == pytest.approx(2 * (782_822_724 + 901_374_183) / 1e9, rel=1e-3)
    assert memory["total"] == memory["weights"] + max(memory["unet"], memory["vae"])


def test_traffic_counts_operations_and_no_views():
    x = torch.ones(100)
    with roofline.Traffic() as traffic:
        y = x.view(10, 10).t()
    assert traffic.bytes == 0
    with roofline.Traffic() as traffic:
        y + 1
        x.add_(1)
    assert traffic.bytes == 2 * 800
    work = {"flops": 10.0, "bytes": 4.0}
    assert roofline.limit_seconds(work, {"flop_rate": 5.0, "bandwidth": 1.0}) == 4.0


# --- commands -------------------------------------------------------------------------------------


def test_latency_of_parts(loaded):
    modules = {k: v for k, v in loaded.components.items() if isinstance(v, torch.nn.Module)}
    cases = latency.cases_of("koala-lightning-700m", modules, [64], [1, 2])
    rows = latency.measure(cases, 2, "cpu")
    assert len(rows) == 1 + 2 * 3 and {row["part"] for row in rows} == set(latency.PARTS)
    assert all(row["low"] <= row["seconds"] <= row["high"] and row["peak_gb"] > 0 for row in rows)
    (one, two) = latency.whole_images(rows)
    step = next(r for r in rows if r["guided"] and r["batch"] == 1)
    assert one["guided"] and one["steps"] == 10
    assert one["seconds_an_image"] > 10 * step["seconds"] and two["batch"] == 2


def test_the_command_latency_writes_all_tables(tmp_path):
    given = ["latency", "--systems", "nano-koala", "--repeats", "2", "--out", str(tmp_path)]
    assert cli.main(["benchmark", *given, "--limit-gb", "1"]) == 0
    result = json.loads((tmp_path / "benchmark-latency-nano-koala.json").read_text("utf-8"))
    shown = [tmp_path.name if word == str(tmp_path) else word for word in given]
    assert result["command"] == f"koala-nb benchmark {' '.join(shown)} --limit-gb 1"
    assert result["options"]["dtype"] == "float32" and "name" in result["options"]
    assert all(row["fits"] and row["weights_gb"] > 0 for row in result["rows"])
    assert len(result["images"]) == len(result["roofline"]) == 1
    rates = result["machine"]
    assert rates["threads"] and rates["flop_rate"] > 1e8 and rates["bandwidth"] > 1e8
    assert 0 < result["roofline"][0]["share_of_limit"]


def test_a_limit_of_memory_is_of_one_system(monkeypatch):
    limit, properties = MagicMock(), SimpleNamespace(total_memory=8e9)
    monkeypatch.setattr(latency, "pick_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(latency, "parts_of", MagicMock(side_effect=KeyError("stop")))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limit)
    with pytest.raises(KeyError, match="stop"):
        latency.write_benchmark(["nano-koala"], [64], [1], limit_gb=2)
    # Of the current device: torch takes no device without index.
    limit.assert_called_once_with(0.25, None)
    with pytest.raises(ValueError, match="give one system"):
        latency.write_benchmark(["nano-koala", "nano-sdxl"], [64], [1], limit_gb=2)


def test_small_random_parts_keep_the_blocks():
    small, full = timing.parts("koala-700m", small=True)["unet"], build_unet("koala-700m")
    assert [type(m) for m in small.modules()] == [type(m) for m in full.modules()]
    made = timing.filled(small, "float32")
    assert all(torch.isfinite(p).all() for p in made.parameters())
    with pytest.raises(ValueError, match="weights of its own"):
        timing.parts("nano-koala")


def test_generate_equals_the_plain_loop_within_one_level(loaded, monkeypatch):
    monkeypatch.setattr(loaded.model_info, "recipe", replace(loaded.model_info.recipe, steps=4))
    shortcuts = {"white": lambda pipe, draw: [image.point(lambda _: 255) for image in draw()]}
    rows, run = throughput.compare(loaded, 5, 64, 2, shortcuts)
    assert len(rows) == 5 and len(run.images) == 5
    for row in rows:
        assert row["low"] <= row["ratio"] <= row["high"] and row["images_a_second"] > 0
        assert row["same_image"] == (row["way"] != "white")
        assert (row["largest_difference"] <= 1) == row["same_image"]
    assert rows[0]["way"] == throughput.LOOP and rows[0]["ratio"] == 1


# --- figures of stored results --------------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch):
    """What each figure displays: (figure, alternative text)."""
    displayed = []
    monkeypatch.setattr(figures, "show", lambda figure, alt: displayed.append((figure, alt)))
    return displayed


def test_cost_by_batch_has_a_panel_a_size_and_a_line_a_system(shown):
    cases = [(s, size, b) for s in ("large", "small") for size in (64, 128) for b in (1, 4)]
    keys = ("system", "size", "batch", "seconds", "low", "high")
    rows = [dict(zip(keys, (*case, *(x * case[2] for x in (0.04, 0.03, 0.06))))) for case in cases]
    figures.show_scaling(rows)
    ((figure, alt),) = shown
    assert [axis.get_title() for axis in figure.axes] == ["64 px", "128 px"]
    assert all(len(axis.containers) == 2 for axis in figure.axes)
    assert [[t.get_text() for t in axis.texts] for axis in figure.axes] == [["large", "small"]] * 2
    assert "small, 128 px, batch 4: 40" in alt and alt.count("batch") == len(rows)


def test_no_pass_lies_above_the_roof(shown):
    result = stored("latency-embedded")
    machine = result["machine"]
    points = [p for p in result["roofline"] if (p["system"], p["size"]) == ("nano-koala", 64)]
    figures.show_roofline(machine, points)
    ((figure, alt),) = shown
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert len(dots) == len(points) == alt.count("batch")
    assert f"batch 1: {points[0]['share_of_limit']:.0%}" in alt
    for x, y in (point for line in dots for point in line.get_xydata()):
        assert y < min(machine["flop_rate"], x * machine["bandwidth"]) / 1e9


def test_variants_that_draw_another_image_are_marked_without_colour(shown):
    rows = [r for r in stored("generation-nano-koala")["rows"] if r["threads"] == 2]
    figures.show_variants(rows)
    ((figure, alt),) = shown
    axis = figure.axes[0]
    hatched = [bool(patch.get_hatch()) for patch in axis.patches]
    assert hatched == [not row["same_image"] for row in rows] and any(hatched)
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names[0] in alt and all(("another" in n) == h for n, h in zip(names, hatched))


def test_stacked_bars_end_at_their_sum_and_have_marks(shown):
    bars = {"one": {"weights": 2.0, "rest": 0.5}, "two": {"weights": 1.0, "rest": 3.0}}
    figures.show_stacks(bars, "GB", "Peaks", {"measured": {"two": 4.5}})
    ((figure, alt),) = shown
    (axis,) = figure.axes
    ends = [bar.get_x() + bar.get_width() for bar in axis.patches]
    assert ends == [2, 1, 2.5, 4] and axis.lines[0].get_xdata()[1] == 4.5
    assert alt == "Peaks; GB: one: weights 2, rest 0.5; two: weights 1, rest 3; measured: two 4.5."


# --- the plan -------------------------------------------------------------------------------------

PAGE = ROOT / "docs" / "many_machines.md"
ROWS = [
    {"way": "write JSON lines", "count": 10, "seconds": 1.0, "bytes": 9000},
    {"way": "write JSON lines", "count": 1000, "seconds": 2.0, "bytes": 800_000},
    {"way": "write Parquet", "count": 1000, "seconds": 1.0, "bytes": 100_000},
    {"way": "read out of PNGs of noise", "count": 1, "seconds": 0.05, "bytes": 7, "size": 1024},
]
ROWS = [{**row, "low": row["seconds"] / 2, "high": 2 * row["seconds"], "n": 3} for row in ROWS]
LIGHTNING = "koala-lightning-700m"


@pytest.fixture
def records(tmp_path):
    return files.write_json(tmp_path / "benchmark-records.json", {"rows": ROWS})


def test_cost_of_many_gpus():
    table = cost.run_cost(LIGHTNING, 7200, rate=0.5, gpus=[1, 4], price=3.0)
    assert list(table["hours"]) == [4, 1] and list(table["GPU-hours"]) == [4, 4]
    assert list(table["price"]) == [12, 12] and list(table["images/s"]) == [0.5, 2]
    assert "price" not in cost.run_cost(LIGHTNING, 1, rate=1.0)


def test_cost_by_the_published_times_of_each_gpu():
    table = cost.run_cost(LIGHTNING, 3600)
    seconds, memory = LATENCY_FIGURE["KOALA-Lightning-700M"][2]
    last = table.iloc[-1]
    assert len(table) == 3 and last["GPU"] == "RTX 4090 24GB" and last["hours"] == seconds
    assert last["peak memory (GB)"] == memory and table.attrs["download_gb"] > 3
    assert "sdxl-koala" in table.attrs["source"]
    assert len(cost.run_cost("sdxl-base", 1)) == 2  # one of the three runs out of memory
    with pytest.raises(ValueError, match="no published times of nano-koala: give the rate"):
        cost.run_cost("nano-koala", 1)


def test_records_are_counted_at_the_largest_measured_number():
    rows = {row["way"]: row for row in cost.record_cost(1_800_000, 2.0, ROWS)}
    lines = [rows["write JSON lines"][key] for key in ("seconds", "low", "GPUs")]
    assert lines == pytest.approx([3600, 1800, 250])  # 2 ms each, not 0.1 s; 500 a second, 2 a GPU
    assert rows["read out of PNGs of noise, 1024 px"]["GPUs"] == pytest.approx(10)


def test_the_plan_in_words(records, tmp_path, capsys):
    (tmp_path / "run" / "images" / "00000").mkdir(parents=True)
    for name, size in (("a", 1000), ("b", 3000)):
        (tmp_path / "run" / "images" / "00000" / f"{name}.png").write_bytes(b"x" * size)
    given = ["--images", "1000000", "--rate", "2", "--gpus", "1", "8", "--price", "1.5"]
    given += ["--records", str(records), "--run", str(tmp_path / "run")]
    assert cli.main(["plan", *given]) == 0
    output = capsys.readouterr().out
    assert "1,000,000 images at 2.00 images/s per GPU (as given)" in output
    lines = [line.split() for line in output.splitlines()]
    assert ["1", "2", "139", "139", "208"] in lines and ["8", "16", "17.4", "139", "208"] in lines
    assert "2.0 GB of images at 2,000 bytes, the mean of 2 in" in output
    assert "0.80 GB of records as JSON lines, 800 bytes each" in output
    assert "0.10 GB of records as Parquet, 100 bytes each" in output
    assert "From 10 GPUs on, by what the pictures show, one process needs longer" in output


def test_the_rate_of_a_benchmark_and_the_published_one(records, tmp_path, capsys):
    rows = [{"way": "koala_nb.generate", "images_a_second": speed} for speed in (3.0, 4.0)]
    rows.append({"way": "bfloat16", "images_a_second": 9.0})
    file = files.write_json(tmp_path / "benchmark-generation-x.json", {"rows": rows})
    cost.print_plan(records=records, gpus=[1], benchmark=file)
    assert "4.00 images/s per GPU (benchmark-generation-x.json)" in capsys.readouterr().out
    cost.print_plan(records=records, gpus=[1])
    published = LATENCY_FIGURE["KOALA-Lightning-700M"][2][0]
    output = capsys.readouterr().out
    assert f"{1 / published:.2f} images/s" in output and f"{published} s on an RTX 4090" in output
    assert "an example, measure your own" in output


def test_results_of_another_benchmark_are_refused(records):
    with pytest.raises(ValueError, match="holds no rate: give a file of `koala-nb benchmark gen"):
        cost.rate_in(records)
    other = files.write_json(records.with_name("other.json"), {"rows": ROWS[2:]})
    with pytest.raises(ValueError, match="other.json is not a result of `studies.records`"):
        cost.print_plan(records=other)


def test_the_page_shows_what_the_command_prints(capsys):
    block = PAGE.read_text("utf-8").split("```console\n$ koala-nb ")[1].split("```")[0]
    command, _, printed = block.partition("\n")
    assert cli.main(shlex.split(command)) == 0
    assert capsys.readouterr().out.strip() == printed.strip()
