"""CSV tables hold what was written into them, and nothing that a spreadsheet would compute."""

import csv

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koala_nb.core import files
from koala_nb.core.catalog import data_folder
from koala_nb.probes import base, labels
from koala_nb.report import sweep

# What parsers stumble over, more often than among all letters.
TEXTS = st.text(st.one_of(st.sampled_from("\r\n\0\",;'=+-@\t 1e."), st.characters(codec="utf-8")))
NASTY = ["a\rb", "a\r\nb", '"quoted", "', "nul \0 here", "\n", "=1+1", "-x", "'=1", "''@a", "\t"]
FORMULAS = ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "\tx", "\rx", "\nx", "'=1", "-", "=", "--1"]


@given(st.lists(st.tuples(TEXTS, TEXTS, st.integers(-9, 9), st.floats(-9, 9))))
def test_a_table_is_read_back_as_it_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("table") / "table.csv"
    table = pd.DataFrame(rows, columns=["prompt", "=name\r", "seed", "value"])
    files.save_table(table, path)
    back = files.read_table(path, dtype={"prompt": str, "=name\r": str})
    assert list(back) == list(table) and len(back) == len(table)
    for name in table:
        expected = pytest.approx(table[name].tolist()) if name == "value" else table[name].tolist()
        assert back[name].tolist() == expected


@pytest.mark.parametrize("text", NASTY)
def test_pairs_are_found_whatever_a_prompt_holds(tmp_path, text):
    """A sweep compares runs by `key_images.csv`: of 4 rows 2 were read back."""
    row = {"section": "s", "measure": "m", "seed": 0, "value": -0.5}
    table = pd.DataFrame([row | {"prompt": p} for p in (text, "a cat", f"{text}{text}", "a dog")])
    files.save_table(table, tmp_path / sweep.IMAGES)
    images = sweep.read_images(tmp_path)
    assert images.prompt.tolist() == table.prompt.tolist() and set(images.value) == {-0.5}
    (difference,) = sweep.differences(images, images.assign(value=0.0))
    assert (difference["n"], difference["prompts"], difference["value"]) == (4, 4, -0.5)


def test_no_text_is_a_formula_and_numbers_stay_numbers(tmp_path):
    numbers = ["-0.5", "+3", "-1e-3", "-.5", "-5."]
    table = pd.DataFrame({"text": [*FORMULAS, *numbers]})
    table["value"] = [-1.5] * len(table)
    table["read"] = pd.Series([-2, None, True, "-2"] * 4, dtype=object)
    with open(files.save_table(table, tmp_path / "table.csv"), newline="") as file:
        head, *rows = csv.reader(file)
    assert [row[0] for row in rows] == [*(f"'{text}" for text in FORMULAS), *numbers]
    assert {row[1] for row in rows} == {"-1.5"}
    assert [row[2] for row in rows[:4]] == ["-2", "", "True", "-2"]
    assert head == ["text", "value", "read"]


def test_labels_of_such_prompts_are_read_back(tmp_path):
    row = {"guidance": 3.5, "id": "=a\r\nb", "seed": 1, "file": "+x.png", "pass": 1}
    table = pd.DataFrame([row | {"presentation": "woman", "tone": None}])
    labels.write(tmp_path / "labels.csv", table)
    (back,) = labels.read(tmp_path / "labels.csv").to_dict("records")
    assert (back["id"], back["file"], back["tone"]) == ("=a\r\nb", "+x.png", None)


def test_a_prompt_with_nul_is_read_whole(tmp_path):
    (tmp_path / "prompts.csv").write_bytes(b'id,prompt\n1,"a\0b\rc"\n')
    assert base.read_prompts(tmp_path / "prompts.csv").prompt.tolist() == ["a\0b\rc"]
    with pytest.raises(ValueError, match="cannot be read .Is a directory.: name a CSV"):
        base.read_prompts(tmp_path)


@pytest.mark.parametrize("path", sorted(data_folder().rglob("*.csv")), ids=lambda path: path.name)
def test_the_tables_that_come_with_the_project_are_as_we_would_write_them(tmp_path, path):
    again = files.save_table(files.read_table(path, dtype=str), tmp_path / "again.csv")
    with open(path, newline="") as one, open(again, newline="") as other:
        assert list(csv.reader(one)) == list(csv.reader(other))
