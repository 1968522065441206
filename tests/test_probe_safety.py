"""The safety probe: rates with bounds, leaks, pairs, the checklist; the stand-in's instruments."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import koala_nb as kn
from koala_nb.core.catalog import data_folder
from koala_nb.core.files import write_json
from koala_nb.probes import base
from koala_nb.probes import safety as probe
from koala_nb.probes import safety_estimates as estimate
from koala_nb.report import legacy, sections
from koala_nb.report import page as pages
from koala_nb.report import run as reports
from koala_nb.scorers import disclosure, nsfw
from koala_nb.scorers.prompt_filter import PromptFilter
from koala_nb.stats.estimates import upper_bound_clopper_pearson

SCRIPT = "<script>alert(1)</script>"


def test_a_zero_counts_prompts_and_not_images():
    found = estimate.rate([False] * 12, list("aaabbbcccddd"))
    assert found["at most"] == pytest.approx(1 - 0.05 ** (1 / 4))
    assert estimate.rate([True] + [False] * 11, list("aaabbbcccddd"))["at most"] is None


def rows(*given):
    """Rows of (id, part, shown, shown_clip, stopped), as the probe measures them."""
    names = ["id", "part", "shown", "shown_clip", "stopped"]
    table = pd.DataFrame(given, columns=names)
    return table.assign(way="w", concept=None, setting=estimate.PLAIN, flagged=False, drawn=False)


TABLE = rows(
    ("a", "asked", True, True, True),
    ("a", "asked", True, False, True),
    ("b", "paraphrased", True, True, False),
    ("b", "paraphrased", False, False, False),
    ("c", "paraphrased", True, False, False),
    ("d", "not asked", True, True, False),
)


def test_a_leak_is_shown_and_not_stopped():
    found = estimate.leakage(TABLE).set_index("part")
    assert found.value.to_dict() == {"asked": 0.0, "paraphrased": pytest.approx(2 / 3, abs=1e-6)}
    assert found.n.to_dict() == {"asked": 2, "paraphrased": 3}


def test_every_defence_takes_away_and_both_take_most():
    found = estimate.chain(TABLE).set_index("defence").value
    expected = {"no defence": 4, "prompt filter": 2, "checker after generation": 2, "both": 1}
    assert found.to_dict() == pytest.approx({k: v / 5 for k, v in expected.items()})


def test_agreement_of_equal_readings_is_one():
    same = estimate.agreement(TABLE.assign(shown_clip=TABLE.shown))["kappa"]
    assert same.value == pytest.approx(1)
    found = estimate.agreement(TABLE)
    assert (found["both"]["value"], found["either"]["value"]) == (0.5, pytest.approx(5 / 6))
    assert found["kappa"].low < found["kappa"].value < found["kappa"].high
    assert estimate.agreement(TABLE[TABLE.id == "b"])["kappa"] is None


def test_a_negative_prompts_effect_is_paired_by_prompt():
    after = TABLE.assign(setting=estimate.NEGATIVE, shown=False, drawn=True)
    found = estimate.negative_effect(pd.concat([TABLE, after]))
    change = found["paraphrased: shown"]
    assert change["value"] == pytest.approx(-0.75) and change["n"] == 2  # b: 1/2, c: 1


def test_changes_are_adjusted_for_how_many_they_are():
    before = rows(*((f"{part}{i}", part, True, True, False)
                    for part in estimate.ASKING for i in range(8)))  # fmt: skip
    gone = (before.part == "asked") | before.id.str.endswith("0")
    after = before.assign(setting=estimate.NEGATIVE, shown=~gone)
    found = estimate.negative_effect(pd.concat([before, after]))
    asked, other = found["asked: shown"], found["respelled: shown"]
    assert asked["p"] == pytest.approx(2 / 2**8) and asked["adjusted"] == pytest.approx(6 / 2**8)
    assert other["p"] == other["adjusted"] == 1


def test_prompts_of_one_concept_are_one_cluster():
    table = pd.concat([TABLE, TABLE.assign(setting=estimate.NEGATIVE)])
    own = table.assign(concept=table.id.map({"a": "owl", "b": "owl", "c": "star"}))
    found = base.to_jsonable(estimate.estimates(own))
    assert found["prompts"] == 4
    assert [row["clusters"] for row in found["reaches a user"]] == [2, 2, 2, 2]
    assert {r["part"]: r["clusters"] for r in found["shown by way"]}["paraphrased"] == 2
    assert found["negative prompt less as it is"]["paraphrased: shown"]["n"] == 2
    (told,) = [r for r in legacy._safety(own) if r["label"].startswith("stand-in")]
    assert told["clusters"] == 2 and "concept" in told["method"]


def test_a_zero_of_unequal_clusters_is_worth_fewer_trials():
    assert estimate.rate([False] * 12, list("aaaaaaaaabcd"))[
        "at most"
    ] == upper_bound_clopper_pearson(0, 1)


@pytest.mark.parametrize("emoji", [True, False])
def test_published_prompts_are_no_false_alarms(emoji):
    words = PromptFilter(pd.DataFrame({"term": ["owl"], "category": ["bird"]}))
    asked = pd.DataFrame({"id": ["i2p-0000", "i2p-0001"], "prompt": ["x", "y"], "part": "i2p",
                          "way": "hate", "concept": None})  # fmt: skip
    table = asked.assign(setting=estimate.PLAIN, flagged=[True, False], stopped=False)
    table = table.assign(shown=False, shown_clip=False, drawn=False) if emoji else table
    said = probe.all_estimates(table, asked, words, "photographic")
    assert "checker's false alarms" not in said
    (flagged,) = base.to_jsonable(said["flagged by the checker"])
    assert (flagged["part"], flagged["value"]) == ("i2p", 0.5)
    (row,) = [r for r in estimate.checklist({"i2p": flagged}) if r["tested"]]
    assert "share flagged by the checker" in row["item"]


def test_the_checklist_fills_itself_and_never_invents():
    empty = estimate.checklist({})
    assert not any(row["tested"] for row in empty)
    assert all(row["value"] is None for row in empty)
    said = {"filter": {"asked": {"n": 9, "value": 0.5, "low": 0.2, "high": 0.8}}}
    filled = {row["item"]: row for row in estimate.checklist(said) if row["tested"]}
    assert list(filled) == ["prompt filter: stops direct names"]
    assert filled["prompt filter: stops direct names"]["n"] == 9


def test_a_script_in_a_prompt_is_text_on_every_page():
    words = PromptFilter(pd.DataFrame({"term": ["owl"], "category": [SCRIPT]}))
    hits = [f"{hit.term} {hit.category}" for hit in words.hits(f"{SCRIPT} owl")]
    lines = estimate.checklist({"i2p": {"n": SCRIPT, "value": 0.0}})
    for cells in ([(SCRIPT, *hits)], [(row["item"], row["n"]) for row in lines]):
        page = sections.table(("prompt", SCRIPT), cells, SCRIPT).data
        assert "&lt;script&gt;" in page and "<script" not in page


# --- prompts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["emoji-world", "photographic"])
def test_prompt_sets_hold_what_the_notebook_promises(domain):
    asked = probe.prompts(domain)
    assert set(estimate.ASKING) | {estimate.NOT_ASKED} <= set(asked.part)
    words = PromptFilter(probe.terms(domain))
    stopped = asked.assign(stopped=words.flags(asked.prompt.tolist()))
    direct = stopped[stopped.part.isin(["asked", "respelled"])]
    assert direct.stopped.all(), direct[~direct.stopped].prompt.tolist()
    assert not stopped[stopped.way.isin(["ordinary", "another object", "synonym"])].stopped.any()


def test_the_emoji_words_are_those_that_were_planted():
    planted = json.loads((data_folder() / "world" / "planted.json").read_text())["stand_in_unsafe"]
    asked = probe.prompts("emoji-world")
    assert set(asked[asked.part != "not asked"].concept) == set(planted)
    assert not set(asked[asked.part == "not asked"].concept) & set(planted)
    assert probe.terms("emoji-world").term.tolist() == planted


def test_other_sets_leave_out_what_asks_for_a_term():
    every, some = (estimate.other_sets("emoji-world", t) for t in ((), ("koala",)))
    assert 0 < len(some) < len(every)
    assert "a koala" in set(every.prompt) and "a koala" not in set(some.prompt)


def test_i2p_is_taken_whole_and_by_row(tmp_path):
    path = tmp_path / "i2p.csv"
    with pytest.raises(ValueError, match="There is no file"):
        probe.read_i2p(path)
    path.write_text("prompt,categories\nx,hate\n")
    with pytest.raises(ValueError, match="holds 1 prompts, and I2P 4703"):
        probe.read_i2p(path)
    path.write_text("text\nx\n")
    with pytest.raises(ValueError, match="no column 'prompt'"):
        probe.read_i2p(path)
    path.write_text("prompt,categories\n" + 'x,"hate, violence"\n' * 4703)
    table = probe.read_i2p(path)
    assert (table.id.iloc[-1], table.way.iloc[0]) == ("i2p-4702", "hate, violence")


# --- measuring -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe():
    return kn.load("nano-koala", device="cpu")


@pytest.fixture(scope="module")
def stand_in():
    from koala_nb.nano.stand_in import StandIn

    return StandIn("nano-koala")


def test_both_settings_share_seeds_and_a_kill_changes_nothing(pipe, stand_in, tmp_path):
    asked = probe.prompts("emoji-world").iloc[[0, 60, 200]].reset_index(drop=True)
    words = PromptFilter(probe.terms("emoji-world"))
    scorer = probe.Reader(nsfw.Checker(nsfw.classifier()), stand_in)

    def table(folder):
        found = probe.measure(pipe, asked, scorer, words, "owl, star", tmp_path / folder, images=2,
                              steps=2, progress=False)  # fmt: skip
        return base.save_table(found, tmp_path / f"{folder}.csv").read_bytes(), found

    whole, found = table("whole")
    assert found.groupby("setting").seed.apply(list).map(tuple).nunique() == 1
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    second = tmp_path / "killed" / "setting-1"
    next(iter(sorted(second.glob("images/*.png")))).unlink()
    for scores in second.glob("scores-*.jsonl"):
        scores.unlink()
    assert table("killed")[0] == whole
    said = probe.all_estimates(found, asked, words, "emoji-world")
    json.dumps(base.to_jsonable(said), allow_nan=False)
    assert {r["setting"] for r in base.to_jsonable(said["shown, by sprite matching"])} == {
        estimate.PLAIN, estimate.NEGATIVE,
    }  # fmt: skip


def test_the_stand_in_is_read_where_it_is_and_not_elsewhere(pipe, stand_in):
    from PIL import Image

    from koala_nb.nano.memorisation import scenes
    from koala_nb.nano.render import to_pixels
    from koala_nb.nano.stand_in import StandInClassifier, card, concepts

    made = card(stand_in, pipe.vae.float(), 64, n=24)
    assert made["shown"]["recall"].value > 0.8 and made["shown"]["false alarms"].value < 0.2
    assert made["shown_clip"]["recall"].value > made["shown_clip"]["false alarms"].value + 0.5
    render = stand_in.sprites.matcher("object", 64).render
    drawn = to_pixels(render(scenes([concepts()[3], "koala"], 2)))
    pictures = [Image.fromarray(pixels) for pixels in drawn]
    there, absent = StandInClassifier("nano-koala").scores(pictures)
    assert there > 0.5 > absent


def test_other_pictures_and_statements_are_counted(tmp_path):
    class Half:
        name = version = licence = threshold_source = "half"
        threshold = 0.5

        def scores(self, images):
            return [float(i % 2) for i in range(len(images))]

    found = probe.picture_alarms(nsfw.Checker(Half()), "photographic", 8)
    assert found.set_index("pictures").value.to_dict() == {
        "colour gradients": 0.5, "one photograph of a person": 0.0,
    }  # fmt: skip
    run = kn.generate(kn.load("nano-koala", device="cpu"), ["a koala"], [0, 1], steps=1,
                      out=tmp_path / "run", progress=False)  # fmt: skip
    drawn = [Path(run.folder) / file for file in run.records.file]
    told = disclosure.statements(drawn[0])
    assert told["record"] and told["source_type"] is None  # so the checklist names the copy
    kept = probe.statements_kept(drawn)
    named = [r["item"] for r in estimate.checklist({"files": kept}) if r["tested"]]
    assert len(named) == 2 and all("copy" in item for item in named)
    assert (kept["as saved"]["value"], kept["re-encoded"]["value"]) == (1.0, 0.0)
    assert kept["re-encoded"]["at most"] == pytest.approx(1 - 0.05**0.5)


def test_the_stored_run_is_large_and_of_this_prompt_set():
    table = base.load_table(probe.NAME, "nano-koala")
    stored = json.loads((data_folder() / "results" / "probe-safety-nano-koala.json").read_text())
    assert (table.setting == estimate.PLAIN).sum() >= 1000
    assert set(table.id) == set(probe.prompts("emoji-world").id)
    assert stored["estimates"]["images"] == len(table)
    assert stored["checklist"] == estimate.checklist(stored["estimates"])
    assert stored["banner"] and stored["pipeline's own checker"] is None


def test_the_stored_estimates_are_those_of_the_stored_table(tmp_path, monkeypatch):
    number = re.compile(r"-?\d+\.\d+")
    before = probe.results_file("nano-koala").read_text()
    monkeypatch.setattr(probe, "write_json", lambda path, told: write_json(tmp_path / "a", told))
    again = probe.recompute("nano-koala").read_text()
    assert number.sub("", again) == number.sub("", before)
    one, other = ([float(n) for n in number.findall(text)] for text in (again, before))
    assert one == pytest.approx(other, abs=0.005)  # resampled p values, by version


def test_other_weights_get_no_stored_results(pipe):
    about = pipe.model_info
    told, table = probe.saved(about)
    assert told["revision"] == about.revision and len(table) == told["estimates"]["images"]
    assert probe.saved(replace(about, revision="weights-0")) is None


def test_the_notebooks_page_shows_a_script_as_text():
    page = pages.render_page(reports.NOTEBOOKS / "10_audit_safety.ipynb")
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 1
    assert SCRIPT not in page
