"""Distilling on pictures of one's own: data, resuming, several processes, errors."""

import csv
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from hub_layout import tiny_pipeline
from huggingface_hub import ModelCard
from PIL import Image
from test_kills import kill_child
from test_writers import TRIALS, forks, together

import koala_nb as kn
from koala_nb import cli
from koala_nb.core.catalog import SDXL_UNET
from koala_nb.distillation import data, loop
from koala_nb.distillation.data import Cache, fit, prepare, read_pairs
from koala_nb.distillation.losses import init_from_teacher
from koala_nb.distillation.train import Batches, StudentTraining

pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("one_thread")
COUNT = 24
SIDE = 64


def picture(i):
    """A picture that differs from the others, a little wider than high."""
    rng = np.random.default_rng(i)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    return small.resize((80 + i, 60), Image.Resampling.BILINEAR)


def png(i):
    picture(i).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def as_folder(where):
    rows = [("file_name", "text")]
    for i in range(COUNT):
        picture(i).save(where / f"{i:02d}.png")
        rows.append((f"{i:02d}.png", f"picture {i}"))
    with open(where / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)


def as_parquet(where):
    import datasets

    columns = {"image": [picture(i) for i in range(COUNT)]}
    columns["caption"] = [f"picture {i}" for i in range(COUNT)]
    datasets.Dataset.from_dict(columns).to_parquet(where / "pictures.parquet")


