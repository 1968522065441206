"""The frequency probe: its tables, estimates, scorers and their errors, and that it can go on."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from koala_nb.probes import base, frequency
from koala_nb.probes import frequency_probe as module
from koala_nb.scorers import clip, pixels
from koala_nb.stats import estimates


@pytest.mark.parametrize("domain", ["emoji-world", "photographic"])
def test_prompts_name_their_concept_once_each(domain):
    table = base.read_prompts(base.prompt_file("frequency", domain))
    plain = table[table.part == "concept"]
    assert len(plain) >= 60 and plain.concept.is_unique
    assert all(c in p for c, p in zip(plain.concept, plain.prompt))
    named = plain[plain.prompt != plain.concept]
    assert (named.prompt.str.split().str.len() == named.concept.str.split().str.len() + 1).all()


def table_file(tmp_path, text):
    path = tmp_path / "counts.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_ones_own_frequencies_choose_the_concepts(tmp_path):
    path = table_file(tmp_path, "concept,count\nquokka,12\ndog,90000\nflying carpet,0\n")
    table = frequency.prompts("photographic", frequencies=str(path))
    assert table.concept.tolist() == ["dog", "quokka", "flying carpet"]
    assert table.part.tolist() == ["concept", "concept", module.NEVER]
    assert table.prompt.iloc[2] == "a picture of flying carpet"
    assert frequency.binned(table).bin.tolist() == ["ranks 1 to 1", "ranks 2 to 2", module.NEVER]


def drawn(concepts=60, images=8, slope=1.5, seed=0):
    """A table of a model whose success follows log10 frequency exactly, 0.5 at 100."""
    rng = np.random.default_rng(seed)
    frequency = np.round(10 ** rng.uniform(0, 4, concepts), 1)
    share = 1 / (1 + np.exp(-slope * (np.log10(frequency) - 2)))
    which = np.repeat(np.arange(concepts), images)
    hits = [bool(rng.random() < share[i]) for i in which]
    names = {"id": [f"c{i}" for i in which], "concept": [f"thing {i}" for i in which]}
    return pd.DataFrame(names | {"part": "concept", "frequency": frequency[which], "hit": hits})


def test_the_trend_holds_the_true_slope_and_middle():
    result = [module.trend(drawn(seed=seed)) for seed in range(60)]
    assert np.mean([t.slope.low <= 1.5 <= t.slope.high for t in result]) >= 0.88
    assert np.mean([t.half.low <= 2 <= t.half.high for t in result]) >= 0.88
    flat = [module.trend(drawn(slope=0.0, seed=seed)) for seed in range(60)]
    assert np.mean([t.slope.low <= 0 <= t.slope.high for t in flat]) >= 0.88


def test_there_is_no_trend_without_misses_or_frequencies():
    unknown = drawn().assign(frequency=None)
    assert module.trend(drawn().assign(hit=True)) is module.trend(unknown) is None
    ids = set(frequency.estimates(unknown).id)
    assert "frequency.part.concept.hit" in ids and "frequency.trend.slope" not in ids
    assert frequency.estimates(drawn().assign(hit=None)).empty  # no scorer: nothing is claimed


def test_bins_are_even_and_a_perfect_scorer_changes_no_share():
    table = drawn()

    def bins(measure, instrument=None):
        return base.select(frequency.estimates(table, instrument), f"frequency.bin.*.{measure}")

    hits, names = bins("hit"), list(dict.fromkeys(frequency.binned(table).bin))
    assert len(hits) == module.BINS and hits.clusters.tolist() == [12] * 5
    assert bins("frequency").value.is_monotonic_decreasing
    assert hits.value.iloc[0] > hits.value.iloc[-1]
    perfect = {"sensitivity": dict.fromkeys(names, [900, 900]), "specificity": [900, 900]}
    assert np.allclose(bins("supposed", perfect).value, hits.value)
    blunt = {"sensitivity": dict.fromkeys(names, [450, 900]), "specificity": [900, 900]}
    twice = bins("supposed", blunt).value
    assert twice.iloc[-1] == pytest.approx(2 * hits.value.iloc[-1], abs=1e-3)
    difference = frequency.estimates(table).set_index("id").loc["frequency.rarest.difference"]
    assert difference.high < 0 and difference.value == pytest.approx(
        hits.value.iloc[-1] - hits.value.iloc[0], abs=1e-5
    )


def test_ties_are_told_from_chance():
    rows = []
    for i in range(40):
        tied = i % 2 == 0
        row = {"concept": f"thing {i}", "tie": "background" if tied else "none"}
        row["tied_to"] = "red" if tied else None
        for k in range(4):
            plain = {"id": f"p{i}", "part": "concept"}
            plain["painted"] = "red" if tied or not k else "blue"
            named = {"id": f"q{i}", "part": "background named", "background": "blue"}
            rows += [row | plain, row | named | {"painted": "blue" if k else "red"}]
    table = pd.DataFrame(rows)
    result = estimates.estimates_frame(module.association_rows(table, "background", "painted"))
    assert result.value.tolist() == [1.0, 0.25, 0.75, 0.25, 0.75]
    assert module.tie_test(table, "background", "painted") < 0.001
    none = table.assign(painted=np.repeat(["red", "blue"] * 80, 2))
    assert module.tie_test(none, "background", "painted") > 0.5
    assert np.isnan(module.tie_test(table, "style", "painted"))


def test_agreement_of_seeds():
    table = pd.DataFrame({"id": list("aaaabbbb"), "look": list("xxxxxxyy")})
    result = module.agreement(table, ["look"])
    assert result.value == pytest.approx((1 + 1 / 3) / 2) and result.n == 2
    with pytest.raises(ValueError, match="two or more prompts"):
        module.agreement(table[:4], ["look"])


def test_ground_is_the_colour_around_and_bars_are_told_from_it():
    for name, color in pixels.PALETTE.items():
        image = Image.new("RGB", (48, 32), color)
        ImageDraw.Draw(image).ellipse((8, 8, 40, 24), "black")
        assert pixels.background_color(image) == name
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    plain = Image.new("RGB", (64, 64), "white")
    assert not pixels.has_bars(Image.fromarray(noise)) and not pixels.has_bars(plain)
    ImageDraw.Draw(plain).ellipse((16, 16, 48, 48), "red")
    assert not pixels.has_bars(plain)
    noise[:8] = noise[56:] = 12
    assert pixels.has_bars(Image.fromarray(noise))
    assert pixels.has_bars(Image.fromarray(noise.swapaxes(0, 1)))


def test_a_random_clip_reads_no_better_than_chance(clip_folder):
    concepts = [f"thing {i}" for i in range(20)]
    reader = clip.ZeroShotReader(concepts, str(clip_folder), read_text=False)
    assert reader.name == "zero-shot tiny-clip"
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))] * 40
    rows = reader.score(images, [{"concept": concepts[i % 20]} for i in range(40)])
    assert sum(row["hit"] for row in rows) == 2  # one answer for all: right for 1 of 20
    assert {row["read"] for row in rows} < set(concepts) and 0 < rows[0]["confidence"] <= 1
    with pytest.raises(ValueError, match="The scorer .*none cannot be loaded"):
        clip.ZeroShotReader(["dog"], str(clip_folder / "none"))


@pytest.fixture(scope="module")
def asked():
    return frequency.prompts("emoji-world")


@pytest.fixture(scope="module")
def reader(pipe, asked):
    return frequency.scorer(pipe, asked)


@pytest.fixture(scope="module")
def card(pipe, reader, asked):
    few = type(frequency)()
    few.card_scenes = 20
    return few.calibrate(pipe, reader, asked)


def test_the_prompt_set_is_what_was_planted(asked):
    from koala_nb.nano.presets import preset_of
    from koala_nb.nano.world import World

    world = World(preset_of("nano-koala").n_objects)
    expected = dict(zip(world.objects, 1e6 * world.frequency))
    seen = asked[asked.part == "concept"]
    assert seen.concept.tolist() == world.objects
    assert np.allclose(seen.frequency.astype(float), [expected[c] for c in seen.concept], atol=0.06)
    never = asked[asked.part == module.NEVER]
    assert len(never) == 20 and not set(never.concept) & set(world.objects)
    planted = world.planted
    for kind in ("background", "style"):
        tied = asked[(asked.tie == kind) & (asked.part == "concept")]
        assert dict(zip(tied.concept, tied.tied_to)) == planted[f"tied_{kind}"]
        named = asked[(asked.part == f"{kind} named") & (asked.tie == kind)]
        assert len(named) == 12 and (named[kind] != named.tied_to).all()
    words = asked[asked.part == "word held out"].word
    assert set(words) <= set(planted["held_out"]["words"]) and len(words) == 10


@pytest.mark.parametrize("wrong", [0.1, 0.3, 0.6])
def test_the_corrected_interval_holds_an_injected_failure_rate(reader, pipe, asked, card, wrong):
    """Perfect drawings of which a known share shows something else than was asked for."""
    from koala_nb.nano.evaluation import through
    from koala_nb.nano.memorisation import _with, scenes
    from koala_nb.nano.render import to_pixels
    from koala_nb.nano.world import Thing

    concepts = asked[asked.part == "concept"].concept.tolist()
    rng = np.random.default_rng(round(100 * wrong))
    some = scenes(concepts, 120, 60_000_000)
    fails = rng.permutation(120) < round(120 * wrong)
    shown = [
        _with(s, Thing("object", concepts[(i + 7) % 150])) if bad else s
        for i, (s, bad) in enumerate(zip(some, fails))
    ]
    pixels = to_pixels(through(pipe.vae.float(), reader.matcher("object", 64).render(shown)))
    prompts = [{"concept": s.placed[0].thing.name} for s in some]
    rows = reader.score([Image.fromarray(p) for p in pixels], prompts)
    right = np.sum([v for k, v in card["sensitivity"].items() if k != module.NEVER], axis=0)
    hits, names = [row["hit"] for row in rows], [p["concept"] for p in prompts]
    result = base.corrected(hits, names, (right, card["specificity"]))
    assert result.low <= 1 - wrong <= result.high and result.high - result.low < 0.3


def test_the_instrument_card(card):
    for right, n in card["sensitivity"].values():
        assert n == 20 and right >= 17
    assert card["specificity"][0] >= card["specificity"][1] - 1
    for name in ("nothing read in noise", "nothing read on an empty ground"):
        assert card[name][0] == card[name][1] == 20
    near, far = card["copy"]["sensitivity"], card["copy"]["specificity"]
    assert near[0] / near[1] > 0.7 and far[0] / far[1] > 0.7
    assert card["words"][0] >= 18


def test_distance_is_zero_for_a_clean_sprite_and_grows(reader):
    from koala_nb.nano.memorisation import SpriteReader, mixtures, scenes

    matcher = reader.matcher("object", 64)
    some = scenes(reader.concepts, 12)
    clean = reader.read(matcher.render(some))
    assert [r["read"] for r in clean] == [s.placed[0].thing.name for s in some]
    assert max(r["distance"] for r in clean) < 1
    assert min(r["distance"] for r in reader.read(mixtures(matcher, some))) > 5
    with pytest.raises(ValueError, match="no drawing of 'quokka'"):
        SpriteReader(["koala", "quokka"]).matcher("object", 64)


def test_the_command_writes_a_table_and_estimates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(type(frequency), "card_scenes", 4)
    frequency.run(prompts=10, images=1, anyway=True, out=tmp_path)
    table = pd.read_csv(tmp_path / "probe-frequency-nano-koala.csv")
    said = json.loads((tmp_path / "probe-frequency-nano-koala.json").read_text("utf-8"))
    assert len(table) == 10 == len(set(table.id))
    assert said["banner"] and said["scorer"] == "sprite matching 1"
    assert "specificity" in said["instrument"] and said["estimates"][0]["id"]


def test_the_notebook_on_a_real_layout_finds_nothing_drawn(
    clip_folder, hub_home, tmp_path, monkeypatch
):
    """With a scorer, one's own frequencies and a second model: no trend and no difference."""
    from koala_nb.report import run

    monkeypatch.setenv("HF_HOME", str(hub_home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    counts = table_file(tmp_path, "concept,count\ndog,9000\nkoala,40\nquokka,3\nglobe,0\n")
    model = "koala-lightning-700m"
    given = {"model": model, "compare": model, "size": 64, "seeds": 2, "n": 0}
    given |= {"scorer": str(clip_folder), "frequencies": str(counts)}
    book = run.NOTEBOOKS / "08_probe_dataset_dependence.ipynb"
    page = run.run_report(book, given, out=tmp_path)
    text = page.read_text("utf-8")
    assert run.status(page.parent)["state"] == "done"
    assert re.search(r"0\.00 \(−0\.\d\d to 0\.\d\d\)", text), "alike in all pairs, and not for sure"
    assert "never seen" in text and "No ties are planted" in text
    # One of four concepts at most is "found" by a scorer that gives one answer to everything.
    assert float(text.split("right: ")[1].split("interval ")[1].split(" to ")[0]) <= 1 / 3
