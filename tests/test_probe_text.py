"""The text probe: scores, readers, boards, estimates, and that a run can go on."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from koala_nb.core.catalog import data_folder
from koala_nb.probes import base, text, text_reader
from koala_nb.probes import text_scores as scores
from koala_nb.scorers import ocr

WORLD_IS_THERE = (data_folder() / "models" / "nano-koala").is_dir()
in_the_world = pytest.mark.skipif(not WORLD_IS_THERE, reason="the embedded family is absent")
WORDS = "cat open music coffee library adventure stop home garden winter".split()
texts = st.text("abcdeABC 12", max_size=12)
asked_texts = st.text("abcdeABC12", min_size=1, max_size=12)


@pytest.fixture(scope="module")
def reader():
    return ocr.reader()


# --- scores ---------------------------------------------------------------------------------------


@given(asked_texts, texts)
def test_scores_are_bounded_and_ignoring_case_never_hurts(asked, read):
    found = scores.scores(asked, read)
    for name, value in found.items():
        assert 0 <= value and (value <= 1 or name.startswith("cer"))
    assert found["exact_folded"] >= found["exact"]
    assert found["ned_folded"] >= found["ned"] and found["cer_folded"] <= found["cer"]
    assert found["exact"] == (found["cer"] == 0) == (found["ned"] == 1)


@given(asked_texts)
def test_a_text_agrees_with_itself_and_not_with_nothing(asked):
    same, nothing = scores.scores(asked, f" {asked}  "), scores.scores(asked, "")
    assert same["exact"] and same["cer"] == 0 and same["ned"] == same["word_f1"] == 1
    assert not nothing["exact"] and nothing["cer"] == 1
    assert nothing["ned"] == nothing["word_precision"] == nothing["word_f1"] == 0


@given(texts, texts)
def test_edit_similarity_is_symmetric(one, other):
    assert scores.edit_similarity(one, other) == scores.edit_similarity(other, one)


def test_scores_of_known_pairs():
    assert scores.character_error_rate("open", "opan") == 0.25
    assert scores.character_error_rate("go", "going") == 1.5
    assert scores.edit_similarity("go", "going") == pytest.approx(0.4)
    assert scores.word_scores("hello hello world", "world hello") == (1, 2 / 3, pytest.approx(0.8))
    with pytest.raises(ValueError, match="nothing was asked"):
        scores.character_error_rate("", "a")


def test_confusions_are_aligned_and_leave_out_what_was_not_read():
    found = scores.confusions([("open", "0pn"), ("Stop", "stopp"), ("exit", "")])
    assert found["o", "0"] == found["e", scores.MISSING] == found[scores.EXTRA, "p"] == 1
    assert ("x", scores.MISSING) not in found and ("s", "s") in found


@given(asked_texts, asked_texts)
def test_confusions_count_every_character(asked, read):
    found = scores.confusions([(asked, read)])
    assert sum(n for (a, _), n in found.items() if a != scores.EXTRA) == len(asked)
    assert sum(n for (_, r), n in found.items() if r != scores.MISSING) == len(read)


# --- readers --------------------------------------------------------------------------------------


def test_a_reader_says_where_and_how_surely(reader):
    image = text_reader.board("garden", 128)
    (found,) = reader.read([image])
    assert found.text == "garden" and 0.5 < found.confidence <= 1
    ((left, top, right, bottom),) = found.boxes
    assert 0 <= left < 64 < right <= 128 and 0 <= top < 64 < bottom <= 128
    assert reader.read([Image.new("RGB", (64, 64), "white")]) == [ocr.Reading("", (), 0.0)]
    assert "PP-OCRv6" in reader.version


@pytest.mark.parametrize(("side", "factor"), [(64, 4), (100, 3), (256, 1), (1024, 1)])
def test_small_images_are_enlarged_by_whole_factors(side, factor):
    large, times = ocr.enlarged(Image.new("RGB", (side, side + 8)))
    assert times == factor and large.size == (side * factor, (side + 8) * factor)


def test_an_unknown_or_missing_reader_is_one_clear_sentence():
    with pytest.raises(ValueError, match="choose one of rapidocr, tesseract"):
        ocr.reader("nobody")
    with pytest.raises(ValueError, match="tesseract is not installed"):
        ocr.TesseractReader("no-such-program-anywhere")


def test_tesseracts_table_is_understood():
    head = "level\tleft\ttop\twidth\theight\tconf\ttext\n"
    found = ocr.from_tsv(head + '1\t0\t0\t256\t256\t-1\t\n5\t40\t80\t40\t20\t90\t"go\n', 4)
    assert found == ocr.Reading('"go', ((10.0, 20.0, 20.0, 25.0),), 0.9)
    assert ocr.from_tsv(head) == ocr.Reading("", (), 0.0)


# --- the instrument card --------------------------------------------------------------------------


def draws():
    worlds = [pytest.param("emoji-world", 64, marks=in_the_world), ("photographic", 256)]
    return pytest.mark.parametrize(("domain", "size"), worlds)


@draws()
def test_the_card_has_a_high_ceiling_and_a_low_floor(reader, domain, size):
    read = text_reader.read_boards(reader, WORDS, size, text_reader.drawer(domain))
    found = text_reader.card(read).set_index("kind")
    assert found.value["font"] >= 0.9
    assert (found.value[list(text_reader.BROKEN)] <= 0.1).all()
    assert (found.n == len(WORDS)).all()


@draws()
def test_corrected_intervals_cover_injected_failures(reader, domain, size):
    prompts = text.prompts(domain)
    words = prompts[prompts.group.isin(["word", "lower case", "phrase"])]
    some = list(dict.fromkeys(words[words.length.between(3, 20)].text))[:50]
    found = text_reader.calibration(reader, some, size, text_reader.drawer(domain))
    assert len(found) == 3 and found.injected.is_monotonic_increasing
    assert ((found.low <= found.injected) & (found.injected <= found.high)).all()
    assert (found.high - found.low < 0.6).all() and (found.value.diff().dropna() > 0.1).all()


@in_the_world
def test_the_stored_card_is_the_measured_one(reader):
    import json

    path = data_folder() / "results" / "probe-text-nano-koala.json"
    card = pd.DataFrame(json.loads(path.read_text("utf-8"))["estimates"]["instrument"]["card"])
    stored = card.set_index("kind")
    read = text_reader.read_boards(reader, WORDS, 64, text_reader.drawer("emoji-world"))
    for kind in text_reader.BROKEN:
        assert stored.high[kind] >= text_reader.card(read).set_index("kind").value[kind]
    assert stored.low["font"] > 0.5 > stored.high["one letter wrong"]


def test_broken_texts_are_broken_and_stay_as_long():
    rng = np.random.default_rng(0)
    for word in [*WORDS, "7", "A", "no no", "12 b"]:
        wrong, other = text_reader.one_wrong(word, rng), text_reader.shuffled(word, rng)
        assert wrong.casefold() != word.casefold() and len(wrong) == len(word)
        assert other is None or sorted(other) == sorted(word) and other != word
    assert text_reader.shuffled("aAa", rng) is None


def test_the_vae_blurs_but_keeps_size_and_precision(loaded):
    images = text_reader.boards(["open"], 64)
    before = loaded.vae.dtype
    (found,) = text_reader.through_vae(loaded, images)
    assert found.size == (64, 64) and found.tobytes() != images[0].tobytes()
    assert loaded.vae.dtype == before


# --- prompts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["emoji-world", "photographic"])
def test_prompt_sets_hold_their_texts(domain):
    found = text.prompts(domain)
    assert found.prompt.is_unique and found.length.between(1, 40).all()
    assert len(found) * 4 >= 800 and set(found.length) >= {1, 2, 3, 4, 6, 8}
    assert found.phrasing.nunique() >= 4 and (found.length > 25).sum() >= 12


@in_the_world
def test_seen_words_are_those_of_training():
    from koala_nb.nano.world import load_json

    found, planted = text.prompts("emoji-world"), load_json("planted.json")
    assert set(found.text[found.seen == "yes"]) == set(planted["words"])
    assert set(found.text[found.seen == "no"]) == set(planted["held_out"]["words"])


@pytest.mark.parametrize(
    ("rows", "says"),
    [("id,prompt\na,b\n", "no column 'text'"), ("id,prompt,text\na,a sign,open\n", "does not hold"),
     ("id,prompt,text\na,a sign,\n", "does not hold")],
)  # fmt: skip
def test_a_bad_prompt_set_is_one_clear_sentence(tmp_path, rows, says):
    (tmp_path / "p.csv").write_text(rows)
    with pytest.raises(ValueError, match=says):
        text.prompts("photographic", str(tmp_path / "p.csv"))


def test_digits_and_na_stay_texts(tmp_path):
    (tmp_path / "p.csv").write_text("id,prompt,text\na,a sign 007,007\nb,a sign NA,NA\n")
    assert text.prompts("photographic", str(tmp_path / "p.csv")).text.tolist() == ["007", "NA"]


# --- the run --------------------------------------------------------------------------------------


def test_a_photographic_run_needs_no_embedded_family(loaded, tmp_path):
    prompts = base.some(text.prompts("photographic"), 3)
    args = {"images": 2, "steps": 1, "height": 64, "width": 64, "progress": False}
    whole = base.measure(loaded, prompts, text.Scorer(), **args)
    out = tmp_path / "run"
    base.measure(loaded, prompts, text.Scorer(), out=out, **args)
    for image in sorted((out / "images").glob("*.png"))[3:]:
        image.unlink()  # as after a kill: half of the images, no readings
    (out / "scores-rapidocr.jsonl").unlink()
    resumed = base.measure(loaded, prompts, text.Scorer(), out=out, **args)
    again = base.measure(loaded, prompts, text.Scorer(), out=out, **args)
    assert whole.to_csv() == resumed.to_csv() == again.to_csv()
    assert len(whole) == 6 and not whole.exact.any()
    code = (
        "import sys; from koala_nb.probes import text, text_reader as b;"
        "text.prompts('photographic');"
        "b.drawer('photographic')(['a'], 64);"
        "print([m for m in sys.modules if m.startswith('koala_nb.nano')])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@in_the_world
def test_the_command_writes_table_and_card(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["--prompts", "4", "--images", "1", "--out", str(tmp_path)]
    assert text.main(command) == 0
    stem = tmp_path / "probe-text-nano-koala"
    first = [stem.with_suffix(s).read_bytes() for s in (".csv", ".json")]
    assert text.main(command) == 0
    assert [stem.with_suffix(s).read_bytes() for s in (".csv", ".json")] == first
    assert b'"calibration"' in first[1] and b"NaN" not in first[1]
