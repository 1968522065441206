"""CSV tables hold what was written into them, and nothing that a spreadsheet would compute.

Tables of one's own: what they lack is named, with the line where there is one.
"""

import csv

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koala_nb.core import files
from koala_nb.core.catalog import data_folder
from koala_nb.probes import base, labels, safety, text
from koala_nb.probes.frequency_probe import read_frequencies
from koala_nb.report import audit, sweep
from koala_nb.scorers.prompt_filter import read_terms

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


def texts_of(path):
    return text.prompts("photographic", str(path))


def first_look(path):
    return audit.read_prompts("photographic", str(path))


LACKING = [
    (base.read_prompts, "prompt\nx\n", "no column 'id'"),
    (base.read_prompts, "id,prompt\n1,\n", "line 2: prompt is empty"),
    (base.read_prompts, "id,prompt\n1,x\n1,y\n", "'1' stands twice"),
    (base.read_prompts, "", "not a CSV with a header"),
    (base.read_prompts, 'id,prompt\n1,"x\n', "not a CSV"),
    (texts_of, "id,prompt\na,b\n", "no column 'text'"),
    (texts_of, "id,prompt,text\na,a sign,open\n", "does not hold"),
    (texts_of, "id,prompt,text\na,a sign,\n", "does not hold"),
    (first_look, "name\nx\n", "no column 'prompt'"),
    (first_look, "prompt\n", "the file holds no prompt"),
    (first_look, "id,prompt\n1,a\n2,  \n", "line 3 holds no prompt"),
    (read_frequencies, "concept,n\ndog,3\n", "no column 'count'"),
    (read_frequencies, "concept,count\ndog,3\ndog,4\n", "'dog' stands twice"),
    (read_frequencies, "concept,count\ndog,3\n,4\n", "line 3"),
    (read_frequencies, "concept,count\ndog,many\n", "line 2.*'many'"),
    (read_frequencies, "concept,count\ndog,-1\n", "0 or more"),
    (read_frequencies, "concept,count\ndog,inf\n", "0 or more"),
    (read_frequencies, "concept,count\ndog,0\n", "no concept has a count above 0"),
    (read_terms, "term\nx\n", "no column 'category'"),
    (read_terms, "term,category\n--,x\n", "line 2: '--' holds no letter"),
    (read_terms, "term,category\nOwl,x\nowls,y\n", "line 3: 'owls' stands twice"),
    (safety.read_i2p, "prompt,categories\nx,hate\n", "holds 1 prompts, and I2P 4703"),
    (safety.read_i2p, "text\nx\n", "no column 'prompt': it has 'text'"),
    (labels.read, "guidance,id,seed\n", "no column 'file'"),
]


@pytest.mark.parametrize(("read", "content", "sentence"), LACKING)
def test_what_a_table_of_ones_own_lacks_is_named(tmp_path, read, content, sentence):
    path = tmp_path / "own.csv"
    with pytest.raises(ValueError, match="There is no file .*own.csv"):
        read(path)
    path.write_text(content)
    with pytest.raises(ValueError, match=sentence) as error:
        read(path)
    assert "own.csv" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("path", sorted(data_folder().rglob("*.csv")), ids=lambda path: path.name)
def test_the_tables_that_come_with_the_project_are_as_we_would_write_them(tmp_path, path):
    again = files.save_table(files.read_table(path, dtype=str), tmp_path / "again.csv")
    with open(path, newline="") as one, open(again, newline="") as other:
        assert list(csv.reader(one)) == list(csv.reader(other))
