"""What the speed benchmarks compute and promise; the speeds themselves are no test."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from koala_nb import generate
from koala_nb.generation import fast
from koala_nb.models import random_weights
from koala_nb.models.unet import build_unet
from koala_nb.speed import full as benchmark_full
from koala_nb.speed import generation, latency, roofline, shortcuts, timing

SMALL = {"height": 64, "width": 64, "steps": 3, "guidance": 3.5, "progress": False}


# --- timing -----------------------------------------------------------------------------------


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=12))
def test_a_median_lies_in_its_interval(values):
    found = timing.median_interval(values)
    assert found.low <= found.value <= found.high
    assert found.value == np.median(values) and found.n == len(values)
    assert timing.ratio_interval(values, values).value == 1


def test_turns_rotate_and_memory_that_runs_out_is_a_result():
    order = []

    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory")

    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b"), "c": fail}
    found = timing.take_turns(calls, 3)
    assert order == list("ab" + "ab" + "ba" + "ab")  # a warm-up, then rounds
    assert [len(v) for v in found.values()] == [3, 3, 0]
    with pytest.raises(RuntimeError, match="shapes"):
        timing.take_turns({"a": lambda: (_ for _ in ()).throw(RuntimeError("shapes"))}, 2)


def test_the_peak_counts_what_lives_at_once():
    assert timing.peak_gb(lambda: [torch.ones(250) for _ in range(4)]) == pytest.approx(4e-6)
    assert timing.peak_gb(lambda: torch.ones(250).add(1).add(1)) == pytest.approx(2e-6)


# --- the same image, faster -------------------------------------------------------------------


def test_cpu_kernels_change_rounding_alone_and_are_given_back(loaded):
    inputs = roofline.inputs_like(loaded.unet, 8, 2, 77, "cpu", torch.float32)
    linear = [m for m in loaded.unet.modules() if type(m) is torch.nn.Linear]
    with torch.no_grad():
        before = loaded.unet(**inputs)[0]
        with fast.cpu_kernels(loaded):
            replaced = ["forward" in vars(m) for m in linear]
            within = loaded.unet(**inputs)[0]
        after = loaded.unet(**inputs)[0]
    assert torch.allclose(before, within, atol=1e-5) and torch.equal(before, after)
    assert not any("forward" in vars(m) for m in linear)
    assert any(replaced) == (
        torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
    with fast.cpu_kernels(loaded):
        assert loaded.unet(**inputs)[0].requires_grad  # gradients are not lost


def test_generate_equals_the_plain_loop_within_one_level(loaded, monkeypatch):
    recipe = replace(loaded.model_info.recipe, steps=4)
    monkeypatch.setattr(loaded.model_info, "recipe", recipe)
    rows = generation.compare(loaded, 5, 64, 2)
    by_way = {row["way"]: row for row in rows}
    for row in rows:
        assert row["low"] <= row["ratio"] <= row["high"] and row["images_a_second"] > 0
        if row["same_image"]:
            assert row["largest_difference"] <= 1
    assert by_way[generation.LOOP]["ratio"] == 1
    assert {n for n, row in by_way.items() if not row["same_image"]} == set(shortcuts.SHORTCUTS)
    for name in ("guidance on the first half of the steps", "every second answer used twice"):
        assert by_way[name]["mean_difference"] > 0, name


def test_shortcuts_leave_the_pipeline_as_it_was(loaded):
    def draw():
        return generate(loaded, "a koala", seeds=range(2), **SMALL).images

    expected = [np.asarray(i) for i in draw()]
    for shortcut in shortcuts.SHORTCUTS.values():
        assert len(shortcut(loaded, draw)) == 2
        assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(expected, draw()))
    assert loaded.unet.dtype == torch.float32


def test_early_guidance_halves_the_later_passes(loaded, monkeypatch):
    sizes, forward = [], loaded.unet.forward
    monkeypatch.setattr(
        loaded.unet, "forward", lambda x, *a, **k: (sizes.append(len(x)), forward(x, *a, **k))[1]
    )
    shortcuts.early_guidance(loaded, lambda: generate(loaded, "a", **{**SMALL, "steps": 4}).images)
    assert sizes == [2, 2, 1, 1]


# --- memory -----------------------------------------------------------------------------------


@settings(max_examples=10)
@given(st.integers(1, 40), st.integers(1, 40))
def test_halving_draws_everything_in_order(images, room):
    tried = []

    def draw(batch):
        tried.append(len(batch))
        if len(batch) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [2 * i for i in batch]

    halving = fast.Halving(draw)
    assert halving(range(images)) == [2 * i for i in range(images)]
    assert (halving.most is None) == (images <= room)
    failed = len([n for n in tried if n > room])
    assert halving(range(images)) == [2 * i for i in range(images)]
    assert len([n for n in tried if n > room]) == failed  # what failed once is not tried again


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), RuntimeError("out of memory")])
def test_other_errors_and_single_images_are_not_halved(error):
    def draw(batch):
        raise error

    with pytest.raises(RuntimeError, match=str(error)):
        fast.Halving(draw)(range(1 if "memory" in str(error) else 4))


def test_a_run_goes_on_in_halves_and_says_so(loaded, tmp_path, monkeypatch):
    whole = generate(loaded, "a koala", seeds=range(6), batch_size=2, **SMALL)
    assert "batch_halved_to" not in whole.records
    forward = loaded.unet.forward

    def scarce(x, *args, **more):
        if len(x) > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(x, *args, **more)

    monkeypatch.setattr(loaded.unet, "forward", scarce)
    run = generate(loaded, "a koala", seeds=range(6), batch_size=6, out=tmp_path, **SMALL)
    assert set(run.records.batch_halved_to) == {1}  # 6, 3, then 1 image with its two halves
    for one, other in zip(run.images, whole.images):
        assert abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1


# --- counting ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("latent", "images"), [(8, 1), (16, 2), (48, 2)])
def test_predicted_activations_are_those_of_a_real_pass(loaded, latent, images):
    predicted = roofline.unet_work(loaded.unet.config, latent, images)["activations_gb"]
    inputs = roofline.inputs_like(loaded.unet, latent, images, 77, "cpu", torch.float32)
    with torch.no_grad():
        measured = timing.peak_gb(lambda: loaded.unet(**inputs))
    assert predicted == pytest.approx(measured, rel=0.05)


def test_predicted_decoding_is_that_of_a_real_one(loaded):
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL.from_config(loaded.vae.config)
    with torch.no_grad():
        measured = timing.peak_gb(lambda: loaded.vae.decode(torch.zeros(2, 4, 16, 16)))
    assert roofline.decoder_gb(vae, 16, 2) == pytest.approx(measured, rel=0.05)


def test_the_released_weights_are_counted():
    held = roofline.predicted_gb("koala-lightning-700m", 512)
    assert held["weights"] == pytest.approx(2 * (782_822_724 + 901_374_183) / 1e9, rel=1e-3)
    assert held["total"] == held["weights"] + max(held["unet"], held["vae"])


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


def test_machine_rates_are_plausible():
    found = roofline.machine_rates(repeats=2)
    assert found["flop_rate"] > 1e8 and found["bandwidth"] > 1e8


# --- commands ---------------------------------------------------------------------------------


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


def test_small_random_parts_keep_the_blocks():
    small = random_weights.parts("koala-700m", small=True)["unet"]
    full = build_unet("koala-700m")
    assert [type(m) for m in small.modules()] == [type(m) for m in full.modules()]
    made = random_weights.filled(small, "float32")
    assert all(torch.isfinite(p).all() for p in made.parameters())
    with pytest.raises(ValueError, match="weights of its own"):
        random_weights.parts("nano-koala")


def test_full_writes_loads_and_draws(tmp_path):
    given = ["--small", "--sizes", "64", "--steps", "1", "--out", str(tmp_path), "--device", "cpu"]
    assert benchmark_full.main(given) == 0
    (file,) = tmp_path.glob("benchmark-full-koala-lightning-700m-small.json")
    found = json.loads(file.read_text("utf-8"))["result"]
    assert found["outcome"] == "measured" and found["images"][0]["finite"]
    assert found["weights_gb"] > 0 and found["load_peak_gb"] > 0
    with pytest.raises(ValueError, match="choose another"):
        random_weights.write_to_hub_cache(tmp_path, "sdm-v2.0")
