"""The plan's arithmetic, its sources and its sentences; the speeds themselves are no test."""

import json
import shlex
from pathlib import Path

import pytest

from koala_nb import cli
from koala_nb.core import files
from koala_nb.core.card import LATENCY_FIGURE
from koala_nb.generation import shards
from koala_nb.speed import cost
from koala_nb.speed import records as benchmark_records

PAGE = Path(__file__).resolve().parent.parent / "docs" / "many_machines.md"
ROWS = [
    {"way": "write JSON lines", "count": 10, "seconds": 1.0, "bytes": 9000},
    {"way": "write JSON lines", "count": 1000, "seconds": 2.0, "bytes": 800_000},
    {"way": "write Parquet", "count": 1000, "seconds": 1.0, "bytes": 100_000},
    {"way": "read out of PNGs of noise", "count": 1, "seconds": 0.05, "bytes": 7, "size": 1024},
]
ROWS = [{**row, "low": row["seconds"] / 2, "high": 2 * row["seconds"], "n": 3} for row in ROWS]


@pytest.fixture
def records(tmp_path):
    return files.write_json(tmp_path / "benchmark-records.json", {"rows": ROWS})


def test_cost_of_many_gpus():
    rows = cost.cost(7200, 0.5, [1, 4], price=3.0)
    assert [row["hours"] for row in rows] == [4, 1]
    assert [row["GPU-hours"] for row in rows] == [4, 4]
    assert [row["price"] for row in rows] == [12, 12]
    assert [row["images/s"] for row in rows] == [0.5, 2]
    assert "price" not in cost.cost(1, 1.0, [1])[0]


def test_records_are_counted_at_the_largest_measured_number():
    rows = {row["way"]: row for row in cost.record_cost(1_800_000, 2.0, ROWS)}
    assert rows["write JSON lines"]["seconds"] == pytest.approx(3600)  # 2 ms each, not 0.1 s
    assert rows["write JSON lines"]["low"] == pytest.approx(1800)
    assert rows["write JSON lines"]["GPUs"] == pytest.approx(250)  # 500 a second, 2 a GPU
    assert rows["read out of PNGs of noise, 1024 px"]["GPUs"] == pytest.approx(10)


def test_the_plan_in_words(records, tmp_path, capsys):
    (tmp_path / "run" / "images" / "00000").mkdir(parents=True)
    for name, size in (("a", 1000), ("b", 3000)):
        (tmp_path / "run" / "images" / "00000" / f"{name}.png").write_bytes(b"x" * size)
    given = ["--images", "1000000", "--rate", "2", "--gpus", "1", "8", "--price", "1.5"]
    given += ["--records", str(records), "--run", str(tmp_path / "run")]
    assert cli.main(["plan", *given]) == 0
    said = capsys.readouterr().out
    assert "1,000,000 images at 2.00 images/s a GPU (as given)" in said
    lines = [line.split() for line in said.splitlines()]
    assert ["1", "2", "139", "139", "208"] in lines and ["8", "16", "17.4", "139", "208"] in lines
    assert "2.0 GB of images at 2,000 bytes, the mean of 2 in" in said
    assert "0.80 GB of records as JSON lines, 800 bytes each" in said
    assert "0.10 GB of records as Parquet, 100 bytes each" in said
    assert "From 10 GPUs on, by what the pictures show, one process needs longer" in said


def test_the_rate_of_a_benchmark_and_the_published_one(records, tmp_path, capsys):
    rows = [{"way": "koala_nb.generate", "images_a_second": speed} for speed in (3.0, 4.0)]
    rows.append({"way": "bfloat16", "images_a_second": 9.0})
    file = files.write_json(tmp_path / "benchmark-generation-x.json", {"rows": rows})
    given = ["--records", str(records), "--gpus", "1"]
    cost.main([*given, "--benchmark", str(file)])
    assert "4.00 images/s a GPU (benchmark-generation-x.json)" in capsys.readouterr().out
    cost.main(given)
    published = LATENCY_FIGURE["KOALA-Lightning-700M"][2][0]
    said = capsys.readouterr().out
    assert f"{1 / published:.2f} images/s" in said and f"{published} s on an RTX 4090" in said
    assert "an example, measure your own" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--rate", "0"], "--rate 0.0: give a number above 0"),
        (["--rate", "nan"], "--rate nan: give a number above 0"),
        (["--images", "-1"], "--images -1: give"),
        (["--gpus", "2", "0"], "--gpus 0: give whole numbers"),
        (["--run", "nowhere"], "nowhere holds no images"),
        (["--benchmark", "nowhere.json"], "There is no file nowhere.json"),
        (["--benchmark", str(PAGE)], "is not a result of `koala-nb benchmark`"),
    ],
)
def test_errors_are_one_sentence(given, said, capsys):
    assert cli.main(["plan", *given]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_results_of_another_benchmark_are_refused(records):
    with pytest.raises(ValueError, match="holds no rate: give a file of `koala-nb benchmark gen"):
        cost.rate_in(records)
    other = files.write_json(records.with_name("other.json"), {"rows": ROWS[2:]})
    with pytest.raises(ValueError, match="other.json is not a result of `koala-nb benchmark rec"):
        cost.main(["--records", str(other)])


def test_the_page_shows_what_the_command_prints(capsys):
    block = PAGE.read_text("utf-8").split("```console\n$ koala-nb ")[1].split("```")[0]
    command, _, shown = block.partition("\n")
    assert cli.main(shlex.split(command)) == 0
    assert capsys.readouterr().out.strip() == shown.strip()


def test_the_benchmark_of_records_writes_what_it_reads(snapshot, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shards, "CHUNK", 8)
    given = ["--model", str(snapshot), "--counts", "20", "10", "--sizes", "64", "--repeats", "2"]
    assert cli.main(["benchmark", "records", *given, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "benchmark-records.json").read_text("utf-8"))
    assert found["command"].startswith("koala-nb benchmark records --model")
    rows = found["rows"]
    assert [row["count"] for row in rows] == [10] * 5 + [20] * 5 + [1] * 2
    assert all(row["seconds"] > 0 and row["low"] <= row["seconds"] <= row["high"] for row in rows)
    assert {row["ratio"] for row in rows if row["way"] == benchmark_records.LINES} == {1.0}
    cost.main(["--records", str(tmp_path / "benchmark-records.json")])
    assert "read out of PNGs of noise, 64 px" in capsys.readouterr().out


def test_synthetic_records_have_the_columns_of_a_real_one(loaded):
    from koala_nb import generate

    real = generate(loaded, "a koala", steps=1, progress=False).records.iloc[0].to_dict()
    many = benchmark_records.records_like(real, 2001)
    assert all(list(record) == list(real) for record in many)
    assert len({record["file"] for record in many}) == 2001
    assert many[2000]["prompt_index"] == 2 and many[2000]["seed"] == 0
    assert many[2000]["file"].startswith("images/00002/00002-a-koala-2-0")
