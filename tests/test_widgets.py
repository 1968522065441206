"""The prompt explorer draws what generate draws, and says in the widget what went wrong."""

import html
import warnings
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
from PIL import Image

import koala_nb
from koala_nb import widgets
from koala_nb.widgets import block_table, picture, prompt_explorer, unet_explorer

PROMPT = "a koala"


@pytest.fixture
def explorer(loaded):
    return prompt_explorer(loaded, prompt=PROMPT, seed=3, steps=2, guidance=2.0, size=64)


def test_it_starts_with_the_settings_and_no_image(explorer):
    assert (explorer.prompt.value, explorer.seed.value, explorer.steps.value) == (PROMPT, 3, 2)
    assert explorer.guidance.value == 2.0
    assert explorer.picture.value == "" and "Nothing drawn yet" in explorer.status.value


def test_it_starts_with_the_recipe_where_nothing_is_given(loaded, monkeypatch):
    recipe = koala_nb.find("koala-lightning-700m").recipe
    monkeypatch.setattr(loaded, "model_info", replace(loaded.model_info, recipe=recipe))
    explorer = prompt_explorer(loaded)
    assert (explorer.steps.value, explorer.guidance.value) == (10, 3.5)
    assert "Golden Retriever" in explorer.prompt.value
    assert prompt_explorer(loaded, guidance=0.0).guidance.value == 0.0  # zero is given, too


def test_it_draws_the_image_of_generate(explorer, loaded):
    explorer.button.click()
    settings = {"steps": 2, "guidance": 2.0, "height": 64, "width": 64, "progress": False}
    (image,) = koala_nb.generate(loaded, PROMPT, [3], **settings).images
    described = "a koala, seed 3, 2 steps, guidance 2"
    assert explorer.picture.value == picture(image, described)
    assert described in explorer.status.value and not explorer.button.disabled


def test_any_failure_is_one_sentence_in_the_widget_and_frees_the_button(explorer, monkeypatch):
    explorer.button.click()
    explorer.prompt.value = "  "
    explorer.button.click()
    assert "No image: the prompt is empty" in explorer.status.value
    assert explorer.picture.value == "" and not explorer.button.disabled
    explorer.prompt.value = PROMPT
    fail = MagicMock(side_effect=RuntimeError("out of <memory>\nand more"))
    monkeypatch.setattr("koala_nb.generation.generate.generate", fail)
    explorer.draw()
    assert "No image: out of &lt;memory&gt;.<" in explorer.status.value
    assert not explorer.button.disabled


def test_a_long_prompt_is_told_in_the_widget(explorer):
    explorer.prompt.value = "koala " * 40
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        explorer.draw()
    assert "it does not read" in explorer.status.value


def test_a_prompt_cannot_break_out_of_the_page():
    html = picture(Image.new("RGB", (8, 8)), '"><script>')
    assert "<script>" not in html and "&quot;&gt;&lt;script&gt;" in html


# --- the U-Net explorer -------------------------------------------------------------------------


def shown(explorer):
    return explorer.system.value, explorer.stage.value, explorer.block.value


def test_it_shows_a_block_from_the_start():
    explorer = unet_explorer("koala-700m")
    assert shown(explorer) == ("koala-700m", "down_blocks.0", "resnets.0")
    assert explorer.output.value == block_table(*shown(explorer)).data
    assert "Shown: koala-700m, down_blocks.0, resnets.0." in explorer.status.value


def test_stages_and_blocks_follow_the_system():
    explorer = unet_explorer("sdxl-base")
    explorer.stage.value = "mid_block"
    assert list(explorer.block.options) == ["resnets.0", "attentions.0", "resnets.1"]
    explorer.block.value = "attentions.0"
    explorer.system.value = "koala-1b"  # has the same block: it stays chosen
    assert shown(explorer) == ("koala-1b", "mid_block", "attentions.0")
    explorer.system.value = "koala-700m"  # has no mid block
    assert "mid_block" not in explorer.stage.options
    assert shown(explorer) == ("koala-700m", "down_blocks.0", "resnets.0")
    assert explorer.output.value == block_table(*shown(explorer)).data


