"""The same images in less time and memory."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from koala_nb import generate
from koala_nb.generation.generate import SmallerBatches, cpu_kernels
from koala_nb.speed import roofline

SMALL = {"height": 64, "width": 64, "steps": 3, "guidance": 3.5, "progress": False}


def test_cpu_kernels_change_rounding_alone_and_are_given_back(loaded):
    inputs = roofline.inputs_like(loaded.unet, 8, 2, 77, "cpu", torch.float32)
    linear = [m for m in loaded.unet.modules() if type(m) is torch.nn.Linear]
    with torch.no_grad():
        before = loaded.unet(**inputs)[0]
        with cpu_kernels(loaded):
            replaced = ["forward" in vars(m) for m in linear]
            within = loaded.unet(**inputs)[0]
        after = loaded.unet(**inputs)[0]
    assert torch.allclose(before, within, atol=1e-5) and torch.equal(before, after)
    assert not any("forward" in vars(m) for m in linear)
    assert any(replaced) == (
        torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
    with cpu_kernels(loaded):
        assert loaded.unet(**inputs)[0].requires_grad  # gradients are not lost


@settings(max_examples=10)
@given(st.integers(1, 40), st.integers(1, 40))
def test_halving_draws_everything_in_order(images, room):
    tried = []

    def draw(batch):
        tried.append(len(batch))
        if len(batch) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [2 * i for i in batch]

    halving = SmallerBatches(draw)
    assert halving(range(images)) == [2 * i for i in range(images)]
    assert (halving.limit is None) == (images <= room)
    failed = len([n for n in tried if n > room])
    assert halving(range(images)) == [2 * i for i in range(images)]
    assert len([n for n in tried if n > room]) == failed  # what failed once is not tried again


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), RuntimeError("out of memory")])
def test_other_errors_and_single_images_are_not_halved(error):
    def draw(batch):
        raise error

    with pytest.raises(RuntimeError, match=str(error)):
        SmallerBatches(draw)(range(1 if "memory" in str(error) else 4))


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
