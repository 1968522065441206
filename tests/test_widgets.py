"""The prompt explorer draws what generate draws, and says in the widget what went wrong."""

import warnings

import pytest
from PIL import Image

from koala_nb import generation
from koala_nb.widgets import picture, prompt_explorer

PROMPT = "a koala"


@pytest.fixture
def explorer(loaded):
    return prompt_explorer(loaded, prompt=PROMPT, seed=3, steps=2, guidance=2.0, size=64)


def test_it_starts_with_the_settings_and_no_image(explorer):
    assert (explorer.prompt.value, explorer.seed.value, explorer.steps.value) == (PROMPT, 3, 2)
    assert explorer.guidance.value == 2.0
    assert explorer.picture.value == "" and "Nothing drawn yet" in explorer.status.value


def test_it_starts_with_the_recipe_where_nothing_is_given(loaded):
    from dataclasses import replace

    from koala_nb import catalog

    before = loaded.koala_nb
    loaded.koala_nb = replace(before, recipe=catalog.find("koala-lightning-700m").recipe)
    try:
        explorer = prompt_explorer(loaded)
    finally:
        loaded.koala_nb = before
    assert (explorer.steps.value, explorer.guidance.value) == (10, 3.5)
    assert "Golden Retriever" in explorer.prompt.value


def test_guidance_zero_stays_zero(loaded):
    assert prompt_explorer(loaded, guidance=0.0).guidance.value == 0.0


def test_it_draws_the_image_of_generate(explorer, loaded):
    explorer.button.click()
    (image,) = generation.generate(
        loaded, PROMPT, [3], steps=2, guidance=2.0, height=64, width=64, progress=False
    ).images
    described = "a koala, seed 3, 2 steps, guidance 2"
    assert explorer.picture.value == picture(image, described)
    assert described in explorer.status.value and not explorer.button.disabled


def test_an_error_is_one_sentence_in_the_widget(explorer):
    explorer.button.click()
    explorer.prompt.value = "  "
    explorer.button.click()
    assert "No image: the prompt is empty" in explorer.status.value
    assert explorer.picture.value == "" and not explorer.button.disabled


def test_any_failure_frees_the_button(explorer, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of <memory>\nand more")

    monkeypatch.setattr("koala_nb.generation.generate", fail)
    explorer.draw()
    assert "No image: out of &lt;memory&gt;<" in explorer.status.value
    assert not explorer.button.disabled


def test_a_long_prompt_is_told_in_the_widget(explorer):
    explorer.prompt.value = "koala " * 40
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        explorer.draw()
    assert "it does not read" in explorer.status.value


def test_every_control_has_a_name(explorer):
    names = [w.description for w in (explorer.prompt, explorer.seed, explorer.steps)]
    names += [explorer.guidance.description, explorer.button.description]
    assert all(names) and len(set(names)) == 5
    assert 'role="status"' in explorer.status.value


def test_what_a_notebook_stores_of_it_does_not_change(explorer):
    before = repr(explorer)
    explorer.draw()
    assert repr(explorer) == before and "<" not in before


def test_a_prompt_cannot_break_out_of_the_page():
    html = picture(Image.new("RGB", (8, 8)), '"><script>')
    assert "<script>" not in html and "&quot;&gt;&lt;script&gt;" in html
