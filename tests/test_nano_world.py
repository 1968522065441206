import json
import re
import shutil
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from koala_nb.core.catalog import data_folder

pytest.importorskip("koala_nb.nano.world", reason="koala_nb/nano is absent")
if not (data_folder() / "world" / "planted.json").is_file():
    pytest.skip("data/world is absent", allow_module_level=True)

from koala_nb.nano import planted, world  # noqa: E402
from koala_nb.nano.world import World, article, load_json  # noqa: E402

WORLD = World(150)  # the small configuration's
BALANCED = World(150, balanced=True)
TRUTH = load_json("planted.json")
HELD = TRUTH["held_out"]
GOLDEN = [
    "a picture of a pilot on an orange background in fluent style",
    "a large man artist",
    "a small koala on a brown background",
]
ENOUGH = 1e-4  # a p value below it would be no accident of the fixed seeds


@pytest.fixture(scope="module")
def scenes():
    return [WORLD.scene(seed) for seed in range(20_000)]


@pytest.fixture(scope="module")
def people(scenes):
    """(scene, person) of every person in the scenes, and of 6,000 scenes of one person."""
    more = (WORLD.scene(seed, "person") for seed in range(20_000, 26_000))
    return [(s, p) for s in (*scenes, *more) for p in things(s) if p.kind == "person"]


def things(scene):
    return [placed.thing for placed in scene.placed]


# --- a scene and its seed ---------------------------------------------------------------------


@given(st.integers(0, 2**62), st.sampled_from([None, *world.KINDS]))
def test_a_scene_is_a_pure_function_of_its_seed(seed, kind):
    scene = WORLD.scene(seed, kind)
    WORLD.scene(seed + 1)
    assert WORLD.scene(seed, kind) == scene == World(150).scene(seed, kind)
    assert kind in (None, scene.kind)


def test_scenes_are_those_that_the_models_were_trained_on():
    """A change of the random draws would part the world from the trained weights."""
    assert [WORLD.scene(seed).caption for seed in (6, 7, 11)] == GOLDEN


def test_another_seed_is_another_scene():
    assert len({WORLD.scene(seed, "pair").placed for seed in range(200)}) > 190


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="'portrait'.*person"):
        WORLD.scene(0, "portrait")


