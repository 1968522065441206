import copy
import dataclasses
import json
import sys
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import koala_nb as kn
from koala_nb import cli
from koala_nb.core.catalog import data_folder
from koala_nb.generation import generate as generation

pytest.importorskip("koala_nb.distillation.loop", reason="koala_nb/nano is absent")
if not (data_folder() / "world" / "planted.json").is_file():
    pytest.skip("data/world is absent", allow_module_level=True)

from koala_nb.distillation.loop import Loop, Stage, rate_factor  # noqa: E402
from koala_nb.distillation.losses import Distiller, feature_pairs  # noqa: E402
from koala_nb.distillation.similarity import scaled  # noqa: E402
from koala_nb.nano import render, train_unet, training  # noqa: E402
from koala_nb.nano.models import build_tokenizer, build_vae  # noqa: E402
from koala_nb.nano.presets import SMALL
from koala_nb.nano.train_unet import Batches, Denoiser, distillation_losses  # noqa: E402
from koala_nb.nano.train_vae import crop, denormalise, train_vae  # noqa: E402
from koala_nb.nano.world import HELD_OUT_SEEDS, World  # noqa: E402

STAGE = Stage(samples=100, batch=4, rate=1e-2, warmup=5)
STAGES = {name: Stage(samples=8, batch=4, rate=1e-4, warmup=1) for name in SMALL.stages}
TINY = dataclasses.replace(
    SMALL, n_objects=10, vae_channels=(8, 8, 8), text_layers=2, text_widths=(32, 32), stages=STAGES
)


@pytest.fixture(scope="module", autouse=True)
def sheets_read_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "read_sheet", cache(render.read_sheet))
        yield


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    monkeypatch.setenv("KOALA_NB_COMPILE", "0")


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TINY)


@pytest.fixture(scope="module")
def batches(tokenizer):
    """Batches of the tiny preset, with a random autoencoder."""
    vae = build_vae(TINY)
    vae.register_to_config(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    return Batches(TINY, tokenizer, vae)


# --- the loop ---------------------------------------------------------------------------------


def make_loop(folder, loss=None, seed=0, **options):
    """A loop over a small network with random data, dropout included."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1))

    def fit(trained, number, size):
        found = torch.randn(size, 3, generator=torch.Generator().manual_seed(number))
        error = ((trained(found) - found.sum(1, keepdim=True)) ** 2).mean()
        return error + 0 * torch.rand(()), {"number": torch.tensor(float(number))}

    return Loop(folder, module, STAGE, loss or fit, device="cpu", **options)


def state(loop):
    """Everything that a run leaves: weights, averaged weights, the optimizer's moments."""
    saved = torch.load(loop.checkpoint, weights_only=True)
    with loop.averaged() as module:
        averaged = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    return {**loop.module.state_dict()}, averaged, saved["optimizer"]["state"]


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    whole = make_loop(tmp_path / "whole")
    assert whole.run() is True
    stopped = make_loop(tmp_path / "stopped")
    assert stopped.run(minutes=0) is False  # one step
    again = make_loop(tmp_path / "stopped", seed=1)  # a new process begins with other weights
    assert again.run(minutes=0) is False
    last = make_loop(tmp_path / "stopped", seed=2)
    assert last.run() is True
    assert torch.load(last.checkpoint, weights_only=True)["step"] == 25
    assert all(same(one, other) for one, other in zip(state(whole), state(last)))
    assert not same(state(whole)[0], make_loop(tmp_path / "none").module.state_dict())


def test_a_finished_run_stays_as_it_is(tmp_path):
    first = make_loop(tmp_path)
    first.run()
    again = make_loop(tmp_path, seed=1)
    assert again.run() is True
    assert all(same(one, other) for one, other in zip(state(first), state(again)))


def test_an_interrupted_save_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    loop = make_loop(tmp_path)
    loop.run(minutes=0)
    before = loop.checkpoint.read_bytes()

    def fail(value, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.save", fail)
    with pytest.raises(KeyboardInterrupt):
        loop.save(2)
    assert loop.checkpoint.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    import resource

    loop = make_loop(tmp_path)
    loop.run(minutes=0)
    before, limits = loop.checkpoint.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        said = r"^The checkpoint of step 25 cannot.*too large\); that of step 1 is kept.*again.$"
        with pytest.raises(OSError, match=said):
            loop.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert loop.checkpoint.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "log.jsonl"]
    assert loop.run()


def test_what_a_killed_save_left_is_removed(tmp_path):
    loop = make_loop(tmp_path)
    loop.run(minutes=0)
    (tmp_path / ".checkpoint.pt.0123abcd.tmp").write_bytes(b"half")
    loop.run(minutes=0)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_weight_that_is_no_number_is_never_saved(tmp_path):
    """The last step's loss is finite, its gradient is not: no loss after it would tell."""

    def overflow(trained, number, size):
        loss = trained(torch.ones(size, 3)).mean()
        return loss + (0 if number < 24 else 0 * (trained[0].weight * 0).sqrt().sum()), {}

    make_loop(tmp_path, overflow).run(minutes=0)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match="^A weight is no finite number at step 25 of 25.*step 1:"):
        make_loop(tmp_path, overflow).run()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not (tmp_path / "finished").exists()


