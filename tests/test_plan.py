"""How large a batch is, and what its images' files are called."""

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from koala_nb import generate
from koala_nb.core import devices
from koala_nb.generation import plan
from koala_nb.generation.plan import default_batch_size, slug

SMALL = {"height": 64, "width": 64, "steps": 2, "guidance": 3.5}


def test_default_batch_sizes():
    assert [default_batch_size(n, "cpu") for n in (16, 32, 64, 128)] == [16, 16, 1, 1]
    assert [default_batch_size(n, "cuda") for n in (32, 64, 128)] == [16, 4, 1]


def test_a_batch_on_a_gpu_is_as_large_as_its_memory_allows(monkeypatch):
    free, area = (0.5, 2.0, 4.1, 19.0, 75.0), 1.0
    assert [devices.plan_batch(gb, area) for gb in free] == [1, 1, 2, 8, 16]
    assert devices.plan_batch(4.1, 0.25) == 8 and devices.plan_batch(19.0, 2.0) == 4
    monkeypatch.setattr(plan, "free_gigabytes", lambda device: 19.0)
    half = {"dtype": torch.float16, "device": torch.device("cuda")}
    changes = {"half": {}, "full": {"dtype": torch.float32}}
    changes["offloaded"] = {"device": torch.device("cpu")}
    sizes = {}
    for name, place in changes.items():
        pipe = SimpleNamespace(unet=SimpleNamespace(**{**half, **place}), vae_scale_factor=8)
        sizes[name] = plan._batch_size(pipe, 1024, 1024)
    assert sizes == {"half": 8, "full": 4, "offloaded": 1}


def test_a_run_goes_on_with_the_batches_that_it_began_with(loaded, tmp_path, monkeypatch):
    for size in (2, 3):  # as where another program takes memory meanwhile
        monkeypatch.setattr(plan, "_batch_size", lambda *_, size=size: size)
        generate(loaded, "a", seeds=range(3), out=tmp_path / "run", **SMALL)
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["batch_size"] == 2
    with pytest.raises(ValueError, match="batch_size was 2, now 3"):
        generate(loaded, "a", seeds=range(3), out=tmp_path / "run", batch_size=3, **SMALL)


@given(st.text())
def test_a_slug_is_a_safe_file_name(prompt):
    name = slug(prompt)
    assert 0 < len(name) <= 40
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert slug(name) == name
