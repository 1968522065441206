"""Receipts: what is refused, what is kept, and what is shown."""

import copy
import json
from pathlib import Path

import pytest

from koala_nb import cli
from koala_nb.report import receipts

# Made up for these tests: no measurement.
GOOD = {
    "model": {
        "system": "koala-lightning-700m",
        "source": "etri-vilab/koala-lightning-700m",
        "revision": "0123456789abcdef0123456789abcdef01234567",
        "device": "cuda",
    },
    "banner": None,
    "environment": {
        "koala_nb": "0.1.0",
        "python": "3.11.9",
        "torch": "2.13.0",
        "diffusers": "0.40.0",
        "platform": "Linux",
        "device": "Test GPU <1>",
    },
    "sections": {
        "latency": {
            "estimates": [{"name": "seconds", "value": 2.0, "low": 1.5, "high": 2.5, "n": 8}]
        }
    },
    "key_figures": {"seconds": {"value": 2.0, "low": 1.5, "high": 2.5, "n": 8}},
}


@pytest.fixture(autouse=True)
def own_data(tmp_path, monkeypatch):
    """No test writes to the project's receipts."""
    monkeypatch.setenv("KOALA_NB_DATA", str(tmp_path / "data"))


@pytest.fixture
def schema(tmp_path):
    """Requires what every results.json has, so that these tests know which sentence is whose."""
    file = tmp_path / "schema.json"
    needed = {"type": "object", "required": ["model", "environment"]}
    file.write_text(json.dumps(needed))
    return file


@pytest.fixture
def write(tmp_path):
    def write(*changes):
        found = copy.deepcopy(GOOD)
        for path, value in changes:
            *parents, last = path.split(".")
            part = found
            for name in parents:
                part = part[int(name) if isinstance(part, list) else name]
            part[last] = value
        file = tmp_path / "results.json"
        file.write_text(json.dumps(found))
        return file

    return write


ESTIMATE = "sections.latency.estimates.0"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("model.system", "my-model", "model.system is 'my-model'"),
        ("model.system", "nano-koala", "an embedded model"),
        ("model.source", "someone/else", "load koala-lightning-700m from etri-vilab"),
        ("model.revision", "weights-0011", "so that it is a commit"),
        ("model.revision", None, "so that it is a commit"),
        ("model.device", "", "model.device is missing"),
        ("banner", "Embedded", "banner is set"),
        ("sections", {}, None),
        (f"{ESTIMATE}.low", 2.1, "latency, seconds: the interval 2.1 to 2.5 does not hold"),
        (f"{ESTIMATE}.high", 1.9, "does not hold its value 2.0"),
        (f"{ESTIMATE}.value", float("nan"), "must be finite numbers"),
        (f"{ESTIMATE}.value", "2", "must be finite numbers"),
        (f"{ESTIMATE}.high", 10**400, "must be finite numbers"),
        ("seconds_per_image", float("nan"), "$.seconds_per_image is nan"),
        ("environment.device", 5, "environment.device is missing"),
        ("notes", ["see /scratch/ann"], "$.notes.0 holds a path"),
        (f"{ESTIMATE}.n", 0, "n is 0: give the number"),
        (f"{ESTIMATE}.n", True, "n is True: give the number"),
        ("key_figures.seconds.n", 9, "key_figures, seconds: n is 9, elsewhere 8"),
        ("environment.torch", None, "environment.torch is missing"),
        ("environment.device", "", "environment.device is missing"),
        ("environment.hostname", "lab-7", "names the host"),
        ("files", {"page": "/home/ann/index.html"}, "$.files.page holds a path"),
        ("notes", ["see C:\\Users\\ann"], "$.notes.0 holds a path"),
    ],
)
def test_each_problem_has_one_line(write, schema, path, value, words):
    wrong = receipts.problems(write((path, value)), schema)
    if words is None:  # the flat key figures are still there
        assert wrong == []
        return
    assert any(words in line for line in wrong), wrong
    assert all("\n" not in line for line in wrong)


def test_nothing_measured_is_no_receipt(write, schema):
    wrong = receipts.problems(write(("sections", {}), ("key_figures", {})), schema)
    assert len(wrong) == 1 and "nothing measured" in wrong[0]


def test_a_good_one_has_no_problem_and_links_are_no_paths(write, schema):
    assert receipts.problems(write(("source", "https://example.org/data/x")), schema) == []


def test_the_schema_is_asked(write, schema):
    schema.write_text('{"required": ["claims"]}')
    assert receipts.problems(write(), schema) == ["$: 'claims' is a required property"]
    schema.write_text('{"type": "no such type"}')
    with pytest.raises(ValueError, match="schema is not valid"):
        receipts.problems(write(), schema)


def test_parts_of_another_type_do_not_crash(tmp_path, schema):
    file = tmp_path / "r.json"
    file.write_text('{"model": [], "environment": 3, "sections": {"a": 1}, "key_figures": "x"}')
    assert len(receipts.problems(file, schema)) > 5


def test_add_keeps_rows_and_table_show(write, schema, capsys):
    assert receipts.rows().empty and list(receipts.rows()) == list(receipts.COLUMNS)
    assert "To submit one" in receipts.table("latency").data
    command = ["receipt", "add", str(write()), "--against", str(schema)]
    assert cli.main(command) == 0
    kept = list(receipts.folder().iterdir())
    assert len(kept) == 1 and kept[0].name.startswith("koala-lightning-700m-test-gpu-1-20")
    assert json.loads(kept[0].read_text()) == GOOD
    assert receipts.read("sdxl-base") == {} and len(receipts.read("koala-lightning-700m")) == 1
    assert receipts.rows("seconds").n.tolist() == [8] and receipts.rows("other").empty
    shown = receipts.table("latency").data
    assert "<table>" in shown and "Test GPU &lt;1&gt;" in shown and "2.5" in shown
    assert "To submit one" in receipts.table("demographics").data
    assert cli.main(command) == 2 and "is there already" in capsys.readouterr().err


def test_the_command_prints_problems_and_its_exit_code(write, schema, capsys, tmp_path):
    bad = write(("banner", "x"), ("model.revision", None))
    with pytest.raises(SystemExit) as ended:
        cli.main(["receipt", "check", str(bad), "--against", str(schema)])
    assert ended.value.code == 1 and capsys.readouterr().out.count("\n") == 2
    assert cli.main(["receipt", "check", str(write()), "--against", str(schema)]) == 0
    assert cli.main(["receipt", "check", str(tmp_path / "absent.json")]) == 2
    write(("banner", "x"))
    assert cli.main(["receipt", "add", str(bad), "--against", str(schema)]) == 2
    assert not receipts.folder().exists()
    assert capsys.readouterr().err.count("\n") == 2


def test_every_submitted_receipt_is_valid():
    real = Path(__file__).resolve().parent.parent / "data" / "results" / "real"
    assert (real / "README.md").is_file()
    for file in real.glob("*.json"):
        assert receipts.problems(file) == [], file.name
