"""Pipelines whose parts wait elsewhere than they compute, as where a GPU's memory is short.

Sequential offload from the CPU to the CPU is the real thing: parts lie on the meta device.
"""

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from hub_layout import tiny_pipeline
from PIL import Image

from koala_nb.distillation import data, similarity
from koala_nb.generation.generate import cpu_kernels
from koala_nb.models.load import model_info
from koala_nb.probes import text_reader
from koala_nb.report import measures, run
from koala_nb.speed import latency

PICTURES = [Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))]


@pytest.fixture
def offloaded(tmp_path):
    pipe = tiny_pipeline(tmp_path)
    for part in parts(pipe).values():
        cpu_offload(part, torch.device("cpu"), offload_buffers=True)
    assert pipe.vae.device.type == "meta" and pipe._execution_device.type == "cpu"
    return pipe


def parts(pipe):
    return {k: v for k, v in pipe.components.items() if isinstance(v, torch.nn.Module)}


def test_cpu_kernels_stay_out_of_a_pipeline_that_computes_elsewhere(fresh):
    linear = [m for m in fresh.unet.modules() if type(m) is torch.nn.Linear]
    for part in parts(fresh).values():
        cpu_offload_with_hook(part, torch.device("meta"))
    assert fresh.vae.device.type == "cpu" and fresh._execution_device.type == "meta"
    with cpu_kernels(fresh):
        assert not any("forward" in vars(module) for module in linear)


def test_parts_are_timed_on_the_device_that_they_compute_on(offloaded):
    cases = latency.cases_of("koala-lightning-700m", parts(offloaded), [64], [1])
    with torch.no_grad():
        found = {case["part"]: call() for case, call in cases}
    assert found["VAE"].device.type == "cpu" and found["VAE"].shape == (1, 3, 64, 64)


def test_a_report_has_no_times_of_offloaded_parts(offloaded, monkeypatch):
    monkeypatch.setenv(run.RUN_FOLDER, "a folder")
    section = measures.latency(offloaded, model_info(offloaded), 64)
    assert section.estimates.empty and "Offloaded parts" in section.why


@torch.no_grad()
def test_pictures_are_encoded_where_the_vae_computes(fresh, offloaded):
    one, other = (similarity.noisy_inputs(p, PICTURES, ["a"], 500) for p in (fresh, offloaded))
    assert torch.equal(one["sample"], other["sample"])
    pairs = [(PICTURES[0], "a")]
    one, other = (data.encode(pipe, pairs, 64) for pipe in (fresh, offloaded))
    assert torch.equal(one["mean"], other["mean"]) and torch.equal(one["states"], other["states"])


def test_text_boards_go_to_the_device_that_the_vae_computes_on(fresh, monkeypatch):
    for part in parts(fresh).values():
        cpu_offload_with_hook(part, torch.device("meta"))
    seen = []

    def encode(pixels):
        seen.append(pixels.device.type)
        raise RuntimeError("seen")

    monkeypatch.setattr(fresh.vae, "encode", encode)
    with pytest.raises(RuntimeError, match="seen"):
        text_reader.vae_roundtrip(fresh, PICTURES)
    assert seen == ["meta"]


@pytest.mark.parametrize(("upcast", "expected"), [(True, torch.float32), (False, torch.float16)])
def test_the_vae_is_timed_in_the_precision_that_it_decodes_in(fresh, upcast, expected):
    fresh.to(torch.float16).vae.register_to_config(force_upcast=upcast)
    cases = latency.cases_of("koala-lightning-700m", parts(fresh), [64], [1])
    (decode,) = (call for case, call in cases if case["part"] == "VAE")
    assert decode().dtype == expected and fresh.vae.dtype == torch.float16