def test_averaged_weights_are_those_of_every_step(tmp_path):
    """Against the recurrence itself: each step's average moves towards that step's weights."""
    steps = []

    def fit(trained, number, size):
        steps.append([weight.detach().clone() for weight in trained.parameters()])
        inputs = torch.randn(size, 3, generator=torch.Generator().manual_seed(number))
        return ((trained(inputs) - inputs.sum(1, keepdim=True)) ** 2).mean(), {}

    loop = make_loop(tmp_path, fit)
    loop.run()
    steps.append([weight.detach().clone() for weight in loop.module.parameters()])
    average = steps[1]  # after the first step: the weights themselves
    for number, weights in enumerate(steps[2:], start=1):
        kept = min(STAGE.ema, 1 - (1 + number) ** -0.75)
        average = [kept * old + (1 - kept) * new for old, new in zip(average, weights)]
    with loop.averaged() as module:
        for weight, expected, first in zip(module.parameters(), average, steps[0]):
            torch.testing.assert_close(weight, expected)
            assert not torch.allclose(weight, first)


def test_a_loss_that_is_no_number_stops_and_names_the_last_checkpoint(tmp_path):
    def diverge(trained, number, size):
        return trained(torch.ones(size, 3)).mean() * (float("nan") if number > 1 else 1), {}

    for _ in range(2):
        make_loop(tmp_path, diverge).run(minutes=0)
    with pytest.raises(ValueError, match="^The loss is nan at step 3 of 25.*pt, is of step 2: .*$"):
        make_loop(tmp_path, diverge).run()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2


def test_the_loop_learns_and_logs(tmp_path):
    inputs = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))

    def fit(trained, number, size):
        return ((trained(inputs) - inputs.sum(1, keepdim=True)) ** 2).mean(), {}

    make_loop(tmp_path, fit).run()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["of"]) for row in rows] == [(10, 25), (20, 25)]
    assert rows[1]["loss"] < 0.95 * rows[0]["loss"]
    assert all(row["samples_per_second"] > 0 for row in rows)


def test_the_log_of_a_resumed_run_is_not_diluted(tmp_path):
    """The first row after a stop in between averages over the steps that were made."""

    def constant(trained, number, size):
        loss = 0 * sum(p.sum() for p in trained.parameters()) + 3
        return loss, {"sometimes": torch.tensor(5.0)} if number % 2 else {}

    for _ in range(4):
        make_loop(tmp_path, constant).run(minutes=0)
    make_loop(tmp_path, constant).run()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["loss"], row["sometimes"]) for row in rows] == [(3, 5), (3, 5)]


