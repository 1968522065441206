"""The text probe: scores, readers, boards, estimates, and that a run can go on."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from koala_nb import cli
from koala_nb.core.catalog import data_folder
from koala_nb.core.files import ROOT
from koala_nb.probes import base, text
from koala_nb.probes import text_reader as reading
from koala_nb.probes.text_probe import trend
from koala_nb.scorers import ocr

WORDS = "cat open music coffee library adventure stop home garden winter".split()
texts = st.text("abcdeABC 12", max_size=12)
asked_texts = st.text("abcdeABC12", min_size=1, max_size=12)


@pytest.fixture(scope="module")
def reader():
    return ocr.reader()


@given(asked_texts, texts)
def test_scores_are_bounded_and_ignoring_case_never_hurts(asked, read):
    result = reading.text_scores(asked, read)
    assert all(0 <= v and (v <= 1 or name.startswith("cer")) for name, v in result.items())
    assert result["exact_folded"] >= result["exact"] == (result["cer"] == 0) == (result["ned"] == 1)
    assert result["ned_folded"] >= result["ned"] and result["cer_folded"] <= result["cer"]
    assert reading.edit_similarity(asked, read) == reading.edit_similarity(read, asked)
    same, nothing = reading.text_scores(asked, f" {asked}  "), reading.text_scores(asked, "")
    assert same["exact"] and same["cer"] == 0 and same["ned"] == same["word_f1"] == 1
    assert not nothing["exact"] and nothing["cer"] == 1
    assert nothing["ned"] == nothing["word_precision"] == nothing["word_f1"] == 0


def test_scores_of_known_pairs():
    assert reading.character_error_rate("open", "opan") == 0.25
    assert reading.character_error_rate("go", "going") == 1.5
    assert reading.edit_similarity("go", "going") == pytest.approx(0.4)
    assert reading.word_scores("hello hello world", "world hello") == (1, 2 / 3, pytest.approx(0.8))
    with pytest.raises(ValueError, match="nothing was asked"):
        reading.character_error_rate("", "a")


@given(asked_texts, asked_texts)
def test_confusions_count_every_character_that_was_read(asked, read):
    result = reading.confusions([(asked, read), ("exit", "")])
    assert sum(n for (a, _), n in result.items() if a != reading.EXTRA) == len(asked)
    assert sum(n for (_, r), n in result.items() if r != reading.MISSING) == len(read)
    result = reading.confusions([("open", "0pn"), ("Stop", "stopp"), ("exit", "")])
    assert result["o", "0"] == result["e", reading.MISSING] == result[reading.EXTRA, "p"] == 1
    assert ("x", reading.MISSING) not in result and ("s", "s") in result


def test_a_reader_says_where_and_how_surely(reader):
    image = reading.rendered_text_image("garden", 128)
    (result,) = reader.read([image])
    assert result.text == "garden" and 0.5 < result.confidence <= 1
    ((left, top, right, bottom),) = result.boxes
    assert 0 <= left < 64 < right <= 128 and 0 <= top < 64 < bottom <= 128
    assert reader.read([Image.new("RGB", (64, 64), "white")]) == [ocr.Reading("", (), 0.0)]
    assert "PP-OCRv6" in reader.version


def test_small_images_are_enlarged_by_whole_factors_and_large_ones_reduced():
    for side, factor in ((64, 4), (100, 3), (256, 1), (768, 1), (1024, 0.75)):
        fitted, times = ocr.fitted(Image.new("RGB", (side, side + 8)))
        assert times == factor and fitted.size == (side * factor, (side + 8) * factor)


@pytest.mark.parametrize("part", [1, 0.6, 0.35, 0.12])
def test_a_board_of_any_size_is_read_at_1024_pixels(reader, part):
    words = ["my", "nb", "iq", "pm", "tzir"]  # at native size "my _": the board's edge
    size = round(1024 * part)
    board = Image.new("RGB", (1024, 1024), "#8888aa")
    images = []
    for word in words:
        board.paste(reading.rendered_text_image(word, size), ((1024 - size) // 2,) * 2)
        images.append(board.copy())
    read = [one.text for one in reader.read(images)]
    assert sum(a == b for a, b in zip(read, words)) >= 4, read


def test_marks_in_koalas_pictures_without_text_are_no_text(reader):
    paths = sorted((ROOT / "data" / "reference" / "t2i_biasbench").glob("*.jpg"))
    assert len(paths) == 5
    assert [one.text for one in reader.read([Image.open(path) for path in paths])] == [""] * 5


def test_an_unknown_or_missing_reader_is_one_clear_sentence():
    with pytest.raises(ValueError, match="choose one of rapidocr, tesseract"):
        ocr.reader("nobody")
    with pytest.raises(ValueError, match="tesseract is not installed"):
        ocr.TesseractReader("no-such-program-anywhere")


def test_tesseracts_table_is_understood():
    head = "level\tleft\ttop\twidth\theight\tconf\ttext\n"
    result = ocr.from_tsv(head + '1\t0\t0\t256\t256\t-1\t\n5\t40\t80\t40\t20\t90\t"go\n', 4)
    assert result == ocr.Reading('"go', ((10.0, 20.0, 20.0, 25.0),), 0.9)
    assert ocr.from_tsv(head) == ocr.Reading("", (), 0.0)


draws = pytest.mark.parametrize(("domain", "size"), [("emoji-world", 64), ("photographic", 256)])


@draws
def test_the_card_has_a_high_ceiling_and_a_low_floor(reader, domain, size):
    read = reading.read_boards(reader, WORDS, size, reading.text_renderer(domain))
    accuracy = base.select(reading.reader_accuracy(read), "text.reader.*.exact_folded")
    assert accuracy.value[0] >= 0.9 and accuracy.id[0] == "text.reader.font.exact_folded"
    assert len(accuracy) == 4 and (accuracy.value[1:] <= 0.1).all()
    assert (accuracy.n == len(WORDS)).all()


@draws
def test_corrected_intervals_cover_injected_failures(reader, domain, size):
    prompts = text.prompts(domain)
    words = prompts[prompts.group.isin(["word", "lower case", "phrase"])]
    some = list(dict.fromkeys(words[words.length.between(3, 20)].text))[:50]
    result = reading.calibration(reader, some, size, reading.text_renderer(domain))
    assert len(result) == 3 and result.injected.is_monotonic_increasing
    assert ((result.low <= result.injected) & (result.injected <= result.high)).all()
    assert (result.high - result.low < 0.6).all() and (result.value.diff().dropna() > 0.1).all()


def test_the_stored_card_is_the_measured_one(reader):
    stored = text.load_results("nano-koala").instrument["estimates"]
    stored = pd.DataFrame(stored).set_index("id")
    read = reading.read_boards(reader, WORDS, 64, reading.text_renderer("emoji-world"))
    measured = reading.reader_accuracy(read).set_index("id")
    for kind in ("one_letter_wrong", "shuffled_letters", "blank_board"):
        id = f"text.reader.{kind}.exact_folded"
        assert stored.high[id] >= measured.value[id]
    wrong = stored.high["text.reader.one_letter_wrong.exact_folded"]
    assert stored.low["text.reader.font.exact_folded"] > 0.5 > wrong


def test_broken_texts_are_broken_and_stay_as_long():
    rng = np.random.default_rng(0)
    for word in [*WORDS, "7", "A", "no no", "12 b"]:
        wrong, other = reading.one_wrong(word, rng), reading.shuffled(word, rng)
        assert wrong.casefold() != word.casefold() and len(wrong) == len(word)
        assert other is None or sorted(other) == sorted(word) and other != word
    assert reading.shuffled("aAa", rng) is None


def test_the_vae_blurs_but_keeps_size_and_precision(loaded):
    images = [reading.rendered_text_image("open", 64)]
    before = loaded.vae.dtype
    (result,) = reading.vae_roundtrip(loaded, images)
    assert result.size == (64, 64) and result.tobytes() != images[0].tobytes()
    assert loaded.vae.dtype == before


@pytest.mark.parametrize("domain", ["emoji-world", "photographic"])
def test_prompt_sets_hold_their_texts(domain):
    result = text.prompts(domain)
    assert result.prompt.is_unique and result.length.between(1, 40).all()
    assert len(result) * 4 >= 800 and set(result.length) >= {1, 2, 3, 4, 6, 8}
    assert result.phrasing.nunique() >= 4 and (result.length > 25).sum() >= 12


def test_seen_words_are_those_of_training():
    result = text.prompts("emoji-world")
    planted = json.loads((data_folder() / "world" / "planted.json").read_text("utf-8"))
    assert set(result.text[result.seen == "yes"]) == set(planted["words"])
    assert set(result.text[result.seen == "no"]) == set(planted["held_out"]["words"])


def test_digits_stay_texts(tmp_path):
    (tmp_path / "p.csv").write_text("id,prompt,text\na,a sign 007,007\nb,a sign NA,NA\n")
    assert text.prompts("photographic", str(tmp_path / "p.csv")).text.tolist() == ["007", "NA"]


def table_of(share, prompts=60, images=4, seed=0):
    """Readings whose chance of being right is share(length)."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in np.repeat(range(prompts), images):
        target = "abcdefghijklmnopqrstuvwxyz"[: 1 + i % 20]
        read = target if rng.random() < share(len(target)) else ""
        row = {"id": f"p{i}", "text": target, "length": len(target)}
        row |= {"seen": "yes" if i % 2 else "no", "read": read}
        rows.append(row | reading.text_scores(target, read))
    return pd.DataFrame(rows)


