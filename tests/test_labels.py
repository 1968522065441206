"""Labels given by looking: the sample, the file, the agreement of two passes."""

import base64
import io
import math
import re

import numpy as np
import pandas as pd
import pytest
from label_runs import PROMPT, run_of
from PIL import Image

from koala_nb.probes import labels


@pytest.fixture
def sample():
    return labels.sample([run_of(6), run_of(6, 3.5, 100)], 3, seed=1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "labels.csv"


def test_a_sample_is_random_without_replacement_and_even_over_runs(sample):
    assert len(sample) == 6 and not sample.rows.duplicated().any()
    assert sample.rows.guidance.value_counts().to_dict() == {1.0: 3, 3.5: 3}
    for number, row in sample.rows.iterrows():
        assert sample.image(number).getpixel((0, 0))[0] == row.seed
        assert row.file == f"images/{row.seed % 100:05d}.png" and row.id == str(row.seed % 100 % 4)
    again = labels.sample([run_of(6), run_of(6, 3.5, 100)], 3, seed=1)
    assert again.rows.equals(sample.rows)


def test_another_seed_is_another_sample_and_all_images_have_their_turn():
    drawn = [tuple(labels.sample(run_of(10), 4, seed).rows.seed) for seed in range(60)]
    assert len(set(drawn)) > 50
    counts = np.bincount(np.ravel(drawn), minlength=10)
    assert counts.min() >= 12 and counts.sum() == 240  # 24 are expected of each


def test_ids_name_the_prompts_and_bad_samples_are_refused():
    assert set(labels.sample(run_of(8), 8, ids=list("abcd")).rows.id) == set("abcd")
    with pytest.raises(ValueError, match="9 of 8 images"):
        labels.sample(run_of(8), 9)
    with pytest.raises(ValueError, match="2 ids do not name all"):
        labels.sample(run_of(8), 3, ids=["a", "b"])
    with pytest.raises(ValueError, match="two runs hold"):
        labels.sample([run_of(4), run_of(4)], 4)


GOOD = "guidance,id,seed,file,presentation,tone,pass\n1.0,a,3,images/a.png,woman,dark,1\n"


def test_a_good_file_is_read_and_written_back(path):
    path.write_text(GOOD + "1.0,a,3,images/a.png,unsure,,2\n")
    table = labels.read(path)
    assert table.presentation.tolist() == ["woman", "unsure"]
    assert table.tone.tolist() == ["dark", None]
    assert table["pass"].tolist() == [1, 2] and table.guidance.tolist() == [1.0, 1.0]
    labels.write(path, table)
    assert labels.read(path).equals(table)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("1.0,a,4,f,lady,dark,1", "presentation 'lady' is no answer: use one of woman, man"),
        ("1.0,a,4,f,man,black,1", "tone 'black' is no answer"),
        ("1.0,a,x,f,man,dark,1", "seed 'x' is not a whole number"),
        ("1.0,a,4.5,f,man,dark,1", "seed '4.5' is not a whole number"),
        ("low,a,4,f,man,dark,1", "guidance 'low' is not a number"),
        ("1.0,a,4,f,man,dark,-1", "pass '-1' is not a whole number"),
        ("1,a,3,f,man,dark,1", "this image stands twice in its pass"),
    ],
)
def test_a_bad_line_is_named(path, row, sentence):
    path.write_text(GOOD + row + "\n")
    with pytest.raises(ValueError, match=re.escape(f"line 3: {sentence}")):
        labels.read(path)


def test_answers_find_their_images(path):
    path.write_text(GOOD + "3.5,a,3,images/a.png,man,,1\n")
    table = pd.DataFrame({"guidance": [3.5, 1, 1], "id": ["a", "a", "b"], "seed": [3, 3, 3]})
    held = labels.read(path)
    assert labels.answers_of(held, table, "presentation") == ["man", "woman", None]
    assert labels.answers_of(held, table, "tone") == [None, "dark", None]
    assert labels.answers_of(held, table, "presentation", 2) == [None] * 3


