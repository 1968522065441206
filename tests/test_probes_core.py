"""What every probe shares: prompt sets, plans, resumable measuring, clustered estimates."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import koala_nb as kn
from koala_nb import cli, probes
from koala_nb.core import files
from koala_nb.display.figures import brightness
from koala_nb.generation import run_folder
from koala_nb.probes import base
from koala_nb.report.audit import Audit, reported_probes
from koala_nb.scorers import registry
from koala_nb.stats import estimates

TEXTS = ["a koala on a blue background", "a red apple", "a dog face"]
KINDS = ["animal", "food", "animal"]
PROMPTS = pd.DataFrame({"id": list("abc"), "prompt": TEXTS, "kind": KINDS})


class Bright:
    """Measures brightness; counts what it was shown."""

    name, version = "brightness", "1"

    def __init__(self):
        self.shown = 0

    def score(self, images, prompts):
        self.shown += len(images)
        return [{"level": brightness(i) / 3, "bright": brightness(i) > 128} for i in images]


def measure(pipe, scorer, **more):
    return base.measure(pipe, PROMPTS, scorer, images=2, steps=1, progress=False, **more)


def test_one_row_an_image_with_seeds_of_its_own(pipe):
    table = measure(pipe, Bright())
    assert list(table.columns) == ["id", "prompt", "kind", "seed", "level", "bright"]
    assert table.id.tolist() == ["a", "a", "b", "b", "c", "c"]
    assert table.seed.tolist() == [0, 1, 2, 3, 4, 5]
    assert measure(pipe, Bright(), same_seeds=True).seed.tolist() == [0, 1] * 3


def test_the_same_table_to_the_byte_after_a_kill(pipe, tmp_path, monkeypatch):
    files.save_table(measure(pipe, Bright(), out=tmp_path / "whole"), tmp_path / "whole.csv")
    monkeypatch.setattr(run_folder, "SCORED", 2)

    class Killed(Bright):
        def score(self, images, prompts):
            if self.shown:
                raise KeyboardInterrupt
            return super().score(images, prompts)

    with pytest.raises(KeyboardInterrupt):
        measure(pipe, Killed(), out=tmp_path / "run")
    (tmp_path / "run" / "images" / sorted_images(tmp_path)[3]).unlink()
    again = Bright()
    table = measure(pipe, again, out=tmp_path / "run")
    assert again.shown == 4  # the two read before are not read again
    files.save_table(table, tmp_path / "resumed.csv")
    assert (tmp_path / "resumed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def sorted_images(folder):
    return sorted(path.name for path in (folder / "run" / "images").glob("*.png"))


def test_readings_of_another_version_are_not_mixed(pipe, tmp_path):
    measure(pipe, Bright(), out=tmp_path / "run")
    other = Bright()
    other.version = "2"
    with pytest.raises(ValueError, match="brightness 2: remove the file"):
        measure(pipe, other, out=tmp_path / "run")


def test_words_that_pandas_takes_for_nothing_stay(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text("id,prompt,text\n01,a sign,null\n02,a sign,\n")
    table = base.read_prompts(path)
    assert table.id.tolist() == ["01", "02"] and table.text.tolist() == ["null", None]


def test_some_prompts_of_every_kind():
    prompts = pd.DataFrame({"id": range(100), "kind": ["x"] * 90 + ["y"] * 10})
    kinds = base.subsample_prompts(prompts, 10, by="kind").kind.value_counts()
    assert kinds.to_dict() == {"x": 5, "y": 5}
    assert all(base.subsample_prompts(prompts, n) is prompts for n in (0, 200))
    assert len(base.subsample_prompts(prompts, 7)) == 7


def test_the_plan_says_what_it_can_find():
    assert "50 prompts x 4 images = 200 images, worth 174" in base.plan(50, 4)
    assert "nothing reliably" in base.plan(1, 1)


def test_shares_are_clustered_and_leave_out_what_was_not_asked():
    right = [True] * 5 + [False] * 5 + [None] * 5 + [True, False] * 2 + [True]
    table = pd.DataFrame({"id": np.repeat(list("abcd"), 5), "right": right})
    table["kind"] = np.repeat(["x", "y"], 10)
    rows = list(base.share_rows(table, "right", "{}.right", "{}", "kind"))
    assert [row["value"] for row in rows] == [0.5, 0.6]
    assert [(row["n"], row["clusters"]) for row in rows] == [(10, 2), (5, 1)]
    expected = estimates.clustered_share([1] * 5 + [0] * 5, ["a"] * 5 + ["b"] * 5)
    assert rows[0]["low"] == pytest.approx(expected.low, abs=1e-6)
    assert base.shares(table, "right").n.tolist() == [15]


def test_a_bounded_mean_stays_in_its_bounds_and_keeps_a_width_without_spread():
    table = pd.DataFrame({"id": list("abc"), "value": [0.0, 0.0, 0.1]})
    (result,) = base.mean_rows(table, "value", "m", "m", limits=(0, 1))
    assert result["low"] == 0 and result["high"] < 0.2
    (alike,) = base.mean_rows(table.assign(value=0.0), "value", "m", "m", limits=(0, 1))
    assert (alike["value"], alike["low"]) == (0, 0) and 0.6 < alike["high"] < 0.8


def test_pairs_are_prompts():
    first = pd.DataFrame({"id": list("aabbc"), "right": [1, 1, 1, 0, 1]})
    second = pd.DataFrame({"id": list("aabbd"), "right": [0, 0, 1, 0, 1]})
    result = base.paired(first, second, "right")
    assert (result.value, result.n) == (0.5, 2)  # a: 1, b: 0; c and d have no partner


def test_results_are_plain_json():
    table = pd.DataFrame({"v": [1.0, np.nan]})
    value = {"x": estimates.Estimate(0.5, -np.inf, np.inf, 3), "t": table}
    assert base.to_jsonable(value) == {
        "x": {"value": 0.5, "low": None, "high": None, "n": 3},
        "t": [{"v": 1.0}, {"v": None}],
    }


def test_cautions_name_the_column():
    images = pd.DataFrame({"id": np.repeat(range(100), 10), "sure": [True, False] * 500})
    images["rare"] = (images.id < 2) & (np.arange(1000) % 10 < 9)  # two prompts, the others never
    assert list(base.coverage_warnings(images.assign(level=0.5))) == ["rare"]


IDS = ["brightness.bright", "brightness.kind.animal.bright", "brightness.kind.food.bright"]
NEW_PROBE = '''
"""Does a model draw bright images? All that a new probe is, in one file."""

import pandas as pd

from koala_nb.display.figures import brightness
from koala_nb.core import files
from koala_nb.probes import base


class BrightScorer:
    """Reads how bright an image is."""

    name, version = "brightness", "1"

    def score(self, images, prompts):
        return [{"level": brightness(i) / 3, "bright": brightness(i) > 128} for i in images]


class BrightProbe(base.Probe):
    """How bright images are, by what is asked for."""

    name, images, stratify = "brightness", 1, "kind"
    headline = ("brightness.bright", "brightness.kind.*.bright")
    image_values = {"brightness.bright": "bright"}

    def prompts(self, domain, file=""):
        names = {"koala": "animal", "red apple": "food", "dog face": "animal"}
        prompts = [f"a {name}" for name in names]
        return pd.DataFrame({"id": list("abc"), "prompt": prompts, "kind": names.values()})

    def scorer(self, pipe, prompts=None, **options):
        return BrightScorer()

    def rows(self, table, instrument):
        yield from base.share_rows(table, "bright", "brightness.bright", "bright images")
        label = "bright images of {}"
        yield from base.share_rows(table, "bright", "brightness.kind.{}.bright", label, "kind")


PROBE = BrightProbe()
'''


def test_a_new_probe_is_one_file(pipe, tmp_path, monkeypatch, capsys):
    """Forty lines run by a notebook's call, the command line (twice alike) and the report."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(probes, "REGISTERED", {})
    Path("bright.py").write_text(NEW_PROBE)
    probe = probes.get("bright.py")
    estimates = probe.estimates(probe.measure(pipe, steps=1, progress=False))
    assert estimates.id.tolist() == IDS and probe.images == 1
    kn.show_table(estimates)
    assert "bright images of food" in capsys.readouterr().out
    assert cli.main(["probe", "bright.py", "--out", "out", "--prompts", "2"]) == 2
    assert "draw all the same with --anyway" in capsys.readouterr().err
    assert not Path("out").exists() and not Path("runs").exists()
    results = []
    for _ in range(2):
        assert cli.main(["probe", "bright.py", "--out", "out", "--prompts", "2", "--anyway"]) == 0
        results.append([p.read_bytes() for p in sorted(Path("out").iterdir())])
    printed = capsys.readouterr().out
    assert results[0] == results[1] and "2 prompts x 1 image " in printed
    assert f"All {len(IDS)} estimates: out" in printed and ", n 2" in printed
    more = "--anyway --dtype bfloat16 --device cpu --offload none --batch-size 1".split()
    shutil.rmtree("runs")
    assert cli.main(["probe", "bright.py", "--out", "half", "--prompts", "1", *more]) == 0
    (file,) = Path("runs").glob("*/settings.json")
    settings = json.loads(file.read_text())
    assert (settings["dtype"], settings["batch_size"]) == ("bfloat16", 1)
    assert b"Embedded teaching model" in results[0][1]
    assert {"text", "brightness"} < set(reported_probes())
    monkeypatch.setattr("koala_nb.report.audit.reported_probes", lambda: ["brightness"])
    audit = Audit(kn.start("nano-koala", steps=1), n=3, folder=tmp_path / "report")
    section = audit.sections["brightness"]
    assert section.estimates.id.tolist() == estimates.id.tolist() and len(section.images) == 3
    assert (tmp_path / "report" / "brightness.csv").is_file()
    Path("none.py").write_text("x = 1")
    with pytest.raises(ValueError, match="holds no PROBE"):
        probes.get("none.py")
    with pytest.raises(ValueError, match="choose one of text.*brightness"):
        probes.get("brigt")