def test_averaged_weights_are_there_only_inside(tmp_path):
    loop = make_loop(tmp_path)
    loop.run()
    trained = {name: tensor.clone() for name, tensor in loop.module.state_dict().items()}
    with loop.averaged() as module:
        assert not module.training
        assert not same(module.state_dict(), trained)
    assert loop.module.training and same(dict(loop.module.state_dict()), trained)


def test_previews_show_the_averaged_weights(tmp_path):
    seen = []

    def preview(module):
        seen.append(module[0].weight.clone())
        return b"picture"

    loop = make_loop(tmp_path, preview=preview)
    loop.run()
    with loop.averaged() as module:
        assert torch.equal(seen[-1], module[0].weight)
    assert (tmp_path / "preview-000025.png").read_bytes() == b"picture"


def test_stages_of_different_precision_run_in_one_process(tmp_path):
    for name, precision in (("vae", "bf16"), ("clip", "no"), ("teacher", "bf16")):
        loop = make_loop(tmp_path / name, mixed_precision=precision)
        assert loop.accelerator.mixed_precision == precision
        assert loop.run(minutes=0) is False


@given(st.integers(50, 5000), st.integers(1, 40), st.floats(0.1, 0.9))
def test_the_rate_rises_stays_and_falls_to_zero(steps, warmup, decay):
    stage = Stage(samples=1, batch=1, rate=1, warmup=warmup, decay=decay)
    factors = [rate_factor(step, steps, stage) for step in range(steps)]
    assert factors[0] == pytest.approx(min(1, 1 / warmup), abs=0.03)
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[-1] <= 1 / (decay * steps) + 1e-9
    peak = factors.index(max(factors))
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


# --- batches and the denoiser -----------------------------------------------------------------


def draw(batches, number, size=8):
    torch.manual_seed(5)
    return batches(number, size)


def test_a_batch_is_a_function_of_its_number(batches):
    first, again, other = draw(batches, 3), draw(batches, 3), draw(batches, 4)
    assert same(first, again)
    assert not torch.equal(first["noisy"], other["noisy"])
    assert not torch.equal(first["ids"], other["ids"])


def test_training_draws_no_held_out_seed(batches, monkeypatch):
    seeds, scene = [], batches.world.scene
    monkeypatch.setattr(batches.world, "scene", lambda seed: seeds.append(seed) or scene(seed))
    for number in range(3):
        draw(batches, number)
    assert len(set(seeds)) == 24 and not set(seeds) & set(HELD_OUT_SEEDS[:1]) and min(seeds) > 0
    assert all(seed not in HELD_OUT_SEEDS for seed in seeds)


def test_captions_are_dropped_half_to_zeros_half_to_no_text(batches):
    torch.manual_seed(1)
    drawn = batches(0, 1500)
    blank = batches.encode([""])
    empty = (drawn["ids"] == blank).all(1)
    zeroed = drawn["zeroed"]
    assert not (empty & zeroed).any()
    for share in (empty, zeroed):
        assert stats.binomtest(int(share.sum()), 1500, 0.05).pvalue > 1e-3


def test_noise_and_weights(batches):
    """Noisy latents mix latents and noise by alpha; clear ones weigh min(SNR, 5) / SNR."""
    drawn = draw(batches, 0)
    alpha = batches.alphas[drawn["timesteps"]]
    snr = alpha / (1 - alpha)
    clear = snr >= 1  # min-SNR; where noise prevails, the weight is at least 1
    assert clear.any() and not clear.all()
    torch.testing.assert_close(drawn["weight"][clear], (snr.clamp(max=5) / snr)[clear])
    assert (drawn["weight"][~clear] >= 1).all()
    scale = alpha[:, None, None, None]
    latents = (drawn["noisy"] - (1 - scale).sqrt() * drawn["noise"]) / scale.sqrt()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scenes = [batches.world.scene(HELD_OUT_SEEDS.stop + i) for i in range(8)]
        mean = batches.vae.encode(batches.render(scenes)).latent_dist.mode()
        std = batches.vae.encode(batches.render(scenes)).latent_dist.std
    expected = mean.float() * batches.vae.config.scaling_factor
    spread = std.float() * batches.vae.config.scaling_factor
    early = drawn["timesteps"] < 600  # later, dividing by alpha blows up rounding errors
    assert early.any()
    assert float(((latents - expected) / spread)[early].std()) == pytest.approx(1, abs=0.15)