def two_passes(pairs):
    """Return a label table of pairs of answers, five images per prompt."""
    rows = [
        {"guidance": 1.0, "id": str(k // 5), "seed": k, "presentation": a, "pass": number}
        for k, pair in enumerate(pairs)
        for number, a in enumerate(pair, 1)
    ]
    return pd.DataFrame(rows)


def agreement(pairs):
    return labels.agreement(two_passes(pairs), "presentation", labels.PRESENTATIONS)


def test_what_two_passes_tell_nothing_of():
    some = agreement([("woman", "unsure"), ("man", None), *[("man", "man")] * 9])
    assert some.kappa.n == 10 and some.same.value == pytest.approx(0.9)  # unsure is an answer
    alike = agreement([("man", "man")] * 10)
    assert math.isnan(alike.asymptotic.value) and math.isnan(alike.kappa.value)
    assert alike.same.value == 1
    with pytest.raises(ValueError, match="4 images of 1 prompts"):
        agreement([("man", "man")] * 4)


def test_the_labels_of_the_embedded_model_are_whole():
    assert labels.load_labels("demographics", "no-such-model") is None
    held = labels.load_labels("demographics", "nano-koala")
    first, second = (held[held["pass"] == number] for number in (1, 2))
    assert len(first) >= 600 and len(second) >= 90 and set(held["pass"]) == {1, 2}
    assert held[["presentation", "tone"]].notna().all().all()
    assert first.guidance.value_counts().to_dict() == {1.0: len(first) / 2, 3.5: len(first) / 2}
    assert None not in labels.answers_of(first, second, "presentation")
    assert first.presentation.value_counts()[["woman", "man"]].min() >= 150


ASKED = {"presentation": labels.PRESENTATIONS}


def shown(sheet):
    """Return a sheet's rows, all that its files say, and the pictures of its page, as bytes."""
    page = sheet.with_suffix(".html").read_text()
    pictures = [base64.b64decode(data) for data in re.findall('base64,([^"]+)', page)]
    said = sheet.name + sheet.read_text() + re.sub('base64,[^"]+', "", page)
    return pd.read_csv(sheet, dtype=str, keep_default_na=False), said, pictures


def test_a_sheet_is_blind_and_its_answers_come_back_to_their_images(path):
    ids = ["n-judge-01", "n-judge-02", "n-nurse-01", "n-nurse-02"]
    sample = labels.sample([run_of(6), run_of(6, 3.5, 100)], 6, seed=1, ids=ids)
    for number in (1, 2):  # the second labeller sees nothing of the first one's answers
        sheet = labels.write_sheet(sample, path, ASKED, number)
        table, said, pictures = shown(sheet)
        assert list(table) == ["picture", "presentation"] and not any(table.presentation)
        for word in (PROMPT, *ids, "judge", "nurse", "guidance", "3.5", "seed", "images/"):
            assert word not in said
        assert not any(PROMPT.encode() in picture for picture in pictures)
        places = re.findall(r">picture (\w+)<", said)
        levels = [Image.open(io.BytesIO(p)).getpixel((0, 0))[0] for p in pictures]
        answers = {p: "man" if level > 50 else "woman" for p, level in zip(places, levels)}
        table["presentation"] = table.picture.map(answers)
        table[::-1][1:].to_csv(sheet, index=False)  # sorted otherwise, and one is not answered
        stored = labels.take_answers(path, ASKED)
    assert len(stored) == 24 and stored.presentation.isna().sum() == 2
    given = stored.dropna(subset=["presentation"])
    assert (given.presentation == np.where(given.guidance == 3.5, "man", "woman")).all()
    assert labels.read(path, ASKED).presentation.tolist() == stored.presentation.tolist()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ((",\n", ",lady\n"), "line 2: presentation 'lady' is no answer"),
        (("picture", "image"), "line 2: no picture of"),
        (("\n", "\n0123,man\n"), "line 2: no picture of .*labels.csv, or one twice"),
    ],
)
def test_a_bad_sheet_is_refused_in_a_sentence(sample, path, change, sentence):
    sheet = labels.write_sheet(sample, path, ASKED, 1)
    sheet.write_text(sheet.read_text().replace(*change, 1))
    with pytest.raises(ValueError, match=sentence):
        labels.take_answers(path, ASKED)


def test_answers_to_other_questions_stay(sample, path):
    labels.write_sheet(sample, path, {"monk": labels.MONK}, 1)
    with pytest.raises(ValueError, match="labels-1.csv is there already"):
        labels.write_sheet(sample, path, {"monk": labels.MONK}, 1)
    sheet = path.with_name("labels-1.csv")
    sheet.write_text(sheet.read_text().replace(",\n", ",7\n"))
    labels.take_answers(path, {"monk": labels.MONK})
    labels.take_answers(path, ASKED)
    labels.write_sheet(sample, path, ASKED, 2)
    assert (labels.read(path, labels.EVERY).monk == "7").sum() == len(sample)
