"""Times, peaks and records belong to the device that was measured: GPUs are stood in for here."""

import json
from types import SimpleNamespace

import pytest
import torch

from koala_nb.core import files
from koala_nb.speed import latency, timing


@pytest.fixture
def used(monkeypatch):
    """The GPU, of two, that each call of torch.cuda was on."""
    used, current = [], [0]

    class Device:
        def __init__(self, device):
            self.index = torch.device(device).index or 0

        def __enter__(self):
            self.before, current[0] = current[0], self.index

        def __exit__(self, *_):
            current[0] = self.before

    def note(value=None):
        return lambda *_: (used.append(current[0]), value)[1]

    event = SimpleNamespace(record=note(), elapsed_time=lambda _: 2000.0)
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: event)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, note())
    monkeypatch.setattr(torch.cuda, "memory_allocated", note(1e9))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", note(4e9))
    return used


@pytest.mark.parametrize(("device", "index"), [("cuda", 0), ("cuda:1", 1)])
def test_times_and_peaks_are_of_the_gpu_that_is_asked_for(used, device, index):
    assert timing.seconds_of(lambda: None, device) == 2
    assert timing.peak_gb(lambda: None, device) == 3
    assert len(used) == 8 and set(used) == {index}


def test_apples_gpu_has_ended_its_work_when_the_clock_stops(monkeypatch):
    order = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: order.append("wait"))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: order.append("clock") or 0.0)
    timing.seconds_of(lambda: order.append("call"), "mps")
    assert order == ["wait", "clock", "call", "wait", "clock"]


def test_a_call_that_runs_out_of_memory_later_is_a_result_too():
    calls = []

    def scarce():
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    found = timing.take_turns({"a": lambda: None, "b": scarce}, 4)
    assert [len(values) for values in found.values()] == [4, 0] and len(calls) == 3


def test_a_result_names_the_device_that_was_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    for device, name in (("cpu", "CPU "), ("cuda:1", "GPU 1"), (None, "GPU None")):
        assert files.environment(device)["device"].startswith(name)
        file = timing.write_result("a", [], {}, tmp_path, device)
        assert json.loads(file.read_text())["environment"]["device"].startswith(name)


class Stop(Exception):
    pass


def test_a_limit_of_memory_is_of_one_system(monkeypatch, capsys):
    limits = []

    def stop(*_):
        raise Stop

    properties = SimpleNamespace(total_memory=8e9)
    monkeypatch.setattr(latency, "pick_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(latency, "parts_of", stop)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda *given: limits.append(given)
    )
    with pytest.raises(Stop):
        latency.main(["--systems", "nano-koala", "--limit-gb", "2"])
    assert limits == [(0.25, None)]  # of the current device; torch takes no device without index
    with pytest.raises(SystemExit):
        latency.main(["--systems", "nano-koala", "nano-sdxl", "--limit-gb", "2"])
    assert "give one system" in capsys.readouterr().err