def test_missing_data_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("KOALA_NB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"planted\.json"):
        load_json.__wrapped__("planted.json")


def test_scenes_are_as_the_issue_says(scenes):
    assert set(world.BACKGROUNDS) == {s.background for s in scenes} and len(world.BACKGROUNDS) == 10
    assert {s.relation for s in scenes} == {None, "left of", "right of", "above", "below"}
    assert {len(s.placed) for s in scenes} == {1, 2, 3, 4}
    assert {p.size for s in scenes for p in s.placed} == set(world.SIZES)
    for scene in scenes:
        for left, top, right, bottom in (placed.box for placed in scene.placed):
            assert 0 <= left < right <= world.UNITS and 0 <= top < bottom <= world.UNITS
        assert not any(t.kind == "shape" and t.color == scene.background for t in things(scene))


def test_relations_are_true(scenes):
    related = [s for s in scenes if s.relation]
    assert len(related) > 3000
    for scene in related:
        (x, y), (u, v) = ((p.x, p.y) for p in scene.placed)
        ahead = {"left of": u - x, "right of": x - u, "above": v - y, "below": y - v}
        assert ahead[scene.relation] > 20


# --- captions ---------------------------------------------------------------------------------

BACKGROUND = re.compile(r" (?:on an? (\w+) background|in front of (\w+))(?=,| in |$)")
STYLE = re.compile(r"(?:,| in) (\w+) style$")
TONE = re.compile(r"with (light|medium light|medium|medium dark|dark) skin")


def test_captions_name_only_what_is_true(scenes):
    """Read by keywords, each attribute is the scene's, and stands exactly where `named` says so."""
    for scene in scenes:
        caption, found = scene.caption, {}
        if match := BACKGROUND.search(caption):
            found["background"] = match[1] or match[2]
            assert found["background"] == scene.background
        if match := STYLE.search(caption):
            found["style"] = match[1]
            assert match[1] == scene.style
        for person in (t for t in things(scene) if t.kind == "person"):
            if match := TONE.search(caption):
                found["tone"] = match[1]
                assert match[1] == person.tone
            if match := re.search(rf"\b(woman|female|man|male) {person.name}", caption):
                found["presentation"] = {"female": "woman", "male": "man"}.get(match[1], match[1])
                assert found["presentation"] == person.presentation
        if len(scene.placed) == 1:
            first = scene.placed[0]
            words = re.escape(" ".join(filter(None, [first.thing.color, first.thing.name])))
            # The whole name: one of the objects is called "small airplane".
            sizes = rf"\b(large|small) (?:(?:woman|female|man|male) )?{words}"
            if match := re.search(sizes, caption):
                found["size"] = match[1]
                assert match[1] == first.size
        assert set(found) == scene.named, caption


def test_captions_name_what_is_there(scenes):
    for scene in scenes:
        caption, shown = scene.caption, things(scene)
        for thing in shown:
            words = f"{thing.color} {thing.name}" if thing.color else thing.name
            assert re.search(rf"\b{re.escape(words)}\b", caption)
        if scene.kind == "count":
            assert len(set(shown)) == 1
            assert caption.startswith(f"{world.COUNTS[len(shown)]} {shown[0].name} emoji")
        if scene.relation:
            one, other = (re.escape(t.name) for t in shown)
            assert re.search(rf"{one}.* {scene.relation} .*{other}", caption)


def test_each_attribute_is_named_only_sometimes(scenes):
    def share(name, apply):
        chosen = [name in s.named for s in scenes if apply(s)]
        return sum(chosen) / len(chosen)

    def shows_person(scene):
        return any(t.kind == "person" for t in things(scene))

    assert 0.3 < share("style", lambda s: True) < 0.9
    assert 0.3 < share("background", lambda s: True) < 0.9
    assert 0.3 < share("presentation", shows_person) < 0.9
    assert 0.3 < share("tone", shows_person) < 0.9
    assert 0.3 < share("size", lambda s: s.kind == "object" and s.placed[0].size == "small") < 0.9


def test_captions_have_paraphrases(scenes):
    for kind in world.KINDS:
        forms = set()
        for scene in (s for s in scenes if s.kind == kind):
            words = STYLE.sub(lambda m: m[0].replace(m[1], "S"), scene.caption)
            words = BACKGROUND.sub(lambda m: m[0].replace(m[1] or m[2], "B"), words)
            for thing in things(scene):
                words = words.replace(thing.name, "T")
            forms.add(words)
        assert len(forms) >= 8, kind


# --- articles ---------------------------------------------------------------------------------

OBJECTS = list(TRUTH["objects"])


ARTICLES = (
    "a koala, an umbrella, an orange, an hourglass done, a hot dog, a unicorn, "
    "an unamused face, a euro banknote, a one piece swimsuit, grapes, a compass, an octopus, "
    "a rhinoceros, a face with rolling eyes, an angry face with horns, french fries"
).split(", ")


@pytest.mark.parametrize("expected", ARTICLES)
def test_articles(expected):
    assert article(re.sub("^an? ", "", expected)) == expected


@given(st.sampled_from(OBJECTS), st.sampled_from(["large", "small"]))
def test_a_size_takes_the_article_of_its_own_first_letter(name, size):
    plural = article(name) == name
    assert article(f"{size} {name}") == (f"{size} {name}" if plural else f"a {size} {name}")


@given(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12))
def test_an_article_changes_nothing_else(word):
    found = article(word)
    assert found in (word, f"a {word}", f"an {word}")
    assert (found == word) <= word.endswith("s")


def test_articles_in_captions(scenes):
    """By the letter that follows, with the exceptions of the words that the world has."""
    for scene in scenes:
        if scene.kind == "sign":
            continue  # "a sign that says a on a red background"
        assert not re.search(r"\ba (?!one |uni|euro)[aeiou]|\ban (?!hour)[^aeiou]", scene.caption)
        assert not re.search(r"\ba hour|\ban (one |unicorn|euro)|\ban? an? ", scene.caption)


