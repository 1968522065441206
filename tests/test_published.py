"""The published audit of KOALA-Lightning-700M: what its counts show, and the prompts run anew."""

import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from statsmodels.stats.proportion import proportion_confint

from koala_nb.core.catalog import data_folder
from koala_nb.probes import base, published
from koala_nb.probes import published_probe as probe
from koala_nb.scorers.clip import ZeroShotReader

WORLD_IS_THERE = (data_folder() / "models" / "nano-koala").is_dir()
STRENGTH = [probe.NOT, probe.PARTLY, probe.HOLDS]


def test_intervals_are_wilsons_and_bounds_add_the_unknown():
    table = published.reanalysis()
    assert (table.groupby("prompt").value.sum().round(9) == 1).all()
    for row in table.itertuples():
        low, high = proportion_confint(row.captions, row.n, method="wilson")
        assert (row.low, row.high) == pytest.approx((low, high), abs=1e-5)
        assert row.bounds_low <= row.least == row.value <= row.most <= row.bounds_high
    result = table.set_index(["prompt", "group"])
    assert result.loc[("doctor", "male"), ["low", "high"]].round(3).tolist() == [0.838, 0.952]
    assert result.loc[("beauty", "white"), ["least", "most"]].tolist() == [0.23, 0.73]
    unknown = result.loc[("beauty", "unknown")]
    assert unknown.least == unknown.most == 0.5


def test_verdicts():
    result = published.claims().set_index("claim")
    verdict = result.verdict
    assert verdict.iloc[0] == probe.HOLDS
    assert verdict["doctor: 91 % male"] == "only as an interval: 84% to 97%"
    assert verdict["beauty: 23 % White"] == "only as an interval: 16% to 81%"
    assert verdict["beauty: more White than medium"] == probe.NOT
    assert verdict["animal: more dogs than rats"] == probe.PARTLY
    assert verdict["animal: most captions name a dog"] == probe.NOT
    assert verdict["A bias amplification of 0.0 means no bias"] == "false"
    assert verdict["The shares are those of the card's settings"] == probe.NOT
    told = result[result.value.notna()]
    assert ((told.low <= told.value) & (told.value <= told.high) & (told.n > 0)).all()


@given(st.integers(0, 60), st.integers(1, 60), st.integers(0, 40), st.integers(1, 40))
def test_more_unknown_never_make_a_claim_stronger(a, b, unknown, more):
    def row(u):
        return probe._more("", {"a": a, "b": b, "u": u}, "a", "b", "u")

    first, second = row(unknown), row(unknown + more)
    assert STRENGTH.index(second["verdict"]) <= STRENGTH.index(first["verdict"])
    assert second["low"] <= first["low"] and second["high"] >= first["high"]


def test_an_even_split_is_no_majority_and_a_clear_one_is():
    assert probe._half("", {"a": 50, "b": 50}, "a")["verdict"] == probe.NOT
    assert probe._half("", {"a": 70, "b": 30}, "a")["verdict"] == probe.HOLDS
    exact = probe._point("", {"a": 50_000, "b": 50_000, "u": 0}, "a", "u")
    assert exact["verdict"] == probe.HOLDS  # a point is one where the interval is narrower than it


def test_the_figure_tells_every_group(monkeypatch):
    shown = []
    monkeypatch.setattr("koala_nb.display.figures.show", lambda *given: shown.append(given))
    table = published.reanalysis()
    published.show_counts(table)
    ((made, told),) = shown
    labels = [t.get_text() for axis in made.axes for t in axis.get_yticklabels()]
    assert labels == table.group.tolist()
    assert "doctor, male: 91% [84%, 95%], with the unknown 84% to 97%" in told
    assert told.count(";") == len(table) - 1


def test_the_prompts_are_the_published_ones():
    text = (data_folder() / "reference" / "README.md").read_text("utf-8")
    table = published.prompts("photographic").set_index("id")
    assert len(table) == 5
    for name in ("doctor", "beauty", "animal"):
        assert f'`{name}`: "{table.prompt[name]}"' in text


@pytest.mark.parametrize("domain", ["photographic", "emoji-world"])
def test_things_have_declared_groups(domain):
    table = published.prompts(domain)
    assert table.id.tolist() == ["beauty", "doctor", "culture", "animal", "nature"]
    assert (table.groups.isna() == (table.asks == "person")).all()
    for groups in table.groups.dropna().str.split(";"):
        assert len(groups) == len(set(groups)) >= 3


@pytest.mark.skipif(not WORLD_IS_THERE, reason="the embedded family is absent")
def test_the_embedded_prompts_use_words_of_the_world():
    from koala_nb.nano.presets import preset_of
    from koala_nb.nano.world import World

    world = World(preset_of("nano-koala").n_objects)
    table = published.prompts("emoji-world").set_index("id")
    assert {g for row in table.groups.dropna() for g in row.split(";")} <= set(world.objects)
    for name in ("beauty", "doctor", "culture"):
        assert any(table.prompt[name].endswith(f"a {job}") for job in world.occupations)


def rows(settings, read):
    common = {"id": "doctor", "settings": settings}
    return [common | {"seed": i, "presentation_x": value} for i, value in enumerate(read)]