def test_a_curve_finds_its_half():
    tables = [table_of(lambda n: 1 / (1 + np.exp(0.6 * (n - 9))), seed=s) for s in range(20)]
    halves = [trend(table).half for table in tables]
    assert sum(half.low < 9 < half.high for half in halves) >= 17
    assert all(half.high - half.low < 3 for half in halves)
    said = text.legible(tables[0])
    assert said.startswith(f"legible up to {halves[0].value:.1f} characters")


@pytest.mark.parametrize(
    ("share", "says"),
    [
        (lambda n: 0, "no curve.*0 of 240"),
        (lambda n: 1, "no curve.*240 of 240"),
        (lambda n: n <= 10, "none above 10"),
        (lambda n: 0.3, "does not fall reliably"),
        (lambda n: 0.3 * (n < 5), "fewer than half"),
        (lambda n: 0.98 - 0.01 * n, "half or more"),
    ],
)
def test_where_there_is_no_half_a_sentence_says_so(share, says):
    assert re.search(says, text.legible(table_of(share)))


def values(table, instrument=None):
    """The probe's estimates by id."""
    return text.estimates(table, instrument).set_index("id")


def test_nothing_read_stays_in_every_denominator():
    table = table_of(lambda n: 0.25)
    result = values(table)
    assert (result.n[["text.exact", "text.ned", "text.word_f1", "text.cer"]] == len(table)).all()
    exact = result.value["text.exact"]
    assert exact == pytest.approx((table.read != "").mean(), abs=1e-5)
    assert result.value["text.nothing_read"] == pytest.approx(1 - exact, abs=1e-5)
    none = values(table_of(lambda n: 0))  # a mean without spread is not known for sure
    assert none.low["text.word_f1"] == 0 < none.high["text.word_f1"] and none.high["text.exact"] > 0


