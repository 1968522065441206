"""The labelling widget without a browser: keys, buttons, undo, resuming, and that it is blind."""

import base64
import io
import re
from unittest.mock import MagicMock

import pytest
from label_runs import PROMPT, run_of
from PIL import Image

from koala_nb.core import files
from koala_nb.probes import labels
from koala_nb.widgets import Labeller, answer_keys

MONK = (*map(str, range(1, 11)), "unsure")


@pytest.fixture
def sample():
    return labels.sample([run_of(6), run_of(6, 3.5, 100)], 3, seed=1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "labels.csv"


@pytest.fixture
def widget(sample, path):
    return Labeller(sample, path)


def press(widget, *typed):
    for key in typed:
        widget.key.value = key


def png(widget):
    return base64.b64decode(re.search('base64,([^"]+)', widget.picture.value).group(1))


def level(widget):
    return Image.open(io.BytesIO(png(widget))).getpixel((0, 0))[0]


def test_keys():
    assert answer_keys(labels.PRESENTATIONS) == {"1": "woman", "2": "man", "u": "unsure"}
    assert list(answer_keys(MONK)) == [*"1234567890", "u"] and answer_keys(MONK)["0"] == "10"
    with pytest.raises(ValueError, match="11 answers"):
        answer_keys([str(k) for k in range(11)])


def test_keys_and_buttons_answer_and_every_answer_is_written(widget, path):
    first = level(widget)
    press(widget, "1")
    (row,) = labels.read(path).to_dict("records")
    assert (row["presentation"], row["tone"], row["seed"]) == ("woman", None, first)
    assert widget.key.value == "" and level(widget) == first and "tone?" in widget.status.value
    widget.buttons.children[-2].click()  # unsure
    assert labels.read(path).tone.tolist() == ["unsure"]
    assert level(widget) != first and "presentation?" in widget.status.value
    assert not list(path.parent.glob("*.tmp"))


def test_all_images_come_once_and_then_it_ends(widget, path):
    levels = []
    for _ in range(6):
        levels.append(level(widget))
        press(widget, "2", "3")
    assert sorted(levels) == sorted(widget.sample.rows.seed)
    assert "All 6 images are labelled" in widget.status.value and widget.picture.value == ""
    before = path.read_bytes()
    press(widget, "1")
    assert path.read_bytes() == before
    stored = labels.read(path)
    assert stored.seed.tolist() == levels and set(stored.tone) == {"medium"}


def test_the_newest_key_counts_and_others_are_told(widget, path):
    widget.key.value = "12"  # the browser had not heard yet that 1 was taken
    assert labels.read(path).presentation.tolist() == ["man"]
    press(widget, "9")
    assert "The key 9 means nothing here" in widget.status.value
    assert labels.read(path).tone.tolist() == [None]


def test_undo_goes_back_through_answers_and_sessions(sample, path):
    widget = Labeller(sample, path)
    press(widget, "1", "1", "2")
    widget = Labeller(sample, path)
    at = level(widget)
    press(widget, "z")
    assert level(widget) == at and "presentation?" in widget.status.value
    press(widget, "Z", "z")
    assert len(labels.read(path)) == 0
    press(widget, "z")
    assert "nothing to take back" in widget.status.value


def test_it_resumes_to_the_same_bytes(sample, path, tmp_path):
    typed = ["1", "2", "u", "3", "2", "5", "1", "u"]
    press(Labeller(sample, path), *typed)
    other = tmp_path / "other.csv"
    for key in typed:
        press(Labeller(sample, other), key)
    assert other.read_bytes() == path.read_bytes()


def test_a_second_pass_has_another_order_and_leaves_the_first_alone(sample, path):
    first = Labeller(sample, path)
    press(first, *"11" * 6)
    second = Labeller(sample, path, number=2)
    assert second.at == 0 and second.order != first.order
    press(second, "2", "2")
    by_pass = labels.read(path).groupby("pass").presentation.agg(list)
    assert by_pass.to_dict() == {1: ["woman"] * 6, 2: ["man"]}


def test_two_widgets_on_one_file_keep_each_others_answers(sample, path):
    first, second = Labeller(sample, path), Labeller(sample, path, number=2)
    press(first, "1", "2")
    press(second, "2")
    press(first, "1")
    stored = labels.read(path)[["presentation", "pass"]]
    assert stored.values.tolist() == [["man", 2], ["woman", 1], ["woman", 1]]


def test_a_file_that_was_damaged_meanwhile_is_left_alone_and_told(widget, path):
    press(widget, "1")
    path.write_text("damaged")
    press(widget, "2")
    assert "Not taken" in widget.status.value and path.read_text() == "damaged"
    assert widget.at == 1 and widget.table.tone[0] is None


def test_a_file_of_another_sample_is_refused(sample, path):
    press(Labeller(sample, path), "1")
    with pytest.raises(ValueError, match="1 answers of pass 1 to images outside this sample"):
        Labeller(labels.sample(run_of(6, 7.0), 3), path)


def test_a_failed_write_is_told_and_counts_for_nothing(widget, path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(labels, "write", MagicMock(side_effect=OSError("the disk is full")))
        press(widget, "1")
    assert "Not taken: the disk is full" in widget.status.value and widget.at == 0
    press(widget, "1")
    assert labels.read(path).presentation.tolist() == ["woman"]


def test_it_is_blind(widget, path):
    shown = widget.picture.value + widget.status.value
    metadata = Image.open(io.BytesIO(png(widget))).info
    assert "koala_nb" not in metadata and PROMPT not in str(metadata)
    for secret in (PROMPT, widget.table.iloc[0].file, "guidance", "seed"):
        assert secret not in shown.replace(base64.b64encode(png(widget)).decode(), "")


def test_every_control_has_a_name_and_nothing_changes_in_a_notebook(widget, path):
    before = repr(widget)
    names = [widget.key.description, *(b.description for b in widget.buttons.children)]
    assert names == ["Key", "1 woman", "2 man", "u unsure", "z undo"]
    assert 'role="status"' in widget.status.value and 'alt="Image 1 of 6' in widget.picture.value
    press(widget, "1")
    assert repr(widget) == before and "<" not in before


def test_answers_are_the_questions_own(sample, path):
    widget = Labeller(sample, path, {"monk": MONK})
    press(widget, "0")
    assert labels.read(path, {"monk": MONK}).monk.tolist() == ["10"]
    with pytest.raises(ValueError, match="'woman' is no answer to monk"):
        widget.answer("woman")


def test_a_sample_of_a_run_in_a_folder_opens_its_files(tmp_path):
    from koala_nb.generation.run_folder import folder_run

    (tmp_path / "images").mkdir()
    records = run_of(3).records.to_dict("records")
    for record in records:
        image = Image.new("RGB", (8, 8), (record["seed"] * 9,) * 3)
        files.save_png(image, tmp_path / record["file"], record)
    drawn = labels.sample(folder_run(tmp_path, records), 3)
    levels = [drawn.image(k).getpixel((0, 0))[0] for k in range(3)]
    assert levels == [9 * seed for seed in drawn.rows.seed]
    assert PROMPT.encode() not in png(Labeller(drawn, tmp_path / "labels.csv"))
