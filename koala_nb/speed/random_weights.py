"""Parts of random weights: speed and memory do not depend on their values."""

from typing import Any

import torch
from torch import nn

from koala_nb.core import catalog
from koala_nb.core.files import Record
from koala_nb.models.unet import CLIP_BIGG, CLIP_H, CLIP_L, SDXL_VAE, build_parts, build_unet

SMALL_UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64, 128),
    "attention_head_dim": [1, 2, 4],
    "cross_attention_dim": 128,
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 64 + 6 * 32,
    "norm_num_groups": 8,
}
SMALL_CLIP = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
SMALL_VAE = {**SDXL_VAE, "block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4}


def filled(module: nn.Module, dtype: str, device: str = "cpu") -> nn.Module:
    """Give a module of the meta device memory and random values; biases 0, norms 1."""
    module = module.to(getattr(torch, dtype)).to_empty(device=device).eval()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.normal_(std=0.02) if weight.ndim > 1 else weight.fill_(name.endswith("weight"))
        for name, buffer in module.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1]))
    return module.requires_grad_(False)


def parts(system: str, *, small: bool = False, tokenizer: Any = None) -> dict[str, nn.Module]:
    """Return a system's parts on the meta device, narrowed if `small`; ValueError: embedded."""
    known = catalog.find(system)
    if known.embedded:
        raise ValueError(f"{system} has weights of its own: load it.")
    texts: list[Record] = [CLIP_H] if system == "sdm-v2.0" else [CLIP_L, CLIP_BIGG]
    config = dict(known.unet_config)
    if small:
        config, texts = {**config, **SMALL_UNET}, [SMALL_CLIP, {**SMALL_CLIP, "projection_dim": 64}]
    ends = {"eos_token_id": tokenizer.eos_token_id} if tokenizer else {}
    return {
        "unet": build_unet(config),
        **build_parts(texts, SMALL_VAE if small else SDXL_VAE, **ends),
    }