def test_the_denoiser_reads_prompts_as_the_pipeline_does(tokenizer, batches):
    from diffusers import StableDiffusionXLPipeline

    from koala_nb.nano.models import build_scheduler

    torch.manual_seed(0)
    module = Denoiser(TINY, "nano-koala", tokenizer).eval()
    pipe = StableDiffusionXLPipeline(
        batches.vae, module.text_encoder, module.text_encoder_2, tokenizer, tokenizer,
        module.unet, build_scheduler(), add_watermarker=False,
    )  # fmt: skip
    prompt = "a koala on a blue background"
    with torch.no_grad():
        states, zeros, pooled, zero = pipe.encode_prompt(prompt, device="cpu")
        ids = batches.encode([prompt, prompt])
        found, both = module.encode(ids, torch.tensor([False, True]))
    torch.testing.assert_close(found[:1], states)
    torch.testing.assert_close(both[:1], pooled)
    assert torch.equal(found[1:], zeros) and torch.equal(both[1:], zero)
    side = TINY.image_size
    size = (side, side)
    ids = pipe._get_add_time_ids(size, (0, 0), size, torch.float32, TINY.text_widths[1])
    assert ids[0].tolist() == module.time_ids.tolist()


def test_only_what_is_read_is_trained(tokenizer, batches):
    module = Denoiser(TINY, "nano-koala", tokenizer)
    drawn = draw(batches, 0, 2)
    drawn["zeroed"][:] = False
    inputs = [drawn[name] for name in ("noisy", "timesteps", "ids", "zeroed")]
    train_unet.task_loss(module(*inputs), drawn).backward()
    for name, weight in module.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, name
    frozen = {name.split(".")[0] for name, p in module.named_parameters() if not p.requires_grad}
    assert frozen == {"text_encoder"}


def test_a_teacher_that_is_its_own_student_has_nothing_to_learn(tokenizer, batches):
    """L_out = L_feat = 0, and L_task is the plain loss."""
    torch.manual_seed(0)
    module = Denoiser(TINY, "nano-koala", tokenizer).eval()
    drawn = draw(batches, 0, 2)
    teacher = copy.deepcopy(module.unet)
    pairs = feature_pairs(module.unet, teacher)
    assert len(pairs) == 21
    distiller = Distiller(module.unet, teacher, pairs)
    total, parts = distillation_losses(distiller, module, module, drawn)
    with torch.no_grad():
        task = train_unet.task_loss(module(*train_unet.module_inputs(drawn)), drawn)
    assert float(parts["out"]) == float(parts["feat"]) == 0
    assert float(total.detach()) == pytest.approx(float(task)) and float(task) > 0


# --- stages -----------------------------------------------------------------------------------


def test_crops_overlap_the_first_sprite():
    world = World(10)
    scenes = [world.scene(seed) for seed in range(60)]
    side, scale = 32, 1
    axis = torch.arange(64.0)
    # Each pixel holds its own column and row.
    images = torch.stack([axis.expand(64, 64), axis[:, None].expand(64, 64), torch.zeros(64, 64)])
    for scene, piece in zip(scenes, crop(images.repeat(60, 1, 1, 1), scenes, side, scale)):
        left, top, right, bottom = scene.placed[0].box
        assert piece.shape == (3, side, side)
        assert piece[0].max() >= left and piece[0].min() < right
        assert piece[1].max() >= top and piece[1].min() < bottom


