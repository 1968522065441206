"""Sweeps: checked before they run, isolated failures, resumed, compared pair by pair."""

import json
import re
import subprocess
import sys
import threading
from contextlib import ExitStack

import nbformat
import pandas as pd
import pytest
import yaml

from koala_nb.core import files
from koala_nb.report import run as reports
from koala_nb.report import sweep as sweeps
from koala_nb.stats import estimates

PARAMETERS = 'model: str = "nano-koala"\nsteps: int = 4\nscale: float = 1.0'
# Each run counts its starts, then fails or writes key figures of two prompts x three seeds.
CODE = """
import pathlib, time, zlib
from koala_nb.core import files
from koala_nb.report import run as reports

folder = reports.run_folder()
with open(folder.parents[1] / f"starts-{model.split('/')[-1]}-{steps}", "a") as file:
    file.write("x")
if model == "sdxl-turbo" and steps == 8 and not pathlib.Path("mended").exists():
    raise RuntimeError("no <weights> here")
rows = ["section,measure,prompt,seed,value"]
for prompt in "ab":
    for seed in range(3):
        value = zlib.crc32(f"{model} {steps} {prompt} {seed}".encode()) % 97
        rows.append(f"sense,bright,{prompt},{seed},{value}")
(folder / "key_images.csv").write_text("\\n".join(rows))
files.write_json(folder / "results.json",
    {"banner": "Embedded" if model.startswith("nano") else None,
     "key_figures": {"bright <b>": {"value": 0.5, "low": 0.25, "high": 0.75, "n": 6}}})
"""
SWEEP = {"grid": {"model": ["nano-koala", "nano-sdxl", "sdxl-turbo"], "steps": [4, 8]}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a tiny notebook `tiny.ipynb`, and `sweep.yaml` as above."""
    new = nbformat.v4
    book = new.new_notebook(cells=[new.new_code_cell(PARAMETERS), new.new_code_cell(CODE)])
    book.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(book, tmp_path / "tiny.ipynb")
    write(tmp_path, SWEEP)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, content):
    text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    (folder / "sweep.yaml").write_text(text)


def starts(folder):
    return {p.name[7:]: len(p.read_text()) for p in (folder / "out").glob("starts-*")}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"grid": {"stepz": [1]}}, ["run 1 (stepz 1)", "Did you mean 'steps'"]),
        ({"grid": {"steps": [4, "8"]}}, ["run 2 (steps '8')", "type int"]),
        ({"grid": {"steps": [4]}, "runs": [{"model": "nano-koalla"}]}, ["run 2", "nano-koala"]),
        ({"grid": {"steps": []}}, ["steps in the grid is empty"]),
        ({"grid": {"steps": 4}}, ["grid, steps", "list"]),
        ({"grid": {"steps": [4, 4]}}, ["run 2 (steps 4)", "the same as run 1"]),
        ({"runs": [{"steps": 4}, {}]}, ["run 2 ()", "the same as run 1"]),
        ({"parameters": {"steps": 4}}, ["no run"]),
        ({"parameters": {"steps": 4}, "grid": {"steps": [1]}}, ["steps", "one value"]),
        ({"gird": {"steps": [4]}}, ["gird is", "`grid: {name: [values]}`"]),
        ({"runs": [4]}, ["runs, 0 is 4", "dict"]),
        ({"runs": 3}, ["runs is 3", "list"]),
        ({"grid": {"steps": [1]}, "runs": None}, ["runs is None", "list"]),
        ({"grid": {"scale": [float("inf")]}}, ["run 1", "'scale' is inf"]),
        ({"grid": {4: [4]}}, ["grid, 4", "string"]),
        ({"grid": {"steps": [4]}, "workers": 0}, ["workers is 0"]),
        ({"grid": {"scale": [2]}, "runs": [{"scale": 2.0}]}, ["run 2", "the same as run 1"]),
        ({"grid": {n: [*range(100)] for n in "abcde"}}, ["10,000,000,000 runs: at most 10,000"]),
        ("grid: [", ["line 1", "not YAML"]),
        ("", ["the file is None", "grid"]),
    ],
)
def test_a_bad_file_stops_before_anything_runs(folder, content, words):
    write(folder, content)
    with pytest.raises(ValueError) as error:
        sweeps.run_sweep("tiny.ipynb", "sweep.yaml", out="out")
    assert all(word in str(error.value) for word in ["sweep.yaml", *words]), error.value
    assert "\n" not in str(error.value) and not (folder / "out").exists()


def test_values_of_the_command_line_hold_for_all_runs(folder):
    write(folder, {"parameters": {"scale": 3}, "grid": {"steps": [4, 8]}, "workers": 2})
    found, workers = sweeps.read(folder / "tiny.ipynb", folder / "sweep.yaml", {"scale": "2"})
    assert workers == 2
    assert found == [{"model": "nano-koala", "steps": s, "scale": 2.0} for s in (4, 8)]
    with pytest.raises(ValueError, match="one value for all runs"):
        sweeps.read(folder / "tiny.ipynb", folder / "sweep.yaml", {"steps": "2"})
    write(folder, {"runs": [{"steps": 8}]})
    with pytest.raises(ValueError, match="-p"):
        sweeps.read(folder / "tiny.ipynb", folder / "sweep.yaml", {"steps": "2"})


def test_a_failing_run_is_isolated_and_only_it_runs_again(folder):
    write(folder, SWEEP | {"workers": 2})
    command = [sys.executable, "-m", "koala_nb", "report", "tiny.ipynb"]
    command += ["--sweep", "sweep.yaml", "--out", "out"]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 1 and "1 of the sweep's runs failed" in told.stderr, told.stderr
    (page,) = (folder / "out").glob("sweep-*/index.html")
    content = json.loads((page.parent / "sweep.json").read_text())
    assert [run["state"] for run in content["runs"]] == ["done"] * 5 + ["failed"]
    assert content["counts"] == {"done": 5, "failed": 1, "waiting": 0}
    assert content["runs"][5]["failed_at"] == "cell 2"
    text = page.read_text("utf-8")
    assert "RuntimeError: no &lt;weights&gt; here" in text and "<weights>" not in text
    links = re.findall(r'href="(\.\./[^"]+)"', text)
    assert len(links) == 5 and all((page.parent / link).is_file() for link in links)
    assert_comparisons(content["comparisons"])
    (folder / "mended").touch()
    again, failed = sweeps.run_sweep("tiny.ipynb", "sweep.yaml", out="out")
    assert (again, failed) == (page, 0)
    assert starts(folder)["sdxl-turbo-8"] == 2
    assert {n for name, n in starts(folder).items() if name != "sdxl-turbo-8"} == {1}


def assert_comparisons(rows):
    """Two models always, the third only at 4 steps: 4 comparisons and 2 without a run."""
    assert len(rows) == 6
    without = [row["why"] for row in rows if not row["n"]]
    assert without == ["no pairs: run 6 is failed"] * 2
    tested = [row for row in rows if row["n"]]
    assert all((row["n"], row["prompts"]) == (6, 2) for row in tested)
    holm = estimates.adjust_pvalues([row["p"] for row in tested])
    assert [row["p_holm"] for row in tested] == pytest.approx(holm)


def images(*rows):
    return pd.DataFrame(rows, columns=[*sweeps.PAIR, "value"])


def test_a_folder_taken_while_a_run_loads_is_waited_for(folder, monkeypatch):
    write(folder, {"grid": {"steps": [4]}})
    call, codes, survivor = sweeps._call, [], ExitStack()

    def taken_once(command):
        if not codes:  # a process of a sweep that was killed is the first to lock the folder
            (values,), _ = sweeps.read(folder / "tiny.ipynb", folder / "sweep.yaml", {})
            taken = reports.folder_of(folder / "tiny.ipynb", values, "out")
            survivor.enter_context(files.locked(taken))
            files.write_json(taken / reports.STATUS, {"state": "running"})
        codes.append(call(command)[0])
        if len(codes) == 1:
            threading.Timer(2, survivor.close).start()
        return codes[-1], ["?"]

    monkeypatch.setattr(sweeps, "_call", taken_once)
    assert sweeps.run_sweep("tiny.ipynb", "sweep.yaml", out="out")[1] == 0
    assert codes == [2, 0] and starts(folder) == {"nano-koala-4": 1}


def test_differences_are_paired_by_prompt_and_seed():
    seeds = [("s", "m", p, str(i)) for p in "abcd" for i in range(2)]
    first = images(*((*k, float(i)) for i, k in enumerate(seeds)), ("s", "only", "a", "0", 1.0))
    # The same images in another order, each lower by 1, 2, 3 or 4 by its prompt; one is missing.
    second = images(*((*k, i - 1.0 - i // 2) for i, k in reversed(list(enumerate(seeds)))))
    row, alone = sweeps.differences(first, second)
    expected = estimates.mean_interval([1.0, 2.0, 3.0, 4.0])
    assert row["value"] == pytest.approx(2.5) and (row["n"], row["prompts"]) == (8, 4)
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    assert row["p"] == pytest.approx(0.125)  # 2 of the 16 signs of four prompts
    assert alone["n"] == 0 and "no pairs" in alone["why"]
    assert sweeps.differences(first, second.iloc[1:])[0]["n"] == 7


def test_pairs_that_are_all_alike_have_no_interval():
    both = images(("s", "m", "a", "0", 1.0), ("s", "m", "b", "0", 1.0))
    (row,) = sweeps.differences(both, both)
    assert (row["value"], row["low"], row["p"], row["n"]) == (0.0, None, None, 2)


def test_the_largest_difference_is_the_surest():
    sides = [images(*(("s", "m", f"prompt {k}", "0", v) for k in range(24))) for v in (1.0, 0.0)]
    (row,) = sweeps.differences(*sides)
    assert (row["value"], row["low"]) == (1.0, None) and row["p"] < 0.0002


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", '{"key_figures": {"a": 0.5}}', '{"key_figures": [1]}', '{"key_figures": null}'],
)
def test_results_of_other_notebooks_stop_no_sweep(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    assert sweeps._results(tmp_path)["key_figures"] == {}


def test_numbers_that_are_none_are_unknown_and_empty_texts_are_left_out(tmp_path):
    values = {"model": "nano-koala", "prompts_file": "", "steps": 4}
    assert sweeps._setting(values, [*values]) == "model nano-koala, steps 4"
    (tmp_path / "results.json").write_text('{"key_figures": {"a": {"value": NaN, "n": 3}}}')
    assert sweeps._results(tmp_path)["key_figures"] == {"a": {"value": None, "n": 3}}
    (tmp_path / "key_images.csv").write_text("section,measure,prompt,seed,value\ns,m,a,0,inf\n")
    with pytest.raises(ValueError, match="a value is not finite"):
        sweeps.read_images(tmp_path)


def test_another_notebook_of_the_same_name_is_another_run(folder):
    path, values = folder / "tiny.ipynb", {"model": "nano-koala"}
    before = reports.folder_of(path, values)
    book = nbformat.read(path, 4)
    nbformat.write(book, path)
    assert reports.folder_of(path, values) == before
    book.cells[1].source += "\nprint()"
    nbformat.write(book, path)
    assert reports.folder_of(path, values) != before


@pytest.mark.parametrize(
    ("text", "words"), [("section,measure,prompt,seed\n", "no column value"), ("", "No columns")]
)
def test_a_foreign_file_of_images_is_named(tmp_path, text, words):
    (tmp_path / "key_images.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        sweeps.read_images(tmp_path)


def test_yes_no_and_what_was_not_asked(tmp_path):
    (tmp_path / "key_images.csv").write_text(
        "section,measure,prompt,seed,value\ns,m,a,0,True\ns,m,a,1,False\ns,m,a,2,\ns,m,NA,0,1\n"
    )
    assert sweeps.read_images(tmp_path).value.tolist() == [1.0, 0.0, 1.0]
