"""What two U-Nets compute on the same pictures: features seen by PCA, compared by CKA.

The protocol (pictures, noise level, layers) is this project's own, not that of KOALA's paper.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from koala_nb.distillation.losses import FeatureHooks
from koala_nb.models.load import Pipeline


@torch.no_grad()
def noisy_inputs(
    pipe: Pipeline,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    timestep: int,
    seed: int = 0,
) -> dict[str, object]:
    """Return a U-Net's arguments for pictures at a noise level, each with its prompt.

    `timestep`: 0 (no noise) to 999; the noise is `seed`'s alone. ValueError for what does not fit.
    """
    alphas = pipe.scheduler.alphas_cumprod
    if len(images) != len(prompts) or not images:
        raise ValueError(f"{len(images)} images and {len(prompts)} prompts: give one prompt each.")
    if not 0 <= timestep < len(alphas):
        raise ValueError(f"Timestep {timestep}: give one of 0 to {len(alphas) - 1}.")
    device, dtype = pipe._execution_device, pipe.unet.dtype
    pixels = pipe.image_processor.preprocess(list(images)).to(device, pipe.vae.dtype)
    latents = scaled(pipe.vae, pipe.vae.encode(pixels).latent_dist.mode()).float().cpu()
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    alpha = alphas[timestep]
    return {
        "sample": (alpha.sqrt() * latents + (1 - alpha).sqrt() * noise).to(device, dtype),
        "timestep": torch.tensor(timestep, device=device),
        **conditions(pipe, list(prompts), (images[0].height, images[0].width)),
    }


@torch.no_grad()
def conditions(
    pipe: Pipeline, texts: str | list[str], size: tuple[int, int]
) -> dict[str, Tensor | dict[str, Tensor]]:
    """Return texts and a picture's size, (height, width), as a U-Net's arguments."""
    states, _, pooled, _ = pipe.encode_prompt(texts, do_classifier_free_guidance=False)
    ids = torch.tensor([[*size, 0, 0, *size]] * len(pooled)).to(pooled)  # original, crop, target
    added = {"text_embeds": pooled, "time_ids": ids}
    return {"encoder_hidden_states": states, "added_cond_kwargs": added}


def scaled(vae: nn.Module, latents: Tensor) -> Tensor:
    """Return latents as the U-Net sees them: the inverse of what SDXL's pipeline does to decode."""
    config = vae.config
    mean = config.get("latents_mean") or [0.0] * config.latent_channels
    deviation = config.get("latents_std") or [1.0] * config.latent_channels
    shift, spread = (torch.tensor(v).to(latents).view(1, -1, 1, 1) for v in (mean, deviation))
    return (latents - shift) * config.scaling_factor / spread


@torch.no_grad()
def outputs(
    unet: nn.Module, inputs: Mapping[str, object], names: Sequence[str]
) -> dict[str, Tensor]:
    """Return the outputs of modules in one forward pass, each (n, positions, channels), float32."""
    with FeatureHooks(unet, names) as hooks:
        unet(**inputs)
        return {name: value.float().cpu() for name, value in hooks.collect().items()}


def cka(first: Tensor, second: Tensor) -> float:
    """Return the linear centred kernel alignment of two features of the same positions, 0 to 1.

    Both (..., channels), of as many positions. 1 where one is a rotation and scaling of the other
    (Kornblith et al., arXiv 1905.00414, eq. 5). ValueError where their positions differ in number.
    """
    x, y = (value.flatten(0, -2).double() for value in (first, second))
    if len(x) != len(y):
        raise ValueError(f"cka: {len(x)} and {len(y)} positions: compare layers of one resolution.")
    x, y = x - x.mean(0), y - y.mean(0)
    norm = torch.linalg.matrix_norm
    return float(norm(x.T @ y) ** 2 / (norm(x.T @ x) * norm(y.T @ y)))


def principal_colours(features: Tensor, height: int, width: int) -> list[Image.Image]:
    """Show features, (n, height * width, channels), by their first three principal components.

    One PCA of all; red, green, blue between 1st and 99th percentile, the largest entry positive.
    """
    flat = features.flatten(0, 1).double()
    flat = flat - flat.mean(0)
    _, _, axes = torch.linalg.svd(flat, full_matrices=False)
    axes = axes[:3]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    shown = (flat @ (axes * largest.sign()).T).numpy()
    low, high = np.percentile(shown, [1, 99], axis=0)
    pixels = np.clip((shown - low) / np.maximum(high - low, 1e-12), 0, 1)
    pixels = (255 * pixels).round().astype(np.uint8).reshape(len(features), height, width, -1)
    return [Image.fromarray(picture) for picture in pixels]
