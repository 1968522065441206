"""Maps of words, maps over pictures, and the page that stands alone."""

import base64
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import koala_nb as kn
from koala_nb.attention import page as view
from koala_nb.attention.maps import words_of

PROMPT = "a <red> cat & dog"


@pytest.fixture(scope="module")
def captured(loaded):
    settings = {"steps": 3, "height": 64, "width": 64, "progress": False}
    with kn.capture_attention(loaded, keep_axes=("step",)) as attention:
        run = kn.generate(loaded, PROMPT, [0], **settings)
    return attention, run.images[0]


def test_words_of_a_prompt(loaded):
    words = words_of(loaded.tokenizer, "Koala, koala!")
    assert [w.text for w in words] == ["koala", ",", "koala", "!", "[start]", "[end]", "[padding]"]
    assert words[0].tokens == (1, 2, 3, 4, 5) and words[1].tokens == (6,)
    with pytest.raises(ValueError, match="has 82 tokens and the text encoder reads 77"):
        words_of(loaded.tokenizer, "x" * 80)
    longest = words_of(loaded.tokenizer, "x" * 75)  # with its marks 77 tokens, none of padding
    assert [w.text for w in longest] == ["x" * 75, "[start]", "[end]"]
    with pytest.raises(ValueError, match="has 78 tokens"):
        words_of(loaded.tokenizer, "x" * 76)


@given(st.text(max_size=30))
def test_words_share_out_the_tokens(loaded, prompt):
    try:
        words = words_of(loaded.tokenizer, prompt)
    except ValueError:
        assert len(loaded.tokenizer(prompt).input_ids) > 77
        return
    assert sorted(t for word in words for t in word.tokens) == list(range(77))
    assert all(list(w.tokens) == list(range(w.tokens[0], w.tokens[-1] + 1)) for w in words)


def test_word_maps(loaded, tmp_path):
    prompt = "a cat and a Red cat"
    with kn.capture_attention(loaded) as attention:
        run = kn.generate(loaded, prompt, [0], steps=1, height=64, width=64, progress=False)
    page = view.write_page(tmp_path / "page.html", attention, run.images[0], prompt).read_text()
    assert '"steps": ["mean over steps"]' in page
    maps, raw = attention.words(prompt), attention.maps()
    assert maps.array.sum(0) == pytest.approx(1, abs=1e-6)
    assert maps["cat"] == pytest.approx(raw[..., 2:5].sum(-1), abs=1e-7)
    assert maps["red cat"] == pytest.approx(raw[..., 9:15].sum(-1), abs=1e-6)
    assert maps["cat", 2] == pytest.approx(raw[..., 12:15].sum(-1), abs=1e-7)
    with pytest.raises(ValueError, match="'cta' is not in the prompt. Did you mean 'cat'"):
        maps["cta"]
    with pytest.raises(ValueError, match="'cat' is not in the prompt 3 times"):
        maps["cat", 3]
    for wrong in (0, -1, 1.0, True, None):  # the first is 1: 0 was the last one
        with pytest.raises(ValueError, match=f"'cat', {wrong}: occurrences are 1"):
            maps["cat", wrong]


def test_an_overlay_is_bright_where_the_map_is_large():
    values = np.zeros((8, 8))
    values[1, 6] = 0.2
    found = view.overlay(Image.new("RGB", (64, 64), (90, 120, 60)), values)
    assert found.size == (256, 256)
    light = np.asarray(found.convert("L"), dtype=float)
    row, column = np.unravel_index(light.argmax(), light.shape)
    assert 32 <= row < 64 and 192 <= column < 224
    half = view.overlay(Image.new("RGB", (64, 64), (90, 120, 60)), values, top=0.4)
    assert np.asarray(half.convert("L")).max() < light.max()
    assert view.overlay(Image.new("RGB", (300, 512)), np.eye(4)).size == (300, 512)


def test_an_overlay_keeps_the_pictures_colours():
    """Full light hardly changes them, no light darkens them; black things are seen as well."""
    picture = Image.new("RGB", (256, 256), (200, 40, 20))
    lit = np.array(view.overlay(picture, np.eye(2), top=1).getpixel((20, 20)), float)
    dark = np.array(view.overlay(picture, np.eye(2), top=1).getpixel((235, 20)), float)
    assert dark == pytest.approx(view.DIM * np.array([200, 40, 20]), abs=1)
    assert lit.argmax() == 0 and lit[0] > 2 * lit[2] and lit.sum() > 3 * dark.sum()
    faint = view.overlay(picture, 0.01 * np.eye(2), top=0.21).getpixel((20, 20))
    assert sum(faint) < 1.2 * dark.sum(), "a word with 1 % must not shine like one with 21 %"
    black = view.overlay(Image.new("RGB", (256, 256)), np.eye(2))
    assert max(black.getpixel((20, 20))) > 60 and max(black.getpixel((235, 20))) == 0


@pytest.mark.parametrize("values", [np.zeros((4, 4)), np.ones(4), np.full((2, 2), np.nan)])
def test_what_is_no_map_is_refused(values):
    with pytest.raises(ValueError, match="overlay: give a map of rows x columns"):
        view.overlay(Image.new("RGB", (64, 64)), values)


