"""The command line: what it prints, what it refuses, and how it ends."""

import json
import os
import subprocess
import sys

import nbformat
import pytest
import torch
from hub_layout import COMMIT

import koala_nb as kn
from koala_nb import cli
from koala_nb.core import catalog

HEAVY = ("torch", "diffusers", "pandas", "matplotlib", "papermill", "IPython", "numpy", "PIL")


def call(*arguments, cwd=None, env=None):
    command = [sys.executable, "-m", "koala_nb", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=120)


def test_import_and_help_load_nothing_heavy():
    code = (
        "import sys, koala_nb\n"
        "assert 'generate' in dir(koala_nb) and callable(koala_nb.find)\n"
        "from koala_nb import cli\n"
        "cli.main(['--help'])\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr
    for command in ("systems", "generate", "report", "train", "evaluate"):
        assert command in done.stdout


def test_systems_prints_the_catalogue(capsys):
    assert cli.main(["systems"]) == 0
    printed = capsys.readouterr().out
    assert "etri-vilab/koala-lightning-700m" in printed and "nano-koala" in printed


def test_generate_draws_into_a_folder_and_resumes(capsys, snapshot, tmp_path):
    arguments = ["generate", str(snapshot), "a koala", "a dog", "--seeds", "2", "--seed", "5"]
    arguments += ["--steps", "2", "--size", "64", "--out", str(tmp_path / "drawn")]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.startswith("4 images in ")
    images = sorted((tmp_path / "drawn" / "images").glob("*.png"))
    assert [image.stem[-2:] for image in images] == ["-5", "-6", "-5", "-6"]
    before = [image.stat().st_mtime_ns for image in images]
    assert cli.main(arguments) == 0
    assert [image.stat().st_mtime_ns for image in images] == before
    assert cli.main([*arguments, "--steps", "3"]) == 2
    assert "steps was 2, now 3" in capsys.readouterr().err


def test_the_version_is_printed(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"koala-nb {kn.__version__}\n"


OPTIONS = ["--revision", COMMIT, "--device", "cpu", "--dtype", "bfloat16", "--offload", "none"]


@pytest.mark.parametrize("workers", ["0", pytest.param("1", marks=pytest.mark.long)])
def test_options_of_real_runs_reach_the_pipeline(hub_home, tmp_path, workers):
    drawing = ["--negative-prompt", "ugly", "--batch-size", "2", "--steps", "1", "--size", "64"]
    command = ["generate", "koala-lightning-700m", "a koala", "--seeds", "2", *drawing, *OPTIONS]
    env = {**os.environ, "HF_HOME": str(hub_home), "HF_HUB_OFFLINE": "1"}
    done = call(*command, "--workers", workers, "--out", "run", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert (settings["revision"], settings["dtype"]) == (COMMIT, "bfloat16")
    assert (settings["negative_prompt"], settings["batch_size"]) == ("ugly", 2)
    done = call(*command, "--offload", "model", "--out", "other", cwd=tmp_path, env=env)
    assert done.returncode == 2 and "offload='model' needs a CUDA device" in done.stderr


def test_options_of_real_runs_are_parameters_of_a_report(tmp_path):
    names = ("revision", "device", "dtype", "offload", "negative_prompt")
    declared = [f'{name}: str = ""' for name in names] + ["batch_size: int = 0"]
    notebook(tmp_path / "some.ipynb", "\n".join(declared), f"print({', '.join(names)}, batch_size)")
    nb = json.loads((tmp_path / "some.ipynb").read_text())
    nb["cells"][0]["metadata"]["tags"] = ["parameters"]
    (tmp_path / "some.ipynb").write_text(json.dumps(nb))
    given = [*OPTIONS, "--negative-prompt", "ugly", "--batch-size", "3"]
    done = call("report", "some.ipynb", *given, "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (page,) = tmp_path.glob("out/*/index.html")
    assert f"{COMMIT} cpu bfloat16 none ugly 3" in page.read_text()
    notebook(tmp_path / "other.ipynb", "1")
    done = call("report", "other.ipynb", "--revision", COMMIT, cwd=tmp_path)
    assert done.returncode == 2 and "other has no parameter 'revision'." in done.stderr


# As a kernel does that logs when its sockets are closed; under pytest ipykernel does not watch it.
PRINT_PAST_THE_NOTEBOOK = "import os\nos.write(2, b'Traceback of the kernel')"


def notebook(path, *cells):
    code = [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=code), path)


def test_a_report_that_fails_ends_with_exit_code_1(tmp_path):
    notebook(tmp_path / "broken.ipynb", PRINT_PAST_THE_NOTEBOOK, "raise RuntimeError('broken')")
    done = call("report", "broken.ipynb", "--out", "out", cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert "broken failed at cell 2: RuntimeError: broken" in done.stderr
    assert "Traceback" not in done.stderr
    (status,) = tmp_path.glob("out/*/status.json")
    assert json.loads(status.read_text())["state"] == "failed"


def test_what_a_dead_kernel_printed_is_printed(tmp_path):
    notebook(tmp_path / "dead.ipynb", PRINT_PAST_THE_NOTEBOOK, "os._exit(1)")
    done = call("report", "dead.ipynb", "--out", "out", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback of the kernel" in done.stderr


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_running_out_of_memory_is_one_sentence(monkeypatch, capsys, error):
    def scarce():
        raise error

    monkeypatch.setattr(catalog, "systems", scarce)
    assert cli.main(["systems"]) == 2
    said = capsys.readouterr().err
    assert "memory ran out: give a smaller --size" in said and said.count("\n") == 1


def test_a_programming_error_keeps_its_traceback(monkeypatch):
    def broken():
        raise KeyError("a bug")

    monkeypatch.setattr(catalog, "systems", broken)
    with pytest.raises(KeyError):
        cli.main(["systems"])
