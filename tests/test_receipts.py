"""Receipts: what is refused, what is kept, and what is shown."""

import copy
import hashlib
import json
from pathlib import Path

import pytest
from hub_layout import COMMIT

from koala_nb import cli
from koala_nb.report import results

FIGURE = {"label": "seconds", "value": 2.0, "low": 1.5, "high": 2.5, "n": 8}
# Made up for these tests: no measurement.
MODEL = {"system": "koala-lightning-700m", "source": "etri-vilab/koala-lightning-700m"}
MODEL |= {"revision": "0123456789abcdef" * 2 + "01234567", "variant": "fp16", "dtype": "float16"}
MODEL |= {"device": "cuda", "domain": "photographic", "notes": []}
MACHINE = {"koala_nb": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "diffusers": "0.40.0"}
MACHINE |= {"platform": "Linux", "device": "Test GPU <1>"}
WEIGHTS = b"what was downloaded"
TIMES = {"state": "measured", "n": 0, "estimates": [FIGURE | {"id": "latency.seconds"}]}
GOOD = {
    "schema_version": 2,
    "model": MODEL,
    "banner": None,
    "settings": {"seeds": [0], "n": 100},
    "environment": MACHINE,
    "prompts": [{"prompt": "a koala"}],
    "images": 8,
    "seconds_per_image": 2.0,
    "files": {"page": "index.html"},
    "sections": {"latency": TIMES | {"file": None}},
    "key_figures": {"latency.seconds": FIGURE},
    "claims": [],
    "summary": ["see https://example.org/data/x"],
}


@pytest.fixture(autouse=True)
def own_data(tmp_path, monkeypatch):
    """No test writes to real receipts or asks the hub; its cache holds weights of MODEL."""
    monkeypatch.setenv("KOALA_NB_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    write_cache(tmp_path / "hub", MODEL["revision"], hashlib.sha256(WEIGHTS).hexdigest())


def write_cache(home, revision, blob):
    place = home / "models--etri-vilab--koala-lightning-700m"
    (unet := place / "snapshots" / revision / "unet").mkdir(parents=True)
    (place / "blobs").mkdir(exist_ok=True)
    (place / "blobs" / blob).write_bytes(WEIGHTS)
    (unet / "diffusion_pytorch_model.fp16.safetensors").symlink_to(place / "blobs" / blob)


@pytest.fixture
def write(tmp_path):
    def write(*changes):
        content = copy.deepcopy(GOOD)
        for path, value in changes:
            *parents, last = path.split(".")
            part = content
            for name in parents:
                part = part[int(name) if isinstance(part, list) else name]
            part[last] = value
        file = tmp_path / "results.json"
        file.write_text(json.dumps(content))
        return file

    return write


ESTIMATE = "sections.latency.estimates.0"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("model.system", "my-model", "model.system is 'my-model'"),
        ("model.system", "nano-koala", "embedded models are"),
        ("model.source", "someone/else", "load koala-lightning-700m from etri-vilab"),
        ("model.revision", "weights-0011", "so that it is a commit"),
        ("model.revision", None, "so that it is a commit"),
        ("model.revision", "0" * 40, "is not confirmed: the hub cannot be reached, and its cache"),
        ("settings.n", 2, "settings.n is 2: measure 100 or more images per probe"),
        ("model.device", "", "model.device is missing"),
        ("banner", "Embedded", "banner is set"),
        (f"{ESTIMATE}.low", 2.1, "latency.seconds: the interval 2.1 to 2.5 does not hold"),
        (f"{ESTIMATE}.high", 1.9, "does not hold its value 2.0"),
        (f"{ESTIMATE}.value", float("nan"), f"$.{ESTIMATE}.value: Input should be a finite"),
        (f"{ESTIMATE}.value", "2", f"$.{ESTIMATE}.value: Input should be a valid number"),
        (f"{ESTIMATE}.high", 10**400, f"$.{ESTIMATE}.high: "),
        ("seconds_per_image", float("nan"), "$.seconds_per_image: "),
        ("environment.device", 5, "environment.device is missing"),
        ("model.notes", ["see /scratch/ann"], "$.model.notes.0 holds a path"),
        (f"{ESTIMATE}.n", 0, f"$.{ESTIMATE}.n: Input should be greater"),
        (f"{ESTIMATE}.n", True, f"$.{ESTIMATE}.n: Input should be a valid integer"),
        ("key_figures", {"latency.seconds": FIGURE | {"n": 9}}, "n is 9, elsewhere 8"),
        ("environment.torch", None, "environment.torch is missing"),
        ("environment.hostname", "lab-7", "names the host"),
        ("files", {"page": "/home/ann/index.html"}, "$.files.page holds a path"),
        ("model.notes", ["see C:\\Users\\ann"], "$.model.notes.0 holds a path"),
        ("surprise", 1, "$.surprise: Extra inputs"),
    ],
)
def test_each_problem_has_one_line(write, path, value, words):
    problems = results.receipt_problems(write((path, value)))
    assert any(words in line for line in problems), problems
    assert all("\n" not in line for line in problems)


def test_weights_that_no_hub_sent_confirm_no_revision(write, tmp_path):
    write_cache(tmp_path / "hub", "0" * 40, "named-otherwise")
    (problem,) = results.receipt_problems(write(("model.revision", "0" * 40)))
    assert "is not confirmed" in problem


def test_the_hub_itself_confirms_a_revision(write, hub_server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub_server[0])
    assert results.receipt_problems(write(("model.revision", COMMIT))) == []
    (problem,) = results.receipt_problems(write(("model.revision", "0" * 40)))
    assert problem.endswith("has no such commit on the hub.")


def test_nothing_measured_is_no_receipt(write):
    (problem,) = results.receipt_problems(write(("sections", {}), ("key_figures", {})))
    assert "nothing measured" in problem


def test_a_good_one_is_kept_and_read(write, capsys):
    assert results.receipt_problems(write()) == []
    assert results.receipts().empty and list(results.receipts()) == list(results.RECEIPT_COLUMNS)
    command = ["receipt", "add", str(write())]
    assert cli.main(command) == 0
    (kept,) = results.receipts_folder().iterdir()
    assert kept.name.startswith("koala-lightning-700m-test-gpu-1-20")
    assert json.loads(kept.read_text()) == GOOD
    assert results.receipts("latency").n.tolist() == [8] and results.receipts("text").empty
    assert cli.main(command) == 2 and "is there already" in capsys.readouterr().err


def test_the_command_prints_problems_and_its_exit_code(write, capsys, tmp_path):
    bad = str(write(("banner", "x"), ("model.revision", None)))
    assert cli.main(["receipt", "check", bad]) == 1
    assert capsys.readouterr().out.count("\n") == 2
    assert cli.main(["receipt", "add", bad]) == 2 and not results.receipts_folder().exists()
    assert cli.main(["receipt", "check", str(write())]) == 0
    assert cli.main(["receipt", "check", str(tmp_path / "absent.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def invalid(folder):
    """The problems of each receipt in a folder that has any."""
    problems = {file.name: results.receipt_problems(file) for file in folder.rglob("*.json")}
    return {name: found for name, found in problems.items() if found}


def test_every_submitted_receipt_is_valid(write):
    """None is submitted yet: the same look finds the damaged one among two others."""
    real = Path(__file__).resolve().parent.parent / "data" / "results" / "real"
    assert (real / "README.md").is_file()
    assert invalid(real) == {}
    folder = write().parent
    (folder / "good.json").write_text((folder / "results.json").read_text())
    assert invalid(folder) == {}
    write(("model.revision", None))
    assert list(invalid(folder)) == ["results.json"]