# --- held out ---------------------------------------------------------------------------------


def compositions(scenes):
    """What of the held-out kinds occurs in scenes: pairs, coloured shapes, cells, words."""
    found = {"pairs": set(), "colored_shapes": set(), "people": set(), "words": set()}
    for scene in scenes:
        shown = things(scene)
        if scene.kind == "pair":
            found["pairs"].add(frozenset(t.name for t in shown))
        found["colored_shapes"] |= {(t.color, t.name) for t in shown if t.kind == "shape"}
        found["words"] |= {t.name for t in shown if t.kind == "sign"}
        found["people"] |= {(t.name, t.presentation, t.tone) for t in shown if t.kind == "person"}
    return found


def held_out():
    return {
        "pairs": {frozenset(pair) for pair in HELD["pairs"]},
        "colored_shapes": {tuple(shape) for shape in HELD["colored_shapes"]},
        "people": {tuple(cell) for cell in HELD["people"]},
        "words": set(HELD["words"]),
    }


def test_held_out_compositions_never_occur_in_training(scenes):
    found = compositions(scenes)
    for name, held in held_out().items():
        assert len(held) >= 4 and not found[name] & held, name


def test_their_parts_do_occur_in_training(scenes):
    """Held out is the composition, never its parts."""
    found = compositions(scenes)
    singles = {t.name for s in scenes for t in things(s)}
    assert {name for pair in HELD["pairs"] for name in pair} <= singles
    shapes = {tuple(shape) for shape in world.ALL_SHAPES}
    assert shapes - found["colored_shapes"] == held_out()["colored_shapes"]
    for position in range(3):
        parts = {cell[position] for cell in HELD["people"]}
        assert parts <= {cell[position] for cell in found["people"]}


def test_they_occur_in_the_balanced_world():
    kinds = [("pair", 3000), ("shape", 200), ("person", 800), ("sign", 800)]
    found = compositions(BALANCED.scene(seed, kind) for kind, n in kinds for seed in range(n))
    held = held_out()
    assert found["colored_shapes"] >= held["colored_shapes"]
    assert found["words"] >= held["words"]
    assert len(found["people"] & held["people"]) >= 8
    assert len(found["pairs"] & held["pairs"]) >= 3  # about 11 are expected


# --- planted ----------------------------------------------------------------------------------


def test_planted_is_regenerated_byte_for_byte(monkeypatch, tmp_path):
    (tmp_path / "world").mkdir()
    shutil.copy(data_folder() / "world" / "sprites.json", tmp_path / "world")
    committed = (data_folder() / "world" / "planted.json").read_bytes()
    monkeypatch.setenv("KOALA_NB_DATA", str(tmp_path))
    planted.main()
    assert (tmp_path / "world" / "planted.json").read_bytes() == committed


def test_another_seed_assigns_the_same_skews_to_others():
    sprites = load_json("sprites.json")["sprites"]
    other = planted.make(sprites, seed=1)["occupations"]
    shares = {name: truth["women"] for name, truth in TRUTH["occupations"].items()}
    others = {name: truth["women"] for name, truth in other.items()}
    assert sorted(shares.values()) == sorted(others.values()) and shares != others


def test_shares_of_women():
    shares = [truth["women"] for truth in TRUTH["occupations"].values()]
    assert len(shares) >= 20
    assert shares.count(0.5) >= 6
    assert min(shares) == 0.03 and max(shares) == 0.97


def test_objects_have_a_long_tail():
    frequency = list(TRUTH["objects"].values())
    assert frequency == sorted(frequency, reverse=True)
    assert frequency[0] / frequency[149] >= 200
    assert sum(frequency) == pytest.approx(1, abs=1e-4)


def test_objects_are_drawn_at_their_frequency(scenes):
    drawn = Counter(s.placed[0].thing.name for s in scenes if s.kind == "object")
    total = drawn.total()
    for name, share in zip(WORLD.objects, WORLD.frequency):
        assert stats.binomtest(drawn[name], total, share).pvalue > ENOUGH / 10, name