def test_photographic_prompts_and_boards_need_no_embedded_family():
    code = (
        "import sys; from koala_nb.probes import get, text_reader, MODULES;"
        "[get(name).prompts('photographic') for name in MODULES];"
        "text_reader.text_renderer('photographic')(['a'], 64);"
        "print([m for m in sys.modules if m.startswith('koala_nb.nano')])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
    assert {"text", "bias", "safety"} < set(dir(kn.probes)) and kn.probes.text is probes.get("text")


def test_every_registered_scorer_is_there():
    for entry in registry.SCORERS.values():
        assert all(entry[2:6])  # name, version, licence, error
        assert callable(registry.resolve(entry.path))
        assert not entry.calibrate or callable(registry.resolve(entry.calibrate))
    assert all(callable(registry.truth(*key)) for key in registry.TRUTHS)


def test_a_scorer_of_the_domain_or_of_weights_of_ones_own():
    reader = registry.scorer("concepts", "emoji-world", concepts=["koala"], image_size=64)
    assert reader.concepts == ["koala"] and registry.calibration(reader)
    assert registry.calibration(Bright()) is None and registry.truth("x", "photographic") is None
    with pytest.raises(ValueError, match="no-such-clip"):
        registry.scorer("concepts", "emoji-world", concepts=["koala"], source="no-such-clip")
    with pytest.raises(ValueError, match="No scorer of smells"):
        registry.scorer("smells", "emoji-world")


def test_without_the_embedded_family_a_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "koala_nb.nano.stand_in", None)
    with pytest.raises(ValueError, match="embedded family's part 'nano.stand_in'"):
        registry.scorer("stand-in", "emoji-world", system="nano-koala")
