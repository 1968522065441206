"""Train the embedded U-Nets: a teacher or a student from scratch, or a student by distillation."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTokenizer

from koala_nb.core.catalog import data_folder
from koala_nb.core.files import Record, write_json
from koala_nb.distillation.loop import Loop, random_draws
from koala_nb.distillation.losses import Distiller, feature_pairs, init_from_teacher
from koala_nb.distillation.similarity import scaled
from koala_nb.nano.models import (
    build_scheduler,
    build_text_encoders,
    build_tokenizer,
    build_unet,
    pick_device,
    reduced_precision,
    save_pipeline,
)
from koala_nb.nano.presets import Preset, training_record
from koala_nb.nano.render import Renderer
from koala_nb.nano.train_vae import grid_png, latest_vae
from koala_nb.nano.world import HELD_OUT_SEEDS, World

DROPPED = 0.10  # half to zeros, as a pipeline without a negative prompt has it, half to no text
MIN_SNR = 5.0  # Hang et al., arXiv 2303.09556
PREVIEW_PROMPTS = [
    "a koala on a blue background",
    "a dog face on a yellow background, noto style",
    "a red apple on a white background, fluent style",
    "a large rocket on a purple background, twemoji style",
    "a woman firefighter with dark skin on a green background",
    "a man judge with light skin on a pink background",
    "a female scientist with medium skin on a white background, fluent style",
    "a teacher on an orange background",
    "three koala emoji on a pink background",
    "a red square to the left of a blue circle on a white background",
    "a sign that says hello on a gray background",
    "a cat face above a red apple on a green background",
]


class Denoiser(nn.Module):
    """A U-Net and its two text encoders as one module: noisy latents and captions to noise."""

    def __init__(self, preset: Preset, system: str, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = build_unet(preset, system)
        self.text_encoder, self.text_encoder_2 = build_text_encoders(preset, tokenizer)
        if not torch.cuda.is_available():
            # Plain products: a CPU's fused attention is ten times slower backward in bf16.
            self.unet.set_attn_processor(AttnProcessor())
            for encoder in (self.text_encoder, self.text_encoder_2):
                encoder.set_attn_implementation("eager")
        side = preset.image_size
        self.register_buffer("time_ids", torch.tensor([side, side, 0, 0, side, side]).float())
        # SDXL reads penultimate states, so the first encoder's last layer is never used.
        body = getattr(self.text_encoder, "text_model", self.text_encoder)
        for part in (body.encoder.layers[-1], body.final_layer_norm):
            part.requires_grad_(False)

    def encode(self, ids: torch.Tensor, zeroed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return states (n, tokens, d) and pooled (n, p), both zero where `zeroed` is true."""
        first = self.text_encoder(ids, output_hidden_states=True)
        second = self.text_encoder_2(ids, output_hidden_states=True)
        states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        kept = (~zeroed).to(states)
        return states * kept[:, None, None], second.text_embeds * kept[:, None]

    def conditions(self, ids: torch.Tensor, zeroed: torch.Tensor) -> Record:
        """Return what the U-Net is conditioned on, as its keyword arguments."""
        states, pooled = self.encode(ids, zeroed)
        added = {"text_embeds": pooled, "time_ids": self.time_ids.expand(len(ids), -1)}
        return {"encoder_hidden_states": states, "added_cond_kwargs": added}

    def forward(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, ids: torch.Tensor, zeroed: torch.Tensor
    ) -> torch.Tensor:
        """Return the predicted noise, of the shape of `noisy`."""
        return self.unet(noisy, timesteps, **self.conditions(ids, zeroed)).sample