def test_chance_is_told_from_writing():
    assert values(table_of(lambda n: 0)).value["text.chance.difference"] == 0
    half = table_of(lambda n: 0.5)
    result = values(half)
    assert result.low["text.chance.difference"] > 0
    gap = result.value["text.chance.asked"] - result.value["text.chance.others"]
    assert result.value["text.chance.difference"] == pytest.approx(gap, abs=1e-5)
    other = half.assign(read=half.text.iloc[::-1].to_numpy())  # readable, but not what was asked
    other["ned_folded"] = list(map(reading.edit_similarity, other.text, other.read))
    assert values(other).value["text.chance.difference"] < 0.05
    assert "text.chance.difference" not in values(half[half.text == "a"]).index


def test_seen_against_new_keeps_a_width_at_zero_and_finds_a_difference():
    none = values(table_of(lambda n: 0)).loc["text.seen.exact_folded.difference"]
    assert none.value == 0 and none.low < 0 < none.high
    table = table_of(lambda n: 0.1)
    table["exact_folded"] = table.exact_folded.astype(float)
    table.loc[table.seen == "yes", ["exact_folded", "ned_folded"]] = 1.0
    result = text.estimates(table)
    assert (base.select(result, "text.seen.*.difference").low > 0).all()
    assert (base.select(result, "text.seen.*.p").value < 0.01).all()
    assert base.select(text.estimates(table.assign(seen=None)), "text.seen.*.p").empty


def test_a_reader_that_fails_on_the_font_says_nothing_about_the_model():
    errors = {"1-2": ((20, 20), (38, 40)), "3-4": ((0, 20), (40, 40))}
    estimates = text.estimates(table_of(lambda n: 0), {"errors_by_length": errors})
    result = base.select(estimates, "text.length.*.supposed")
    assert result.id.tolist() == ["text.length.1_2.supposed", "text.length.3_4.supposed"]
    assert result.high[0] < 0.5 and result.value[1:].isna().all()


def test_figures_say_what_they_show_and_refuse_nothing(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr("koala_nb.display.figures.show", lambda _, alt, **more: shown.append(alt))
    shares = base.select(text.estimates(table_of(lambda n: 0.5)), "text.length.*.exact_folded")
    text.show_lengths({"a": shares}, "t")
    pairs = [{"asked": "a", "read": reading.MISSING, "count": 3}]
    pairs.append({"asked": "$", "read": chr(0x4E00), "count": 1})
    text.show_confusions(pairs, "t")
    assert "text of 1-2 characters" in shown[0] and "a: 3" in shown[1]
    text.show_confusions([], "t")
    assert "No pairs" in capsys.readouterr().out
    with pytest.raises(ValueError, match="at least one series"):
        text.show_lengths({}, "t")


def test_the_command_writes_table_and_card(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = text.prompts("emoji-world").iloc[::12].reset_index(drop=True)
    monkeypatch.setattr(type(text), "prompts", lambda self, domain: few)
    words = "probe text --prompts 4 --images 1 --anyway --out"
    command = [*words.split(), str(tmp_path)]
    assert cli.main(command) == 0
    stem = tmp_path / "probe-text-nano-koala"
    first = [stem.with_suffix(s).read_bytes() for s in (".csv", ".json")]
    assert cli.main(command) == 0
    assert [stem.with_suffix(s).read_bytes() for s in (".csv", ".json")] == first
    assert b'"calibration"' in first[1] and b"NaN" not in first[1]