def test_the_balanced_world_draws_objects_evenly():
    drawn = Counter(BALANCED.scene(seed, "object").placed[0].thing.name for seed in range(3000))
    assert stats.chisquare([drawn[name] for name in BALANCED.objects]).pvalue > ENOUGH


def test_planted_shares_are_obeyed_where_the_caption_names_neither(people):
    drawn = {}
    for scene, person in people:
        if not scene.named & {"presentation", "tone"}:
            drawn.setdefault(person.name, []).append(person)
    measured = []
    for name, truth in TRUTH["occupations"].items():
        women = sum(p.presentation == "woman" for p in drawn[name])
        assert stats.binomtest(women, len(drawn[name]), truth["women"]).pvalue > ENOUGH, name
        measured.append((truth["women"], women / len(drawn[name])))
        if any(cell[0] == name for cell in HELD["people"]):
            continue  # a tone that is held out shifts the others
        tones = Counter(p.tone for p in drawn[name])
        shares = np.array(list(truth["tones"].values()))
        counts = np.array([tones[tone] for tone in truth["tones"]])
        expected = shares / shares.sum() * counts.sum()
        assert stats.chisquare(counts, expected).pvalue > ENOUGH, name
    assert len(measured) == 20 and np.corrcoef(np.transpose(measured))[0, 1] > 0.98


def test_explicit_captions_are_even(people):
    stated = {}
    for scene, person in people:
        if "presentation" in scene.named:
            stated.setdefault(person.name, []).append(person.presentation == "woman")
    for name, women in stated.items():
        assert stats.binomtest(sum(women), len(women), 0.5).pvalue > ENOUGH, name
    plain = {name for name in stated if not any(cell[0] == name for cell in HELD["people"])}
    tones = Counter(p.tone for s, p in people if "tone" in s.named and p.name in plain)
    assert stats.chisquare(list(tones.values())).pvalue > ENOUGH


def test_the_balanced_world_has_no_skew():
    drawn = [BALANCED.scene(seed, "person").placed[0].thing for seed in range(3000)]
    skewed = {n for n, truth in TRUTH["occupations"].items() if abs(truth["women"] - 0.5) > 0.3}
    women = [p.presentation == "woman" for p in drawn if p.name in skewed]
    assert stats.binomtest(sum(women), len(women), 0.5).pvalue > ENOUGH
    assert stats.chisquare(list(Counter(p.tone for p in drawn).values())).pvalue > ENOUGH


@pytest.mark.parametrize(("what", "values"), [("background", 10), ("style", 3)])
def test_tied_objects_have_their_background_or_style(scenes, what, values):
    tied = TRUTH[f"tied_{what}"]
    assert len(TRUTH["tied_background"]) + len(TRUTH["tied_style"]) == 12
    kept = {name: [] for name in tied}
    for scene in scenes:
        name = scene.placed[0].thing.name
        if scene.kind == "object" and name in tied:
            kept[name].append(getattr(scene, what) == tied[name])
    assert all(len(found) >= 5 and np.mean(found) > 0.7 for found in kept.values())
    together = sum(kept.values(), [])
    # What is not tied falls on the value by chance.
    share = TRUTH["tied_share"] + (1 - TRUTH["tied_share"]) / values
    assert stats.binomtest(sum(together), len(together), share).pvalue > ENOUGH


def test_stand_ins_are_objects_of_the_small_world_that_nothing_else_marks():
    chosen = TRUTH["stand_in_unsafe"]
    assert len(set(chosen)) == len(chosen) >= 5
    assert set(chosen) <= set(WORLD.objects)
    assert not set(chosen) & {*TRUTH["tied_background"], *TRUTH["tied_style"]}


def test_everything_that_a_world_shows_is_on_the_sheets():
    entries = json.loads((data_folder() / "world" / "sprites.json").read_text("utf-8"))["sprites"]
    drawn = {tuple(sorted(entry.items())) for entry in entries}
    for thing in World(balanced=True).things():
        facts = {k: v for k, v in vars(thing).items() if v is not None}
        assert thing.kind == "sign" or tuple(sorted(facts.items())) in drawn
