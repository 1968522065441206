"""The download itself, from a small server that answers as the hub does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub_layout import COMMIT, FOREIGN, NOT_NEEDED, REPOSITORY

ROOT = Path(__file__).resolve().parent.parent


def run_online(command, address, home):
    env = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_HUB_CACHE")}
    env |= {"HF_ENDPOINT": address, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    env |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "NO_PROXY": "127.0.0.1"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    options = {"env": env, "cwd": home, "capture_output": True, "text": True, "timeout": 120}
    return subprocess.run(command, shell=isinstance(command, str), **options)


def load_online(address, home, name="koala-lightning-700m"):
    code = (
        "import koala_nb, sys; p = koala_nb.load(sys.argv[1]);"
        "print(p.model_info.source, p.model_info.revision, p.model_info.variant)"
    )
    return run_online([sys.executable, "-c", code, name], address, home)


def test_only_what_is_needed_is_fetched_and_found_offline(hub_server, tmp_path, python_offline):
    address, fetched = hub_server
    done = load_online(address, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [REPOSITORY, COMMIT, "fp16"]
    assert not set(fetched) & set(NOT_NEEDED)
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in fetched
    assert len(fetched) == len(set(fetched))  # each once
    offline = "import koala_nb; print(koala_nb.load('koala-lightning-700m').model_info.revision)"
    done = python_offline(offline, home=tmp_path)
    assert done.stdout.strip() == COMMIT, done.stderr


@pytest.mark.parametrize("revision", [None, pytest.param(COMMIT, marks=pytest.mark.long)])
def test_what_the_command_fetches_loads_offline(hub_server, tmp_path, python_offline, revision):
    address, fetched = hub_server
    load = f"import koala_nb; print(koala_nb.load('koala-lightning-700m', revision={revision!r})"
    load += ".model_info.revision)"
    refusal = python_offline(load, home=tmp_path).stderr
    (command,) = re.findall("run `(.+?)`", refusal)
    fetched.clear()
    done = run_online(command, address, tmp_path)
    assert done.returncode == 0, done.stderr
    assert fetched and not set(fetched) & set(NOT_NEEDED)
    done = python_offline(load, home=tmp_path)
    assert done.stdout.strip() == COMMIT, done.stderr


def test_an_unreachable_hub_falls_back_to_the_cache(hub_home, tmp_path):
    nobody = "http://127.0.0.1:9"
    done = load_online(nobody, hub_home)
    assert done.stdout.split() == [REPOSITORY, COMMIT, "fp16"], done.stderr
    done = load_online(nobody, tmp_path)
    assert "the hub cannot be reached: with a network run `hf download" in done.stderr


def test_an_unknown_repository_is_named(hub_server, tmp_path):
    done = load_online(hub_server[0], tmp_path, "someone/nothing")
    last = done.stderr.strip().splitlines()[-1]
    assert "The hub has no diffusers pipeline someone/nothing: check the spelling" in last


def test_another_family_is_refused_before_its_weights_are_fetched(hub_server, tmp_path):
    address, fetched = hub_server
    fetched.clear()
    done = load_online(address, tmp_path, FOREIGN)
    assert "another/flux is a 'FluxPipeline': this is no SDXL-type" in done.stderr.splitlines()[-1]
    assert set(fetched) == {"model_index.json"}
