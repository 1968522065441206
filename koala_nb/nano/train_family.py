"""Train the family's U-Nets on encoded scenes: a teacher, students distilled from it, controls.

The text encoders are those of the lessons, frozen, as SDXL's are. Students and controls of one run
share each batch, and students one pass of their teacher.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    StableDiffusionXLPipeline,
    Transformer2DModel,
    UNet2DConditionModel,
)
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from koala_nb.core.catalog import data_folder
from koala_nb.core.files import Record
from koala_nb.distillation import losses as distil
from koala_nb.distillation.loop import Loop
from koala_nb.models.unet import weight_map
from koala_nb.nano.latents import padded, read_scenes, tokens_of
from koala_nb.nano.models import (
    build_scheduler,
    build_unet,
    pick_device,
    reduced_precision,
    save_pipeline,
)
from koala_nb.nano.presets import Preset
from koala_nb.nano.train_vae import grid_png, latest_vae

DROPPED = 0.10  # half to zeros, as a pipeline without a negative prompt has it, half to no text
MIN_SNR = 5.0  # Hang et al., arXiv 2303.09556
HIGH_NOISE = 780  # timesteps above it decide where things stand
STUDENTS = ["nano-koala-large", "nano-koala"]
HIGH_SHARE = 0.5  # of the scenes whose places matter
PREVIEW_PROMPTS = [
    "a koala on a blue background",
    "A portrait painting of a Golden Retriever like Leonard da Vinci",
    "a red apple on a white background, fluent style",
    "a large rocket on a purple background, twemoji style",
    "a woman firefighter with dark skin on a green background",
    "a man judge with light skin on a pink background",
    "three koalas on a pink background",
    "four bananas, blue background",
    "a red square to the left of a blue circle on a white background",
    "a cat face above a red apple on a green background",
    "a rocket to the right of a house",
    "a sign that says koala",
    "a sign that says xyz on a gray background",
    "a sloth on an orange background",
    "a teacher",
    "a sun and an umbrella, noto style",
]


class TextEncoders(nn.Module):
    """Both frozen text encoders: token ids to what the U-Net is conditioned on."""

    def __init__(self, folder: Path, preset: Preset) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
        self.text_encoder_2 = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.requires_grad_(False).eval()
        side = preset.image_size
        self.register_buffer("time_ids", torch.tensor([side, side, 0, 0, side, side]).float())

    @torch.no_grad()
    def forward(self, ids: torch.Tensor, zeroed: torch.Tensor) -> Record:
        """Return the U-Net's keyword arguments for ids (n, tokens); zeros where `zeroed`."""
        first = self.text_encoder(ids, output_hidden_states=True)
        second = self.text_encoder_2(ids, output_hidden_states=True)
        states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        kept = (~zeroed).to(states)
        added = {
            "text_embeds": second.text_embeds * kept[:, None],
            "time_ids": self.time_ids.expand(len(ids), -1),
        }
        return {"encoder_hidden_states": states * kept[:, None, None], "added_cond_kwargs": added}