@pytest.mark.parametrize(
    "cell, words", [((0, 0), "upper left"), ((4, 4), "in the center"), ((4, 8), "middle right")]
)
def test_a_place_in_words(cell, words):
    values = np.zeros((9, 9))
    values[cell] = 1
    assert view.place(values) == words


def test_the_page_holds_every_map(captured, tmp_path):
    attention, picture = captured
    path = view.write_page(tmp_path / "page.html", attention, picture, PROMPT, banner="Careful")
    text = path.read_text("utf-8")
    assert len(text.encode()) < 1_000_000 and "Careful." in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    groups, steps, words, rows, columns = data["shape"]
    maps = np.frombuffer(base64.b64decode(data["maps"]), np.uint8).reshape(data["shape"])
    assert data["steps"] == ["mean over steps", "step 1", "step 2", "step 3"]
    assert data["words"][:4] == ["a", "<", "red", ">"]
    assert data["layers"] == ["all layers"] and groups == 1  # layers were merged
    (largest,) = np.array(data["largest"])
    for step in range(3):
        expected = attention.words(PROMPT, step=step)
        found = maps[0, step + 1] / 255 * largest[:, None, None]
        level = largest[:, None, None] / 255
        assert (abs(found - expected.array) <= 0.501 * level).all()  # rounded to the nearest
        assert data["mean"][0][step + 1] == pytest.approx(expected.array.mean((1, 2)), abs=1e-6)
    assert sum(data["mean"][0][0]) == pytest.approx(1, abs=1e-5)
    assert data["top"] == [max(largest[:-3])]  # the special tokens do not darken the words
    assert (rows, columns) == (4, 4) and words == len(data["words"])
    assert maps.max((0, 1, 3, 4)).tolist() == [255] * words
    colours = np.frombuffer(base64.b64decode(data["colours"]), np.uint8).reshape(256, 4)
    picture = Image.new("RGB", (256, 256), (200, 100, 50))
    for level in (0, 100, 255):  # the page covers a picture as `overlay` lights it
        lit = view.overlay(picture, np.full((2, 2), level), top=255).getpixel((9, 9))
        color, alpha = colours[level, :3].astype(float), colours[level, 3] / 255
        mixed = (1 - alpha) * np.array([200, 100, 50]) + alpha * color
        assert mixed == pytest.approx(np.array(lit), abs=1.5)


def test_the_page_has_the_stages_of_the_unet(loaded, tmp_path):
    settings = {"steps": 2, "height": 64, "width": 64, "progress": False}
    with kn.capture_attention(loaded, keep_axes=("layer", "step")) as attention:
        run = kn.generate(loaded, PROMPT, [0], **settings)
    text = view.write_page(tmp_path / "page.html", attention, run.images[0], PROMPT).read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    stages = ["down_blocks.1", "down_blocks.2", "up_blocks.0", "up_blocks.1"]
    assert data["layers"] == ["all layers", *stages] and data["shape"][:2] == [5, 3]
    maps = np.frombuffer(base64.b64decode(data["maps"]), np.uint8).reshape(data["shape"])
    coarse = attention.words(PROMPT, layers="up_blocks.0", step=1)["red"]
    number = data["words"].index("red")
    expected = 255 * np.kron(coarse, np.ones((2, 2))) / data["largest"][3][number]
    assert maps[3, 2, number] == pytest.approx(expected, abs=0.51)
    file, image = tmp_path / "one.html", run.images[0]
    one = view.write_page(file, attention, image, PROMPT, layers="up_blocks.0")
    assert '"layers": ["all layers"]' in one.read_text("utf-8")
    with pytest.raises(ValueError, match="capture fewer steps or choose layers"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("koala_nb.display.page.LARGEST_PAGE", 1000)
            view.write_page(tmp_path / "two.html", attention, run.images[0], PROMPT)


@pytest.mark.parametrize(("side", "form"), [(view.SIDE - 1, "png"), (view.SIDE, "jpeg")])
def test_small_pictures_keep_their_pixels(captured, tmp_path, side, form):
    picture = captured[1].resize((side, side))
    text = view.write_page(tmp_path / "page.html", captured[0], picture, PROMPT).read_text("utf-8")
    assert f"data:image/{form};base64" in text
    rendering = {"png": "pixels", "jpeg": "smooth"}
    assert f'class="{rendering[form]}"' in text


def test_the_page_asks_for_nothing_and_cannot_be_broken_out_of(captured, tmp_path):
    attention, picture = captured
    nasty = '</script><img src="https://example.org/x">'
    with pytest.raises(ValueError, match="shorten it"):
        view.write_page(tmp_path / "page.html", attention, picture, nasty * 3)
    assert not list(tmp_path.iterdir())
    text = view.write_page(tmp_path / "page.html", attention, picture, nasty).read_text("utf-8")
    assert "<img src=" not in text.replace("<img class=", "") and "https://" not in text.replace(
        "&quot;https://", ""
    )
    assert text.count("<script") == text.count("</script>") == 2


def test_fine_maps_are_made_smaller():
    maps = np.random.default_rng(0).random((2, 96, 144))
    found = view._shrink(maps)
    assert found.shape == (2, 32, 48)
    assert found.mean((1, 2)) == pytest.approx(maps.mean((1, 2)))
