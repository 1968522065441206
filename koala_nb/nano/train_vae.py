"""Train the autoencoder: crops around the sprites, and whole images, of the emoji world.

The decoder can train on after the encoder is frozen (stage "decoder"): latents stay the same, so
this may run while or after the U-Nets train on them.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import nn

from koala_nb.core.catalog import data_folder
from koala_nb.distillation.data import picture_sheet
from koala_nb.distillation.loop import Loop
from koala_nb.distillation.similarity import scaled
from koala_nb.nano.models import build_vae, pick_device
from koala_nb.nano.presets import Preset
from koala_nb.nano.render import Renderer, to_pixels
from koala_nb.nano.world import HELD_OUT_SEEDS, World

KL_WEIGHT = 1e-6
DECODER_NOISE = 0.3  # of the latents' deviation: a frozen encoder's decoder learns to forgive
WHOLE_SHARE = 0.25  # of the batches; a whole image costs as much as four crops


class Autoencoder(nn.Module):
    """The autoencoder as one module with a forward pass from images to images."""

    def __init__(self, preset: Preset, trained: Path | None = None) -> None:
        super().__init__()
        vae = AutoencoderKL.from_pretrained(trained) if trained else start_vae(preset)
        self.vae = vae.to(memory_format=torch.channels_last)
        self.frozen = trained is not None
        if trained:
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return reconstructions, (n, 3, h, w), and the mean KL divergence a cell."""
        posterior = self.vae.encode(images).latent_dist
        latents = posterior.sample()
        if self.frozen:
            level = DECODER_NOISE * torch.rand(len(images), 1, 1, 1, device=images.device)
            latents = denormalise(
                self.vae, scaled(self.vae, latents) + level * torch.randn_like(latents)
            )
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        return self.vae.decode(latents).sample, kl


def start_vae(preset: Preset) -> AutoencoderKL:
    """Return the shipped autoencoder to train on, where there is one, else a new one."""
    shipped = data_folder() / "models" / "nano-koala" / "vae"
    if not shipped.is_dir():
        return build_vae(preset)
    return AutoencoderKL.from_pretrained(shipped, torch_dtype=torch.float32)


def crop(images: torch.Tensor, scenes: list, side: int, scale: int) -> torch.Tensor:
    """Return one crop an image, at a random place that overlaps its first sprite."""
    pieces = []
    for image, scene in zip(images, scenes, strict=True):
        left, top, right, bottom = (scale * edge for edge in scene.placed[0].box)
        x = int(torch.randint(left, right, ())) - side // 2
        y = int(torch.randint(top, bottom, ())) - side // 2
        limit = image.shape[-1] - side
        x, y = min(max(x, 0), limit), min(max(y, 0), limit)
        pieces.append(image[:, y : y + side, x : x + side])
    return torch.stack(pieces)


def train_vae(
    preset: Preset,
    folder: Path,
    device: str | None,
    minutes: float | None,
    trained: Path | None = None,
) -> bool:
    """Train until the preset's samples are used; True when finished.

    With `trained`, the folder of an autoencoder, only its decoder trains on.
    """
    world = World(preset.n_objects, balanced=True)
    render = Renderer(preset.image_size, world.things(), pick_device(device))
    generator = torch.Generator()

    def loss(module: nn.Module, number: int, size: int) -> tuple[torch.Tensor, dict]:
        whole = torch.rand((), generator=generator.manual_seed(number)) < WHOLE_SHARE
        first = HELD_OUT_SEEDS.stop + number * size
        count = size // 4 if whole else size
        scenes = [world.scene(first + i) for i in range(count)]
        images = render(scenes)
        if not whole:
            images = crop(images, scenes, preset.crop, render.scale)
        images = images.to(next(module.parameters()).device)
        decoded, kl = module(images)
        decoded = decoded.float()
        edges = sum((decoded.diff(dim=d) - images.diff(dim=d)).abs().mean() for d in (-1, -2))
        error = (decoded - images).abs().mean()
        psnr = -10 * torch.log10(F.mse_loss(decoded.detach(), images) / 4)
        return error + edges + KL_WEIGHT * kl, {"psnr": psnr, "whole": whole.float()}

    def preview(module: Autoencoder) -> bytes:
        images = render([world.scene(seed) for seed in range(24)])
        with torch.no_grad():
            device = next(module.parameters()).device
            decoded = module.vae.decode(module.vae.encode(images.to(device)).latent_dist.mode())
        return grid_png(torch.cat([images, decoded.sample]).cpu(), 12)

    module = Autoencoder(preset, trained)
    stage = preset.stages["decoder" if trained else "vae"]
    loop = Loop(folder, module, stage, loss, preview, mixed_precision="bf16", device=device)
    finished = loop.run(minutes)
    if loop.accelerator.is_main_process:
        with loop.averaged() as averaged:
            save_vae(averaged.vae.float(), world, render, folder / "vae", new=trained is None)
    return finished


def denormalise(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Return latents as the decoder takes them: the inverse of `similarity.scaled`."""
    config = vae.config
    mean, std = (
        torch.tensor(values).to(latents).view(1, -1, 1, 1)
        for values in (config.latents_mean, config.latents_std)
    )
    return latents * std / config.scaling_factor + mean


def latest_vae(folder: Path) -> Path:
    """Return the autoencoder of a configuration's folder, with the longest trained decoder."""
    refined = folder / "decoder" / "vae"
    return refined if refined.is_dir() else folder / "vae" / "vae"


@torch.no_grad()
def save_vae(vae: AutoencoderKL, world: World, render: Renderer, folder: Path, new: bool) -> None:
    """Write the autoencoder; a new one learns its latents' mean and deviation, a channel each."""
    if new:
        device = next(vae.parameters()).device
        images = render([world.scene(seed) for seed in range(512)]).to(device)
        latents = vae.encode(images).latent_dist.sample()
        vae.register_to_config(
            scaling_factor=1.0,
            latents_mean=[round(float(m), 4) for m in latents.mean((0, 2, 3))],
            latents_std=[round(float(d), 4) for d in latents.std((0, 2, 3))],
        )
    vae.save_pretrained(folder)


def grid_png(images: torch.Tensor, columns: int) -> bytes:
    """Return images in -1..1 as one PNG, `columns` a row."""
    return picture_sheet([Image.fromarray(pixels) for pixels in to_pixels(images)], columns)