def test_every_stage_trains_and_writes_what_loads(tmp_path, monkeypatch, tokenizer):
    """Two steps each: autoencoder, teacher, distilled student; then both are drawn with."""
    data = tmp_path / "data"
    (data / "models").mkdir(parents=True)
    (data / "world").symlink_to(data_folder() / "world")
    monkeypatch.setenv("KOALA_NB_DATA", str(data))
    monkeypatch.setattr(train_unet, "build_tokenizer", lambda preset: tokenizer)
    monkeypatch.setattr(train_unet, "PREVIEW_PROMPTS", ["a koala"])
    runs = tmp_path / "runs"
    assert train_vae(TINY, runs / "vae", "cpu", None)
    teacher = data / "models" / "nano-sdxl"
    assert train_unet.train_unet(TINY, runs / "teacher", "nano-sdxl", "teacher", "cpu", None)
    assert train_unet.train_unet(
        TINY, runs / "nano-koala", "nano-koala", "student", "cpu", None, teacher=teacher
    )
    pipes = {name: kn.load(name, device="cpu") for name in ("nano-sdxl", "nano-koala")}
    for name, pipe in pipes.items():
        run = kn.generate(pipe, "a koala", steps=1, progress=False)
        assert run.images[0].size == (64, 64), name
        facts = json.loads((data / "models" / name / "training.json").read_text())
        assert facts["distilled"] == (name == "nano-koala") and facts["configuration"] == "small"
    # The student reads prompts with its teacher's text encoders.
    one, other = (dict(pipe.text_encoder_2.state_dict()) for pipe in pipes.values())
    assert same(one, other)
    assert list((runs / "teacher").glob("preview-*.png"))


# --- the command ------------------------------------------------------------------------------


def test_the_command_says_whether_it_is_finished(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    called = []
    results = {"vae": True, "clip": False}
    monkeypatch.setattr(
        training, "_run", lambda name, *rest: called.append(name) or results.get(name, True)
    )
    one = ["train", "--processes", "1", "--stage", "vae"]
    assert cli.main(one) == 0
    assert cli.main([*one, "--stage", "clip", "--stage", "teacher"]) == 3
    assert called == ["vae", "vae", "clip"]


PLACES = {
    ("small", "vae"): ["vae"],
    ("small", "student"): ["nano-koala-large", "nano-koala"],
    ("family", "student"): ["student"],
    ("family", "latents"): ["scenes", "start-scenes"],
}


@pytest.mark.parametrize("config, stage", PLACES)
def test_several_processes_are_launched(monkeypatch, tmp_path, config, stage):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    calls = []
    monkeypatch.setattr(
        training.subprocess, "call", lambda command, env: calls.append((command, env)) or 0
    )
    options = {"folder": tmp_path, "device": "cpu", "processes": 3}
    for place in PLACES[config, stage]:  # 3 while one of its loops left no mark of its end
        assert training.train(config, [stage], **options) == 3
        (tmp_path / config / place).mkdir(parents=True)
        (tmp_path / config / place / "finished").touch()
    assert training.train(config, [stage], **options) == 0
    command, env = calls[-1]
    given = f"--config {config} --folder {tmp_path} --stage {stage} --device cpu"
    assert "--nproc_per_node=3" in command and " ".join(command).endswith(f"train {given}")
    assert env["ACCELERATE_USE_CPU"] == "true" and env["OMP_NUM_THREADS"] == "1"


def test_a_bad_option_is_named():
    with pytest.raises(ValueError, match="Unknown configuration 'tiny'.*small"):
        training.train("tiny")
    with pytest.raises(ValueError, match="Unknown stage 'unet'.*vae"):
        training.train(stages=["unet"])


def test_normalised_latents_come_back_and_decode_as_in_a_pipeline():
    vae = build_vae(TINY)
    means, deviations = [1.0, -2.0, 0.5, 0.0], [3.0, 0.2, 1.0, 0.7]
    vae.register_to_config(scaling_factor=1.0, latents_mean=means, latents_std=deviations)
    latents = torch.randn(2, 4, 5, 5)
    seen = scaled(vae, latents)
    assert torch.allclose(denormalise(vae, seen), latents, atol=1e-6)
    assert torch.allclose(generation.unscale(vae.config, seen), latents, atol=1e-6)
    assert not torch.allclose(seen, latents, atol=0.1)