def as_archive(where):
    with tarfile.open(where / "pictures.tar", "w") as tar:
        for i in range(COUNT):
            for suffix, data in (("png", png(i)), ("txt", f"picture {i}".encode())):
                entry = tarfile.TarInfo(f"{i:02d}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A data folder with a tiny teacher, the student's configuration and pictures."""
    home = tmp_path_factory.mktemp("home")
    pipe = tiny_pipeline(home / "scratch")
    torch.manual_seed(3)
    same = {**pipe.unet.config, "layers_per_block": 2, "transformer_layers_per_block": [1, 2, 10]}
    same |= {"mid_block_type": SDXL_UNET.get("mid_block_type", "UNetMidBlock2DCrossAttn")}
    teacher = {k: v for k, v in same.items() if not k.startswith("_")}
    pipe.unet.save_config(home / "models" / "nano-koala" / "unet")
    pipe.register_modules(unet=UNet2DConditionModel(**teacher))
    pipe.save_pretrained(home / "models" / "nano-sdxl")
    (home / "pictures").mkdir()
    as_folder(home / "pictures")
    return home


@pytest.fixture(autouse=True)
def elsewhere(home, monkeypatch):
    monkeypatch.setenv("KOALA_NB_DATA", str(home))


def command(home, out, *more):
    given = ["--teacher", "nano-sdxl", "--student", "nano-koala", "--data", home / "pictures"]
    given += ["--out", out, "--size", SIDE, "--samples", 48, "--batch", 8, "--device", "cpu"]
    words = ["train", "student", *given, "--rate", 1e-3, *more]
    return [str(word) for word in words]


def weights(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)["module"]


@pytest.fixture(scope="module")
def teacher(home):
    return kn.load(home / "models" / "nano-sdxl", device="cpu")


# --- data -------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [as_folder, as_parquet, as_archive])
def test_pictures_are_read_from_what_datasets_opens(tmp_path, write):
    write(tmp_path)
    pairs = list(read_pairs(tmp_path))
    assert [caption for _, caption in pairs] == [f"picture {i}" for i in range(COUNT)]
    assert all(np.array_equal(image, picture(i)) for i, (image, _) in enumerate(pairs))


def test_a_picture_is_cut_to_its_middle_and_told_how():
    wide = Image.new("RGB", (100, 50))
    wide.paste((255, 0, 0), (25, 0, 75, 50))
    pixels, ids = fit(wide, 64)
    assert ids == [50, 100, 0, 32, 64, 64]
    assert pixels.shape == (3, 64, 64)
    assert float(pixels[0, :, 2:-2].min()) == 1 and float(pixels[1].max()) < 1


def test_encoded_pictures_are_the_pipelines_own(home, teacher, tmp_path):
    """Latents as its VAE gives them, states as its prompts are encoded."""
    row = prepare(teacher, home / "pictures", tmp_path, SIDE).row(5)
    pixels, ids = fit(picture(5), SIDE)
    with torch.no_grad():
        latents = teacher.vae.encode(pixels[None]).latent_dist.mean
        states, _, pooled, _ = teacher.encode_prompt("picture 5", do_classifier_free_guidance=False)
    expected = {"mean": latents * teacher.vae.config.scaling_factor}
    for name, value in {**expected, "states": states, "pooled": pooled}.items():
        torch.testing.assert_close(row[name].float(), value[0], rtol=2e-3, atol=2e-3)
    assert row["ids"].tolist() == ids
    with pytest.raises(ValueError, match="encoded with other settings"):
        prepare(teacher, home / "pictures", tmp_path, 2 * SIDE)


def test_a_stopped_encoding_goes_on(home, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SHARD", 8)
    whole = prepare(teacher, home / "pictures", tmp_path / "whole", SIDE)
    encode, calls = data.encode, []

    def stop(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(data, "encode", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(teacher, home / "pictures", tmp_path / "stopped", SIDE)
    assert len(list((tmp_path / "stopped").glob("*.safetensors"))) == 1
    again = prepare(teacher, home / "pictures", tmp_path / "stopped", SIDE)
    assert len(calls) == 4 + 4  # the first shard was kept
    for one, other in zip(whole.files, again.files, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_batches_show_each_picture_once_an_epoch_and_keep_some_back(home, teacher, tmp_path):
    cache = prepare(teacher, home / "pictures", tmp_path, SIDE)
    assert cache.count == 22 and list(cache.kept) == [22, 23]
    orders = {tuple(cache.index(epoch * 22 + i) for i in range(22)) for epoch in range(3)}
    assert len(orders) == 3 and all(sorted(order) == list(range(22)) for order in orders)
    first, again = cache(4, 8), Cache(tmp_path)(4, 8)
    assert all(torch.equal(first[name], again[name]) for name in first)
    joined = torch.cat([cache(8, 4)["noise"], cache(9, 4)["noise"]])
    assert torch.equal(joined, first["noise"])
    assert sum(len(batch["time"]) for batch in cache.held_out()) == 2
    many = [cache(number, 22) for number in range(10)]
    times = torch.cat([batch["time"][batch["pooled"].abs().sum(1) == 0] for batch in many])
    assert 10 < len(times) < 40 and times.min() < 0.3 < 0.7 < times.max()  # dropped at any noise


def test_a_batch_is_noised_as_ddpm_does(home, teacher, tmp_path):
    cache = prepare(teacher, home / "pictures", tmp_path, SIDE)
    seen = SimpleNamespace(losses=lambda call, inputs, noise: (inputs, {"noise": noise}))
    inputs, parts = Batches(cache, teacher).loss(seen, None, batch := cache(3, 8))
    scheduler = DDPMScheduler.from_config(teacher.scheduler.config)
    times = (batch["time"] * 1000).long()
    expected = scheduler.add_noise(batch["latents"], batch["noise"], times)
    assert torch.equal(inputs["timestep"], times) and torch.equal(parts["noise"], batch["noise"])
    torch.testing.assert_close(inputs["sample"], expected)


# --- training ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(home, tmp_path_factory):
    """A finished run in one process."""
    out = tmp_path_factory.mktemp("run") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KOALA_NB_DATA", str(home))
        assert cli.main(command(home, out, "--prompt", "picture 3")) == 0
    return out


def test_a_finished_run_leaves_a_pipeline_and_its_history(home, trained):
    pipe = kn.load(trained / "student", device="cpu")
    assert pipe.model_info.name == "nano-koala" and pipe.unet.mid_block is None
    assert len(kn.generate(pipe, "picture 1", [0], height=SIDE, width=SIDE).images) == 1
    (before,) = (json.loads(line) for line in (trained / "validation.jsonl").open())
    assert before.keys() == {"task", "out", "feat"} and all(v > 0 for v in before.values())
    assert (trained / "preview-000006.png").is_file()
    assert json.loads((trained / "student" / "training.json").read_text())["rate"] == 1e-3
    plan = StudentTraining("nano-sdxl", "nano-koala", "pictures")
    assert plan.weight_task == plan.weight_out == plan.weight_feat == 1  # as in the paper
    for file in (trained / "student").rglob("*.*"):
        assert str(home).encode() not in file.read_bytes(), f"{file} tells a place"
    facts = ModelCard.load(trained / "student" / "README.md").data
    assert (facts.pipeline_tag, facts.base_model) == ("text-to-image", "nano-sdxl")


@forks
def test_kills_change_nothing(home, trained, tmp_path, monkeypatch):
    """Killed at random moments, a checkpoint after each step: the same weights, bit for bit."""
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0)

    def work():
        assert cli.main(command(home, tmp_path / "killed")) == 0

    def wait_for_another_step(delay):
        before, limit = weights_step(tmp_path / "killed"), time.monotonic() + 60
        while weights_step(tmp_path / "killed") == before:
            assert time.monotonic() < limit, "waited too long"
            time.sleep(0.01)
        time.sleep(delay)

    chance, steps = random.Random(0), []
    for _ in range(3):
        kill_child(work, chance.uniform(0, 0.05), wait_for_another_step)
        steps.append(weights_step(tmp_path / "killed"))
        if steps[-1] == 6:
            break
    work()
    assert_trained_alike(tmp_path / "killed", trained)
    assert any(0 < step < 6 for step in steps), f"no kill fell amid the training: {steps}"


SAVING = "from koala_nb.distillation import loop; loop.SAVE_SECONDS = 0; from koala_nb import cli; "


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="kills by SIGKILL")
def test_twenty_kills_of_the_command_change_nothing(home, tmp_path):
    """The command itself, that saves after each step; KOALA_NB_TRAINING_KILLS: other than 20."""
    kills, amid, rounds = int(os.environ.get("KOALA_NB_TRAINING_KILLS", "20")), 0, 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    program = [sys.executable, "-c", f"{SAVING}raise SystemExit(cli.main())"]

    def start(out):
        words = [*program, *command(home, out, "--samples", 240)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(words, env=environment, **quiet)

    began = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    took, chance = time.monotonic() - began, random.Random(1)
    while kills:
        process = start(tmp_path / str(rounds))
        try:
            assert process.wait(chance.uniform(0.5, 1.1) * took) == 0
            assert_trained_alike(tmp_path / str(rounds), tmp_path / "whole")
            rounds += 1  # this folder is done: begin another
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills -= 1
            amid += 0 < weights_step(tmp_path / str(rounds)) < 30
    assert start(tmp_path / str(rounds)).wait() == 0
    assert_trained_alike(tmp_path / str(rounds), tmp_path / "whole")
    assert amid, "no kill fell amid the training"
    print(f"{amid} kills amid the steps, {rounds + 1} folders finished")


def assert_trained_alike(one, other):
    """Weights, averaged weights and the student that is written are the same, bit for bit."""
    states = [torch.load(out / "checkpoint.pt", weights_only=True) for out in (one, other)]
    pairs = [[*state["module"].values(), *state["ema"]["shadow_params"]] for state in states]
    assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))
    file = Path("student", "unet", "diffusion_pytorch_model.safetensors")
    assert (one / file).read_bytes() == (other / file).read_bytes()
    assert not list(one.glob(".*"))


@forks
def test_two_trainings_never_mix_in_one_folder(home, tmp_path, capfd):
    def work(out, rate):
        assert cli.main(command(home, out, "--rate", rate, "--samples", 8)) == 0

    for trial in range(max(1, TRIALS // 3)):
        out = tmp_path / str(trial)
        errors = together(*(partial(work, out, rate) for rate in (1e-3, 2e-3)))
        assert [error is None for error in errors].count(True) == 1
        rate = (1e-3, 2e-3)[errors.index(None)]
        for file in (out / "settings.json", out / "student" / "training.json"):
            assert json.loads(file.read_text())["rate"] == rate
        groups = torch.load(out / "checkpoint.pt", weights_only=True)["optimizer"]["param_groups"]
        assert groups[0]["initial_lr" if "initial_lr" in groups[0] else "lr"] <= rate
        (line,) = re.findall("^koala-nb: .*", capfd.readouterr().err, re.MULTILINE)
        assert "is being written by another process" in line or "with another --rate" in line


def check_near(found, expected, teacher):
    """No weight differs by more than .005 of the largest step of any from the start."""
    unet = UNet2DConditionModel.from_config(dict(kn.find("nano-koala").unet_config))
    init_from_teacher(unet, teacher.unet)

    def largest(others):
        return max(float((expected[n] - others[n]).abs().max()) for n in expected)

    assert largest(found) < 0.005 * largest(unet.state_dict())


def weights_step(out):
    file = out / "checkpoint.pt"
    return torch.load(file, weights_only=True)["step"] if file.is_file() else 0


def test_two_processes_equal_one_with_twice_the_batch(home, trained, teacher, tmp_path):
    """Two processes x 4 pictures against one x 8: equal but for the order of additions."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["-m", "koala_nb", *command(home, tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    check_near(weights(tmp_path), weights(trained), teacher)


def test_accumulation_gives_the_same_weights(home, trained, teacher, tmp_path):
    assert cli.main(command(home, tmp_path, "--accumulation", 2)) == 0
    check_near(weights(tmp_path), weights(trained), teacher)


def test_random_start_and_checkpointing(home, trained, tmp_path):
    more = ("--random-start", "--checkpointing", "--feature", "none", "--samples", 8)
    assert cli.main(command(home, tmp_path, *more)) == 0
    random, inherited = (
        json.loads((out / "validation.jsonl").read_text().splitlines()[-1])
        for out in (tmp_path, trained)
    )
    assert random["feat"] == 0 and random["out"] != inherited["out"]


def test_the_cost_is_printed_without_any_weights(capsys):
    words = "train student --teacher sdxl-lightning --student koala-700m --data x --cost"
    code = cli.main([*words.split(), "--tflops", "100"])
    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert lines[0] == f"student, gradients, AdamW, EMA (GB): {782_822_724 * 20 / 1e9:.2f}"
    assert lines[1] == f"teacher (GB): {2_567_463_684 * 2 / 1e9:.2f}"
    operations = float(lines[2].split(": ")[1].replace(",", ""))
    assert float(lines[3].split(": ")[1]) == pytest.approx(operations / 100, abs=0.01)


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--student", "nano-koale"), "Unknown system 'nano-koale'. Did you mean 'nano-koala'"),
        (("--teacher", "sdm-v2.0"), "Choose a student cut from this teacher"),
        (("--stage", "middle"), "Unknown stage of the student 'middle'"),
        (("--data", "/nowhere/at/all"), "There is no folder /nowhere/at/all"),
        (("--batch", "6", "--accumulation", "4"), "give a multiple of the accumulation"),
        (("--samples", "1"), "give at least one batch"),
        (("--weight-feat", "nan"), "--weight-feat nan: give a number of 0 or more"),
        (("--weight-out", "inf"), "--weight-out inf: give a number of 0 or more"),
        (("--weight-task", "-1"), "--weight-task -1.0: give a number of 0 or more"),
        (("--weight-task", 0, "--weight-out", 0, "--weight-feat", 0), "All weights of the loss"),
        (("--rate", "nan"), "'nan': give a number above 0"),
    ],
)
def test_a_wrong_argument_is_one_sentence_before_any_work(home, tmp_path, capsys, change, message):
    assert cli.main(command(home, tmp_path / "out", *change)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("koala-nb: ") and message in line
    assert not (tmp_path / "out").exists()


def test_a_bad_data_folder_is_one_sentence_before_any_work(home, tmp_path, capsys):
    empty, bare = tmp_path / "empty", tmp_path / "bare"
    empty.mkdir(), bare.mkdir()
    picture(0).save(bare / "a.png")
    for folder, message in ((empty, "cannot be read as a dataset"), (bare, "is needed")):
        assert cli.main(command(home, tmp_path / "out", "--data", folder)) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line and str(folder) in line
        assert not (tmp_path / "out").exists()


def test_a_broken_picture_is_named(home, tmp_path):
    as_folder(tmp_path)
    (tmp_path / "07.png").write_bytes(png(7)[:60])
    with pytest.raises(ValueError, match="Row 7 of .* cannot be read"):
        list(read_pairs(tmp_path))


def test_a_folder_of_another_run_is_refused(home, trained, capsys):
    before = weights(trained)
    assert cli.main(command(home, trained, "--feature", "block")) == 2
    assert "holds a run with another --feature ('self-attention')" in capsys.readouterr().err
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(trained).items())
