"""The package installed as a wheel, away from the checkout, without what notebooks need."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest
from hub_layout import COMMIT

pytestmark = pytest.mark.long
ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
# What only the extras `notebooks` and `lab` bring.
EXTRA = ("ipykernel", "ipywidgets", "jupyterlab", "jupyter_client", "latex2mathml", "nbclient")
EXTRA += ("nbconvert", "nbformat", "papermill")
BLOCK = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRA}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    for folder in ("koala_nb", "data/prompts", "data/reference", "data/results"):
        shutil.copytree(ROOT / folder, source / folder)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(source)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", *options, str(source)], check=True)
    (built,) = source.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """(an environment with the wheel, its site-packages): no checkout, no extras."""
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    names = {"base": str(home), "platbase": str(home)}
    packages = Path(sysconfig.get_path("purelib", "venv", names))
    python = Path(sysconfig.get_path("scripts", "venv", names)) / "python"
    install = ["--python", str(python), "install", "-q", "--no-index", "--no-deps", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    # Dependencies are those of this environment; its editable checkout is not among them.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    (packages / "sitecustomize.py").write_text(BLOCK)
    return home, packages


PROBE = """
import koala_nb as kn

pipe = kn.load("koala-lightning-700m", device="cpu")
probe = kn.probes.text
prompts, scorer = probe.prepare(pipe)
table = probe.measure(pipe, prompts.head(2), scorer, images=2, height=64, width=64, steps=1)
print(probe.save_results(pipe, table, scorer, {}))
"""


@pytest.fixture
def run(site, hub_home, tmp_path):
    def run(*arguments, program="koala-nb*", **variables):
        home, packages = site
        taken = ("PYTHONPATH", "KOALA_NB_DATA", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
        env = {k: v for k, v in os.environ.items() if k not in taken}
        env |= {"HF_HOME": str(hub_home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        env |= {"CUDA_VISIBLE_DEVICES": "", **variables}
        command = [str(next(home.glob(f"*/{program}"))), *map(str, arguments)]
        options = {"env": env, "cwd": tmp_path, "capture_output": True, "text": True}
        return subprocess.run(command, **options, timeout=600)

    return run


def test_the_wheel_holds_the_package_and_few_megabytes_of_data(wheel):
    entries = ZipFile(wheel).infolist()
    names = {entry.filename for entry in entries}
    package = {f.relative_to(ROOT).as_posix() for f in (ROOT / "koala_nb").rglob("*.*")}
    assert {f for f in package if "__pycache__" not in f} <= names
    data = [entry for entry in entries if entry.filename.startswith("koala_nb/data/")]
    assert sum(entry.file_size for entry in data) < 9_000_000
    for folder in ("prompts", "reference"):
        tables = [f for f in (ROOT / "data" / folder).iterdir() if f.is_file()]
        assert {f"koala_nb/data/{folder}/{f.name}" for f in tables} <= names
    audit = "koala_nb/data/reference/t2i_biasbench"
    assert {f"{audit}/{n}" for n in ("captions.csv", "words.csv", "findings.yaml")} <= names


def test_a_probe_runs_on_the_real_layout(run, site, tmp_path):
    before = sorted(site[1].rglob("*.csv"))
    done = run("-c", PROBE, program="python")
    assert done.returncode == 0, done.stderr
    result = tmp_path / "data" / "results" / "probe-text-koala-lightning-700m.json"
    assert json.loads(result.read_text())["revision"] == COMMIT
    assert sorted(site[1].rglob("*.csv")) == before  # nothing is written into the package


def test_tables_of_costs_travel_too(run):
    assert "records as Parquet" in run("plan").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("refresh",), "There are no notebooks in"),
        (("report", "01"), "There are no notebooks in"),
        (("report", NOTEBOOKS / "01_generate_images.ipynb"), "with the extra `notebooks`"),
        (("generate", "nano-koala", "a koala"), "set KOALA_NB_DATA to the checkout's data folder"),
    ],
)
def test_what_a_wheel_lacks_is_said_in_a_sentence(run, arguments, words):
    done = run(*arguments)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_embedded_models_come_from_a_checkout(run):
    arguments = ("generate", "nano-koala", "a koala", "--seeds", 1, "--steps", 1)
    done = run(*arguments, KOALA_NB_DATA=str(ROOT / "data"))
    assert done.returncode == 0 and "1 images in" in done.stdout, done.stderr