class NoisyScenes:
    """Noisy latents of encoded scenes; a batch is a pure function of its number."""

    def __init__(
        self, scenes: Mapping[str, torch.Tensor], text: TextEncoders, length: int, device: str
    ) -> None:
        self.scenes = {name: tensor.to(device) for name, tensor in scenes.items()}
        self.alphas = build_scheduler().alphas_cumprod.to(device)
        self.text, self.device = text, device
        backend = padded(text.tokenizer, length)
        self.empty = tokens_of(backend, [""], length).to(device)

    def __call__(self, number: int, size: int) -> Record:
        """Return noise, noisy, timesteps, weight and the conditions of a batch."""
        count, variants = len(self.scenes["latents"]), self.scenes["ids"].shape[1]
        index = torch.arange(number * size, (number + 1) * size, device=self.device)
        row, turn = index % count, int(number * size // count)
        generator = torch.Generator(self.device).manual_seed(number)

        def uniform() -> torch.Tensor:
            return torch.rand(size, generator=generator, device=self.device)

        latents = self.scenes["latents"][row].float()
        noise = torch.randn(latents.shape, generator=generator, device=self.device)
        chance, position, high = uniform(), uniform(), uniform()
        steps = len(self.alphas)
        timesteps = (position * steps).long()
        late = (HIGH_NOISE + position * (steps - HIGH_NOISE)).long()
        timesteps = torch.where(self.scenes["layout"][row] & (high < HIGH_SHARE), late, timesteps)
        alpha = self.alphas[timesteps][:, None, None, None]
        ids = self.scenes["ids"][row, turn % variants].long()
        empty = (chance >= DROPPED / 2) & (chance < DROPPED)
        ids = torch.where(empty[:, None], self.empty, ids)
        snr = (alpha / (1 - alpha)).flatten()
        return {
            "noise": noise,
            "noisy": alpha.sqrt() * latents + (1 - alpha).sqrt() * noise,
            "timesteps": timesteps,
            # Above sigma 1 the noise drowns what a caption decides (colours, layout): weigh it up.
            "weight": snr.clamp(max=MIN_SNR) / snr * snr.rsqrt().clamp(min=1),
            **self.text(ids, chance < DROPPED / 2),
        }


class UNets(nn.Module):
    """Several U-Nets of one batch: the systems of a run by name."""

    def __init__(self, preset: Preset, systems: Sequence[str]) -> None:
        super().__init__()
        self.unets = nn.ModuleDict({name: prepare(build_unet(preset, name)) for name in systems})

    def forward(self, batch: Record) -> dict[str, torch.Tensor]:
        """Return each system's predicted noise."""
        return {name: predict(unet, batch) for name, unet in self.unets.items()}


def prepare(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return the U-Net as it trains fastest here."""
    if not torch.cuda.is_available():
        # Plain products: a CPU's fused attention is ten times slower backward in bf16.
        unet.set_attn_processor(AttnProcessor())
    last = unet.conv_out
    forward = last.forward

    def full(hidden: torch.Tensor) -> torch.Tensor:
        # x0 = (x - sigma eps) / alpha multiplies the noise's rounding by up to 14.6: keep float32.
        with torch.autocast(hidden.device.type, enabled=False):
            return forward(hidden.float())

    last.forward = full
    return unet.to(memory_format=torch.channels_last)


def predict(unet: nn.Module, batch: Record) -> torch.Tensor:
    """Return the noise that a U-Net predicts for a batch."""
    return unet(
        batch["noisy"].contiguous(memory_format=torch.channels_last),
        batch["timesteps"],
        encoder_hidden_states=batch["encoder_hidden_states"],
        added_cond_kwargs=batch["added_cond_kwargs"],
    ).sample


def task_loss(predicted: torch.Tensor, batch: Record) -> torch.Tensor:
    """Return the weighted mean squared error of the noise."""
    error = F.mse_loss(predicted.float(), batch["noise"], reduction="none").mean((1, 2, 3))
    return (error * batch["weight"]).mean()


class SharedTeacher:
    """L_task + L_out + L_feat of several students by one pass of their frozen teacher."""

    def __init__(self, module: UNets, teacher: nn.Module, feature: str) -> None:
        self.teacher = teacher
        self.pairs = {n: distil.feature_pairs(u, teacher, feature) for n, u in module.unets.items()}
        names = dict.fromkeys(t for pairs in self.pairs.values() for t in pairs.values())
        self.teacher_features = distil.FeatureHooks(teacher, names)
        self.features = {n: distil.FeatureHooks(u, self.pairs[n]) for n, u in module.unets.items()}

    def __call__(
        self, trained: Callable[..., dict[str, torch.Tensor]], batch: Record
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss summed over students, and its parts by student."""
        self.teacher_features.start()
        with torch.no_grad():
            target = predict(self.teacher, batch).float()
        wanted = self.teacher_features.collect()
        for student in (hooks := self.features).values():
            student.start()
        total = torch.zeros((), device=target.device)
        parts: dict[str, torch.Tensor] = {}
        for name, predicted in trained(batch).items():
            losses = {
                "task": task_loss(predicted, batch),
                "out": F.mse_loss(predicted.float(), target),
                "feat": distil.feature_loss(hooks[name].collect(), wanted, self.pairs[name]),
            }
            total = total + sum(losses.values())
            parts |= {f"{name} {part}": value.detach() for part, value in losses.items()}
        return total, parts


@torch.no_grad()
def held_out_loss(unet: nn.Module, scenes: NoisyScenes, batch: int = 64) -> torch.Tensor:
    """Return the squared error of each held-out scene, (n,), at noise that is always the same."""
    total = len(scenes.scenes["latents"]) // batch
    rows = []
    for number in range(total):
        inputs = scenes(number, batch)
        error = predict(unet, inputs).float() - inputs["noise"]
        rows.append(error.square().mean((1, 2, 3)).cpu())
    return torch.cat(rows)


def grow(unet: UNet2DConditionModel, small: UNet2DConditionModel) -> None:
    """Start a large U-Net as a small one of the family: weights by the map read backwards.

    Blocks that the small one lacks begin as identities: their last projections are zero.
    """
    pairs = weight_map(small, unet)
    source = small.state_dict()
    copied = dict(zip(pairs.teacher, pairs.student))
    new = {
        name: module
        for name, module in unet.named_modules()
        if name and not any(key.startswith(f"{name}.") for key in copied)
    }
    for module in new.values():
        last: list[nn.Module] = []
        if isinstance(module, ResnetBlock2D):
            last = [module.conv2]
            if module.conv_shortcut is not None:  # keeps the hidden channels, drops the skip's
                nn.init.dirac_(module.conv_shortcut.weight)
                nn.init.zeros_(module.conv_shortcut.bias)
        elif isinstance(module, Transformer2DModel):
            last = [module.proj_out]
        elif isinstance(module, BasicTransformerBlock):
            last = [module.attn1.to_out[0], module.attn2.to_out[0], module.ff.net[2]]
        for layer in last:
            nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    target = unet.state_dict()
    unet.load_state_dict(target | {large: source[small] for large, small in copied.items()})


def begin_with(unet: UNet2DConditionModel, trained: UNet2DConditionModel) -> list[str]:
    """Copy the weights whose shapes agree; return the names of those that stay as they are."""
    new, old = unet.state_dict(), trained.state_dict()
    fitting = {k: v for k, v in old.items() if k in new and v.shape == new[k].shape}
    unet.load_state_dict({**new, **fitting})
    return [name for name in new if name not in fitting]


def first_weights(module: UNets, stage: str, root: Path) -> None:
    """Give U-Nets that learn without a teacher their first weights.

    `start` goes on from the shipped `nano-koala`, whose text encoders were others; a teacher and
    the controls from what `start` has learned.
    """
    if stage == "start":
        trained = data_folder() / "models" / "nano-koala" / "unet"
    else:
        trained = root / "start" / "nano-koala" / "unet"
    small = UNet2DConditionModel.from_pretrained(trained, torch_dtype=torch.float32)
    for name, unet in module.unets.items():
        begin_with(unet, small) if name == "nano-koala" else grow(unet, small)


def train_family(
    preset: Preset,
    folder: Path,
    stage: str,
    device: str | None,
    minutes: float | None,
    feature: str = "self-attention",
) -> bool:
    """Train a stage's systems and write them beside its checkpoint; True when finished.

    Stages: `start`, on small images; `teacher`; `student`, distilled from the teacher; `control`,
    as students but direct.
    """
    where, root = pick_device(device), folder.parent
    systems = {"start": ["nano-koala"], "teacher": ["nano-sdxl"]}.get(stage, STUDENTS)
    scenes = root / "scenes"
    if stage == "start":
        preset, scenes = preset.for_start(), root / "start-scenes"
    text = TextEncoders(root / "text", preset).to(where)
    vae = AutoencoderKL.from_pretrained(latest_vae(root)).to(where)
    module = UNets(preset, systems)
    shared = None
    if stage == "student":
        teacher = UNet2DConditionModel.from_pretrained(root / "teacher" / "nano-sdxl" / "unet")
        teacher = prepare(teacher.float()).requires_grad_(False).eval().to(where)
        for unet in module.unets.values():
            distil.init_from_teacher(unet, teacher)
        shared = SharedTeacher(module, teacher, feature)
    else:
        first_weights(module, stage, root)
    train = NoisyScenes(read_scenes(scenes), text, preset.max_length, where)
    held_out = NoisyScenes(read_scenes(scenes, True), text, preset.max_length, where)

    def loss(trained: nn.Module, number: int, size: int) -> tuple[torch.Tensor, dict]:
        batch = train(number, size)
        with loop.accelerator.autocast():
            if shared:
                return shared(trained, batch)
        predicted = trained(batch)
        parts = {name: task_loss(values, batch) for name, values in predicted.items()}
        return torch.stack(list(parts.values())).sum(), {n: p.detach() for n, p in parts.items()}

    def preview(averaged: UNets) -> bytes:
        with torch.compiler.set_stance("force_eager"), loop.accelerator.autocast():
            row = {n: float(held_out_loss(u, held_out).mean()) for n, u in averaged.unets.items()}
            with open(folder / "held-out.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps({"step": loop.step, **row}) + "\n")
            sheets = [draw_preview(u, text, vae) for u in averaged.unets.values()]
        return grid_png(torch.cat(sheets), len(PREVIEW_PROMPTS))

    loop = Loop(
        folder,
        module,
        preset.stages[stage],
        loss,
        preview,
        mixed_precision=reduced_precision(where),
        compiled=(BasicTransformerBlock, ResnetBlock2D),
        device=device,
    )
    finished = loop.run(minutes)
    if loop.accelerator.is_main_process:
        with loop.averaged() as averaged:
            for name, unet in averaged.unets.items():
                publish(folder / name, name, unet, text, vae)
    return finished


def assemble(unet: nn.Module, text: TextEncoders, vae: AutoencoderKL) -> StableDiffusionXLPipeline:
    """Return a pipeline of parts that are being trained."""
    pipe = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text.text_encoder,
        text_encoder_2=text.text_encoder_2,
        tokenizer=text.tokenizer,
        tokenizer_2=text.tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_preview(unet: nn.Module, text: TextEncoders, vae: AutoencoderKL) -> torch.Tensor:
    """Return the preview prompts at the card's recipe, two seeds each, in -1..1."""
    images = assemble(unet, text, vae)(
        PREVIEW_PROMPTS * 2,
        num_inference_steps=10,
        guidance_scale=3.5,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images
    return images.cpu().float() * 2 - 1


def publish(
    target: Path, system: str, unet: nn.Module, text: TextEncoders, vae: AutoencoderKL
) -> None:
    """Write a system as an ordinary pipeline folder."""
    names = ("tokenizer", "text_encoder", "text_encoder_2")
    parts = {"unet": unet, "vae": vae, **{name: getattr(text, name) for name in names}}
    save_pipeline(target, system, parts)