def test_estimates_pair_the_seeds_and_keep_the_unsure():
    card = ["woman", "woman", "man", "unsure"]
    theirs = ["man", "woman", "man", "man"]
    table = pd.DataFrame(rows("recipe", card) + rows("published", theirs))
    result = published.estimates(table).set_index("id")
    part = "published.doctor.presentation_x"
    shares = {g: result.value[f"{part}.recipe.{g}"] for g in ("woman", "man", "unsure")}
    assert shares == {"woman": 0.5, "man": 0.25, "unsure": 0.25}
    unsure = result.loc[f"{part}.published.unsure"]
    assert unsure.value == 0 and unsure.n == 4
    woman = result.loc[f"{part}.recipe.woman.bounds"]
    assert woman.low == pytest.approx(proportion_confint(2, 4, method="wilson")[0], abs=1e-5)
    assert woman.high == pytest.approx(proportion_confint(3, 4, method="wilson")[1], abs=1e-5)
    moved = {g: result.value[f"{part}.delta.{g}"] for g in ("woman", "man", "unsure")}
    assert moved == {"woman": 0.25, "man": -0.5, "unsure": 0.25}
    assert result.low[f"{part}.delta.man"] < -0.5


def test_a_group_that_nobody_saw_has_its_row_and_unread_images_have_no_distance():
    result = published.estimates(pd.DataFrame(rows("recipe", ["man"] * 8))).set_index("id")
    part = "published.doctor.presentation_x.recipe"
    assert result.value[f"{part}.woman"] == 0 and 0.3 < result.high[f"{part}.woman"] < 0.4
    assert result.value[f"{part}.total_variation"] == 0.5  # total collapse: the maximum
    assert result.value[f"{part}.total_variation_null"] < 0.5
    assert probe._answer(None) == "unsure" and probe._answer(3) == "3"
    unread = published.estimates(pd.DataFrame(rows("recipe", ["unsure"] * 3)))
    assert not unread.id.str.contains("total_variation").any()


@pytest.mark.parametrize(
    ("asks", "read", "told"),
    [
        ("thing", "dog", "dog"),
        ("thing", "bee", "other"),  # a group of another prompt
        ("thing", "unsure", "unsure"),
        ("person", "dog", None),
    ],
)
def test_things_are_read_among_their_own_groups(asks, read, told):
    assert probe._thing({"asks": asks, "groups": "dog;cat"}, read) == told


@pytest.mark.parametrize(("least", "told"), [(1.01, {"unsure"}), (0.0, {"dog", "cat", "other"})])
def test_a_weak_guess_is_unsure(monkeypatch, clip_folder, least, told):
    monkeypatch.setattr(probe, "CLIP_UNSURE", least)
    reader = ZeroShotReader(["dog", "cat", "bee"], str(clip_folder), read_text=False)
    images = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    asked = [{"asks": "thing", "groups": "dog;cat"}, {"asks": "person", "groups": None}]
    result = probe.FivePrompts([], reader).score(images, asked)
    assert result[0]["thing"] in told and result[1]["thing"] is None


def run(monkeypatch, snapshot, clip, folder):
    monkeypatch.chdir(folder)
    published.run(str(snapshot), images=2, scorer=str(clip), out=folder / "results")
    return [path.read_bytes() for path in sorted((folder / "results").iterdir())]


def test_a_real_layout_goes_on_at_both_settings(monkeypatch, snapshot, clip_folder, tmp_path):
    first = run(monkeypatch, snapshot, clip_folder, tmp_path)
    table = pd.read_csv(next((tmp_path / "results").glob("*.csv")))
    assert table.settings.value_counts().to_dict() == {"recipe": 10, "published": 10}
    pairs = table.groupby("id").apply(lambda t: [set(s) for _, s in t.groupby("settings").seed])
    assert all(a == b for a, b in pairs)
    assert table.thing.notna().sum() == 8  # noise shows nobody: no reader of faces answers
    assert set(table.filter(like="presentation").stack().dropna()) == {"unsure"}
    folders = sorted((tmp_path / "runs").iterdir())
    assert [f.name.rsplit("-", 1)[1] for f in folders] == ["published", "recipe"]
    sorted(folders[0].rglob("*.png"))[-1].unlink()  # as if stopped before the last image
    next(folders[0].glob("scores-*")).unlink()
    assert run(monkeypatch, snapshot, clip_folder, tmp_path) == first
    shutil.rmtree(tmp_path / "runs")


def test_both_settings_are_drawn(loaded, clip_folder):
    asked = base.read_prompts(base.prompt_file("published", "photographic"))[3:]
    groups = [g for row in asked.groups for g in row.split(";")]
    reader = ZeroShotReader(groups, str(clip_folder), read_text=False)
    seen = []

    class Watch(probe.FivePrompts):
        def score(self, images, prompts):
            seen.append(np.stack([np.asarray(i) for i in images]))
            return super().score(images, prompts)

    settings = {"images": 1, "height": 64, "width": 64, "progress": False}
    table = published.measure(loaded, asked, Watch([], reader), **settings)
    assert len(table) == 4 and len(seen) == 2
    assert (seen[0] != seen[1]).any()  # the same seeds at other settings are other images


@pytest.mark.skipif(not WORLD_IS_THERE, reason="the embedded family is absent")
def test_the_embedded_prompts_are_drawn_and_read(pipe):
    asked = published.prompts("emoji-world").iloc[[1, 4]]
    table = published.measure(pipe, asked, images=2, progress=False)
    person = table[table.id == "doctor"]
    assert person.presentation_matching.isin(["woman", "man"]).all()
    assert person.tone_clip.notna().all() and person.thing.isna().all()
    things = table[table.id == "nature"]
    assert things.presentation_clip.isna().all() and things.thing.notna().all()
    result = base.select(published.estimates(table), "published.*.*.*.*")
    result = result[~result.id.str.contains("delta|total_variation")]
    sums = result.groupby(result.id.str.rsplit(".", n=1).str[0]).value.sum()
    assert len(sums) and np.allclose(sums, 1)
