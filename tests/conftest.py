import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# No time limit a case: machines under load are slow, not wrong.
settings.register_profile("unhurried", deadline=None, max_examples=60)
settings.load_profile("unhurried")

TOKENS = ("bos", "eos", "pad")
ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--browser=all`: every page in the browser, not three."""
    parser.addoption("--browser", choices=("three", "all"), default="three")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let nbval run the solution of each exercise after it."""
    from solutions import with_solutions

    items[:] = with_solutions(items)


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers for each test, alone and among others."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium that reaches nothing but this machine."""
    from browsing import chromium

    found = chromium()
    yield found
    found.quit()


@pytest.fixture(scope="session")
def hub_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of the hub whose cache holds a tiny KOALA-Lightning-700M. Leave it as it is."""
    from hub_layout import write_hub_layout

    home = tmp_path_factory.mktemp("hf_home")
    write_hub_layout(home)
    return home


@pytest.fixture(scope="session")
def snapshot(hub_home: Path) -> Path:
    """The tiny KOALA's folder. Copy it before changing anything."""
    return next(hub_home.glob("hub/*/snapshots/*"))


@pytest.fixture(scope="session")
def hub_server(snapshot: Path):
    """(address, list of the paths that were fetched) of a hub with the tiny KOALA."""
    from hub_layout import serve_hub

    with serve_hub(snapshot) as served:
        yield served


@pytest.fixture(scope="session")
def loaded(snapshot: Path):
    """The tiny KOALA's pipeline on the CPU in float32. Leave it as it is."""
    import koala_nb

    return koala_nb.load(snapshot, device="cpu")


@pytest.fixture(scope="session")
def pipe():
    """The pipeline of nano-koala on the CPU. Leave it as it is."""
    import koala_nb

    return koala_nb.load("nano-koala", device="cpu")


@pytest.fixture(scope="session")
def clip_folder(snapshot: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with random weights, as a folder of transformers."""
    import torch
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

    folder = tmp_path_factory.mktemp("clip") / "tiny-clip"
    tokenizer = AutoTokenizer.from_pretrained(snapshot / "tokenizer")
    layer = {"hidden_size": 16, "intermediate_size": 16}
    layer |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in TOKENS}
    config = CLIPConfig(
        text_config={**layer, **special, "vocab_size": len(tokenizer)},
        vision_config={**layer, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


@pytest.fixture
def fresh(tmp_path: Path):
    """A tiny KOALA of a test's own, to change."""
    from hub_layout import tiny_pipeline

    pipe = tiny_pipeline(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def one_thread():
    """One thread of torch: a fork does not carry a pool of threads along."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def instruments():
    """The detector and the quality scorer of the emoji world, with nano-koala's eyes."""
    from koala_nb.nano import detector_card

    return detector_card.instruments("nano-koala")


@pytest.fixture
def hub_cache(hub_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes this process see the tiny hub's cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub_home / "hub"))
    return hub_home / "hub"


@pytest.fixture(scope="session")
def python_offline(hub_home: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python code in a fresh process with HF_HUB_OFFLINE=1 and the tiny hub's cache."""

    def run(code: str, *arguments: object, home: Path = hub_home):
        paths = [str(ROOT), str(ROOT / "tests")]
        env = {
            **os.environ,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(paths),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
            env.pop(name, None)
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)

    return run
