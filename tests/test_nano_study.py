"""The study of features, on a tiny teacher."""

import dataclasses
import json

import pytest
import torch
from diffusers import AutoencoderKL

from koala_nb.core import catalog
from koala_nb.distillation.loop import Stage

study = pytest.importorskip("koala_nb.nano.study", reason="koala_nb/nano is absent")
if not (catalog.data_folder() / "world" / "planted.json").is_file():
    pytest.skip("data/world is absent", allow_module_level=True)

from koala_nb.nano.models import build_tokenizer, build_vae, save_pipeline  # noqa: E402
from koala_nb.nano.presets import SMALL  # noqa: E402
from koala_nb.nano.train_unet import Batches, Denoiser, distiller_of  # noqa: E402
from koala_nb.nano.world import HELD_OUT_SEEDS  # noqa: E402

TINY = dataclasses.replace(
    SMALL, n_objects=10, vae_channels=(8, 8, 8), text_layers=2, text_widths=(32, 32),
    widths=(8, 16, 32),
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TINY)


@pytest.fixture(scope="module")
def home(tmp_path_factory, tokenizer):
    """A data folder with the world and a tiny, untrained teacher."""
    home = tmp_path_factory.mktemp("home")
    (home / "world").symlink_to(catalog.data_folder() / "world")
    torch.manual_seed(0)
    module, vae = Denoiser(TINY, "nano-sdxl", tokenizer), build_vae(TINY)
    vae.register_to_config(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    parts = {name: getattr(module, name) for name in ("unet", "text_encoder", "text_encoder_2")}
    parts |= {"vae": vae, "tokenizer": tokenizer}
    save_pipeline(home / "models" / "nano-sdxl", "nano-sdxl", parts)
    (home / "results").mkdir()
    return home


@pytest.fixture(autouse=True)
def small(home, monkeypatch):
    monkeypatch.setenv("KOALA_NB_DATA", str(home))
    monkeypatch.setenv("KOALA_NB_COMPILE", "0")
    monkeypatch.setattr(study, "PROMPTS", 4)
    monkeypatch.setattr(study, "HELD_OUT_BATCHES", 1)
    monkeypatch.setitem(study.BUDGET, "small", Stage(samples=48, batch=4, rate=1e-3, warmup=1))


def test_the_runs_differ_in_one_choice_and_are_told_apart():
    runs = study.runs()
    assert len({run.name for run in runs}) == len(runs)
    for seed in study.SEEDS:
        own = [run for run in runs if run.seed == seed]
        reference = study.Run(seed=seed)
        assert reference in own
        for run in own:
            changed = [f for f, v in dataclasses.asdict(run).items()
                       if v != dataclasses.asdict(reference)[f]]  # fmt: skip
            assert len(changed) <= 1 or set(changed) in ({"system", "feature"}, {"feature", "out"})
    features = {run.feature for run in runs if run.system == "nano-koala" and not run.stages}
    assert features == set(study.FEATURES)


def test_a_run_measures_a_student_that_learned(home, tmp_path):
    vae = home / "models" / "nano-sdxl" / "vae"
    results = {
        run.name: study.train(run, TINY, tmp_path / run.name, vae)
        for run in (
            study.Run(), study.Run(feature="none"), study.Run(start="random"),
            study.Run(feature="none", out=0),
        )
    }  # fmt: skip
    first, none, random, alone = results.values()
    assert alone["out"] == 0 and alone["held_out_out"] != none["held_out_out"]
    assert first["held_out_task"] != none["held_out_task"]
    assert random["held_out_out"] > first["held_out_out"]  # it knows nothing of its teacher
    assert all(n == [0, 4] or 0 <= n[0] <= n[1] for n in first["hits"].values())
    assert "object, at training frequency" in first["hits"]
    assert [row[0] for row in first["curve"]] == [10] and none["curve"][0][3] == 0
    again = study.train(study.Run(), TINY, tmp_path / study.Run().name, vae)
    assert again == first  # a finished run is measured again, not trained on


def test_held_out_scenes_are_not_trained_on(tokenizer):
    vae = build_vae(TINY)
    vae.register_to_config(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    batches, seeds = Batches(TINY, tokenizer, vae), []
    scene = batches.world.scene
    batches.world.scene = lambda seed: seeds.append(seed) or scene(seed)
    batches.held_out(3, 4)
    assert all(seed in HELD_OUT_SEEDS for seed in seeds) and len(set(seeds)) == 4


def test_the_teacher_loses_nothing_by_being_its_own_student(home, tokenizer):
    module = Denoiser(TINY, "nano-sdxl", tokenizer).eval()
    distiller = distiller_of(module, home / "models" / "nano-sdxl", "cpu")
    vae = AutoencoderKL.from_pretrained(home / "models" / "nano-sdxl" / "vae").float()
    found = study.held_out_losses(distiller, module, Batches(TINY, tokenizer, vae))
    assert found["held_out_out"] == 0 and found["held_out_task"] > 0


def test_results_are_collected_with_budget_and_teacher(home, tmp_path):
    done = study.runs()[:2]
    for run in done:
        (tmp_path / run.name).mkdir()
        (tmp_path / run.name / "result.json").write_text(json.dumps(dataclasses.asdict(run)))
    path = study.collect(done[:1], tmp_path, "small")
    written = json.loads(path.read_text())
    assert written["budget"]["samples"] == 48 and written["teacher"].startswith("weights-")
    del written["runs"][0]["out"], written["budget"]["ema"]  # a file from before these were choices
    path.write_text(json.dumps(written))
    written = json.loads(study.collect(done[1:], tmp_path, "small").read_text())
    assert [study.run_of(run) for run in written["runs"]] == done  # one arm is added to the file
    written["teacher"] = "weights-another"
    path.write_text(json.dumps(written))
    written = json.loads(study.collect(done[1:], tmp_path, "small").read_text())
    assert [study.run_of(run) for run in written["runs"]] == done[1:]  # another teacher's go


def test_without_a_teacher_nothing_begins(tmp_path, monkeypatch):
    monkeypatch.setenv("KOALA_NB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="train it with --stage teacher"):
        study.run_study(folder=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