def test_the_table_of_a_block_is_exact():
    html = block_table("koala-700m", "down_blocks.2", "attentions.0").data
    assert "Transformer2DModel, 177,061,120 parameters in 106 tensors; the largest 12" in html
    assert html.count("<tr>") == 1 + widgets.TENSORS
    first = html.index("10240 x 1280")
    assert "13,107,200" in html[first:] and first < html.index("1280 x 5120")
    whole = block_table("koala-700m", "rest", "conv_in").data
    assert "320 x 4 x 3 x 3" in whole and "11,840 parameters in 2 tensors; the largest 2" in whole


@pytest.mark.parametrize(
    "stage, block, message",
    [
        ("mid_block", "resnets.0", "no stage 'mid_block': choose one of down_blocks.0"),
        ("up_blocks.0", "resnets.2", "no block 'resnets.2': choose one of resnets.0"),
        ("rest", "", "no block '': choose one of conv_in"),
    ],
)
def test_a_block_that_is_not_there_is_refused(stage, block, message):
    with pytest.raises(ValueError, match=message):
        block_table("koala-700m", stage, block)
    with pytest.raises(ValueError, match="Did you mean 'koala-700m'"):
        unet_explorer("koala-700")


def test_a_failure_of_the_explorer_is_one_sentence(monkeypatch):
    explorer = unet_explorer("koala-700m")

    fail = MagicMock(side_effect=RuntimeError("a <broken> configuration\nand more"))
    monkeypatch.setattr(widgets, "_built", fail)
    explorer.system.value = "koala-1b"
    assert "No table: a &lt;broken&gt; configuration.<" in explorer.status.value
    assert explorer.output.value == ""
    monkeypatch.undo()
    explorer.system.value = "sdxl-base"
    assert "Shown: sdxl-base" in explorer.status.value and explorer.output.value


def test_controls_have_names_and_what_a_notebook_stores_does_not_change(explorer):
    unet, knobs = unet_explorer(), ("prompt", "seed", "steps", "guidance", "button")
    for widget, controls, change in (
        (explorer, knobs, explorer.draw),
        (unet, ("system", "stage", "block"), unet.show),
    ):
        before, names = repr(widget), {getattr(widget, name).description for name in controls}
        assert all(names) and len(names) == len(controls)
        change()
        assert repr(widget) == before and "<" not in before
        assert 'role="status"' in widget.status.value


def test_the_explorer_offers_no_system_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("KOALA_NB_DATA", str(tmp_path))
    assert not [name for name in unet_explorer().system.options if name.startswith("nano-")]


# --- attention --------------------------------------------------------------------------------

PROMPTS = ["a cat", "two red dogs"]


@pytest.fixture(scope="module")
def captured(loaded):
    with koala_nb.capture_attention(loaded, keep_axes=("layer", "step")) as attention:
        small = {"steps": 2, "height": 64, "width": 64, "progress": False}
        drawn = koala_nb.generate(loaded, PROMPTS, [0], **small)
    return attention, list(drawn.images)


@pytest.fixture
def attended(captured):
    return widgets.AttentionExplorer(*captured, PROMPTS)


def test_a_words_map_follows_the_choice(attended, captured):
    assert attended.word.options[:2] == ("1 a", "2 cat") and "<img" in attended.output.value
    attended.image.value = 1
    attended.layers.value, attended.step.value = captured[0].layers()[3], "2"
    attended.word.value = "3 dogs"
    expected = captured[0].words(PROMPTS[1], 1, layers=attended.layers.value, step=1)["dogs"]
    share = f"Mean {100 * expected.mean():.1f} % of the attention"
    assert share in attended.status.value and "step: 2" in attended.status.value
    assert html.unescape(attended.output.value).count(share) == 1  # also the picture's text


def test_a_word_that_the_next_prompt_lacks_is_left(attended):
    attended.word.value = "2 cat"
    attended.image.value = 1
    assert attended.word.value == "1 two"


def test_the_attention_explorer_needs_as_many_prompts(captured):
    with pytest.raises(ValueError, match="Give 2 pictures and prompts"):
        widgets.AttentionExplorer(*captured, PROMPTS[:1])


def test_a_prompt_that_is_too_long_is_one_sentence(captured):
    explorer = widgets.AttentionExplorer(*captured, ["x" * 90, "a dog"])
    assert "No map: The prompt has 92 tokens" in explorer.status.value
    assert explorer.output.value == ""