class Batches:
    """Noisy latents of fresh scenes; a batch is a pure function of its step and process."""

    def __init__(self, preset: Preset, tokenizer: CLIPTokenizer, vae: AutoencoderKL) -> None:
        self.world, self.tokenizer = World(preset.n_objects), tokenizer
        self.vae = vae.to(memory_format=torch.channels_last).requires_grad_(False).eval()
        self.render = Renderer(preset.image_size, self.world.things(), vae.device)
        self.alphas = build_scheduler().alphas_cumprod.to(vae.device)

    def __call__(self, number: int, size: int) -> dict[str, torch.Tensor]:
        """Return noise, noisy, timesteps, ids, zeroed and weight of a batch of training scenes."""
        return self.batch(HELD_OUT_SEEDS.stop + number * size, size)

    def held_out(self, number: int, size: int) -> dict[str, torch.Tensor]:
        """Return the same of held-out scenes."""
        return self.batch(HELD_OUT_SEEDS.start + number * size, size)

    @torch.no_grad()
    def batch(self, first: int, size: int) -> dict[str, torch.Tensor]:
        """Return the batch of the scenes of seeds `first` onwards."""
        scenes = [self.world.scene(first + i) for i in range(size)]
        device = self.vae.device
        with torch.autocast(device.type, torch.bfloat16):
            posterior = self.vae.encode(self.render(scenes)).latent_dist
        uniform, noise, spread = random_draws(first, size, tuple(posterior.mean.shape[1:]))
        noise, chance = noise.to(device), uniform[:, 0]
        latents = posterior.mean.float() + posterior.std.float() * spread.to(device)
        latents = scaled(self.vae, latents)
        empty = (chance >= DROPPED / 2) & (chance < DROPPED)
        texts = ["" if gone else s.caption for gone, s in zip(empty, scenes, strict=True)]
        timesteps = (uniform[:, 1] * len(self.alphas)).long().to(device)
        alpha = self.alphas[timesteps][:, None, None, None]
        snr = (alpha / (1 - alpha)).flatten()
        return {
            "noise": noise,
            "noisy": alpha.sqrt() * latents + (1 - alpha).sqrt() * noise,
            "timesteps": timesteps,
            "ids": self.encode(texts).to(device),
            "zeroed": (chance < DROPPED / 2).to(device),
            # Above sigma 1 the noise drowns what a caption decides (colours, layout): weigh it up.
            "weight": snr.clamp(max=MIN_SNR) / snr * snr.rsqrt().clamp(min=1),
        }

    def encode(self, texts: list[str]) -> torch.Tensor:
        """Return token ids, (n, tokens), padded and cut as the pipeline does."""
        return self.tokenizer(
            texts, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids


def task_loss(predicted: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the weighted mean squared error of the noise (weights: min-SNR, sigma above 1)."""
    error = F.mse_loss(predicted.float(), batch["noise"], reduction="none").mean((1, 2, 3))
    return (error * batch["weight"]).mean()


def assemble(
    module: Denoiser, vae: AutoencoderKL, tokenizer: CLIPTokenizer
) -> StableDiffusionXLPipeline:
    """Return the pipeline around a denoiser, with the recipe's scheduler."""
    pipe = StableDiffusionXLPipeline(
        vae=vae,
        unet=module.unet,
        text_encoder=module.text_encoder,
        text_encoder_2=module.text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=EulerDiscreteScheduler.from_config(
            build_scheduler().config, timestep_spacing="trailing"
        ),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_preview(preset: Preset, module: Denoiser, parts: dict) -> bytes:
    """Return a sheet of the preview prompts at the card's recipe, three seeds each."""
    pipe = assemble(module, **parts)
    images = pipe(
        PREVIEW_PROMPTS * 3,
        num_inference_steps=10,
        guidance_scale=3.5,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images
    return grid_png(images.cpu() * 2 - 1, len(PREVIEW_PROMPTS))


def train_unet(
    preset: Preset, folder: Path, system: str, stage: str, device: str | None,
    minutes: float | None, teacher: Path | None = None,
) -> bool:  # fmt: skip
    """Train one system and, when finished, write it to `data/models/`; True when finished.

    `teacher` is the folder of a trained pipeline; with it the student inherits its weights, its
    frozen text encoders and its features.
    """
    where = pick_device(device)
    vae = AutoencoderKL.from_pretrained(latest_vae(folder.parent)).to(where)
    tokenizer = build_tokenizer(preset)
    module = Denoiser(preset, system, tokenizer)
    distiller = distiller_of(module, teacher, where) if teacher else None
    batches = Batches(preset, tokenizer, vae)

    def loss(trained: nn.Module, number: int, size: int) -> tuple[torch.Tensor, dict]:
        batch = batches(number, size)
        if distiller is None:
            return task_loss(trained(*module_inputs(batch)), batch), {}
        with loop.accelerator.autocast():  # for the teacher's sake; the student's is Accelerate's
            return distillation_losses(distiller, trained, module, batch)

    def preview(averaged: nn.Module) -> bytes:
        with torch.compiler.set_stance("force_eager"):
            return draw_preview(preset, averaged, {"vae": vae, "tokenizer": tokenizer})

    loop = Loop(
        folder, module, preset.stages[stage], loss, preview,
        mixed_precision=reduced_precision(where),
        compiled=(BasicTransformerBlock,), device=device,
    )  # fmt: skip
    finished = loop.run(minutes)
    if loop.accelerator.is_main_process:
        target = data_folder() / "models" / system if finished else folder / system
        vae = AutoencoderKL.from_pretrained(latest_vae(folder.parent))
        with loop.averaged() as averaged:
            publish(target, system, averaged, vae, tokenizer, preset, stage)
    return finished


def module_inputs(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return a denoiser's arguments out of a batch."""
    return [batch[name] for name in ("noisy", "timesteps", "ids", "zeroed")]


def distiller_of(
    module: Denoiser, teacher: Path, device: str, feature: str = "self-attention",
    stages: Sequence[str] = (), inherited: bool = True,
) -> Distiller:  # fmt: skip
    """Return a student's loss against a trained teacher, whose text encoders it takes, frozen.

    With `inherited` the student's U-Net also takes its teacher's weights, by the map.
    """
    pipe = StableDiffusionXLPipeline.from_pretrained(teacher, dtype=torch.float32)
    for name in ("text_encoder", "text_encoder_2"):
        getattr(module, name).load_state_dict(getattr(pipe, name).state_dict())
        getattr(module, name).requires_grad_(False)
    if inherited:
        init_from_teacher(module.unet, pipe.unet)
    large = pipe.unet.requires_grad_(False).eval().to(device)
    return Distiller(module.unet, large, feature_pairs(module.unet, large, feature, stages))


def distillation_losses(
    distiller: Distiller, trained: nn.Module, module: Denoiser, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of a student `trained` (around `module`) on a batch, and its parts."""
    noisy, timesteps, ids, zeroed = module_inputs(batch)
    with torch.no_grad():
        inputs = module.conditions(ids, zeroed)
    inputs |= {"sample": noisy, "timestep": timesteps}
    return distiller.losses(
        lambda: trained(*module_inputs(batch)), inputs, batch["noise"], batch["weight"]
    )


def publish(
    target: Path, system: str, module: Denoiser, vae: AutoencoderKL, tokenizer: CLIPTokenizer,
    preset: Preset, stage: str,
) -> None:  # fmt: skip
    """Write a trained system as an ordinary pipeline folder, with how it was trained."""
    parts = {name: getattr(module, name) for name in ("unet", "text_encoder", "text_encoder_2")}
    save_pipeline(target, system, {**parts, "vae": vae, "tokenizer": tokenizer})
    write_json(target / "training.json", training_record(preset, stage))
