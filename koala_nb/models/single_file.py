"""A pipeline as one safetensors file, under the names of SDXL's release, which other tools read."""

import os
import re
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from koala_nb.core.files import short, write_atomic
from koala_nb.models.hub import RELEASE_UNET as UNET
from koala_nb.models.hub import RELEASE_VAE as VAE
from koala_nb.models.load import Pipeline, check_pipeline, model_info
from koala_nb.models.unet import layers_per_block

Tensors = dict[str, torch.Tensor]
CLIP_L = "conditioner.embedders.0.transformer.text_model."
CLIP_G = "conditioner.embedders.1.model."
# From diffusers' names to the release's: inside a residual block, of the rest, of a VAE's blocks.
RESIDUAL = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
OTHERS = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
IN_VAE = {
    "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut", "group_norm": "norm",
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
}  # fmt: skip
IN_CLIP_G = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding", "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "fc1": "c_fc", "fc2": "c_proj",
    "self_attn": "attn", "final_layer_norm": "ln_final",
}  # fmt: skip


def save_single_file(pipe: Pipeline, path: str | os.PathLike[str]) -> Path:
    """Write a pipeline's weights into one safetensors file, under the names of SDXL's release.

    `load(path, config="koala-700m")` reads it again. ValueError for another ending, a pipeline
    without SDXL's two text encoders, or with adapters or quantised weights.
    """
    check_pipeline(pipe)
    if not isinstance(path, str | os.PathLike) or not str(path).endswith(".safetensors"):
        raise ValueError(f"{short(path)} is no place for it: give a path ending in .safetensors.")
    parts = {name: getattr(pipe, name, None) for name in ("unet", "vae", "text_encoder")}
    second = getattr(pipe, "text_encoder_2", None)
    if second is None:
        raise ValueError(f"{model_info(pipe).name} lacks SDXL's second text encoder.")
    for name, part in (*parts.items(), ("text_encoder_2", second)):
        if any(".base_layer." in key for key in part.state_dict()):
            raise ValueError(f"{name} has adapters: fuse and unload them, or load it without.")
        if any(type(weight) is not torch.nn.Parameter for weight in part.parameters()):
            raise ValueError(f"{name} is quantised: export it in the precision it was trained in.")
    tensors = _unet(pipe.unet) | _vae(pipe.vae) | _clip_g(second)
    tensors |= {f"{CLIP_L}{_inside(k)}": v for k, v in pipe.text_encoder.state_dict().items()}
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return write_atomic(path, save(tensors, metadata={"system": model_info(pipe).label}), sync=True)


def _renamed(key: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        key = re.sub(rf"(^|\.){re.escape(old)}(?=\.|$)", rf"\g<1>{new}", key)
    return key


def _unet(unet: nn.Module) -> Tensors:
    each, modules = layers_per_block(unet) + 1, {name for name, _ in unet.named_modules()}
    state = unet.state_dict()
    return {UNET + _unet_name(key, each, modules): value for key, value in state.items()}


def _unet_name(key: str, each: int, modules: set[str]) -> str:
    """Return the release's name: blocks are counted through, `each` of them on a stage."""
    match = re.match(r"(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)", key)
    if not match:
        return _renamed(key, OTHERS)
    stage, kind, rest = match[1], match[3], match[5]
    block, number = int(match[2] or 0), int(match[4])
    if kind == "resnets":
        rest = _renamed(rest, RESIDUAL)
    if stage == "mid_block":
        return f"middle_block.{2 * number + (kind == 'attentions')}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{each * (block + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        place = 2 if f"up_blocks.{block}.attentions" in modules else 1
        return f"output_blocks.{each * (block + 1) - 1}.{place}.{rest}"
    place = 1 if kind == "attentions" else 0
    if stage == "down_blocks":
        return f"input_blocks.{each * block + number + 1}.{place}.{rest}"
    return f"output_blocks.{each * block + number}.{place}.{rest}"


def _vae(vae: nn.Module) -> Tensors:
    last = len(vae.config.block_out_channels) - 1
    tensors = {}
    for key, value in vae.state_dict().items():
        name = re.sub(
            r"(down|up)_blocks\.(\d)\.(?:resnets\.(\d)|(down|up)samplers\.0)",
            lambda m: (
                f"{m[1]}.{last - int(m[2]) if m[1] == 'up' else m[2]}."
                + (f"block.{m[3]}" if m[3] else f"{m[4]}sample")
            ),
            key,
        )
        in_attention = ".attentions." in key and "group_norm" not in key and value.ndim == 2
        tensors[VAE + _renamed(name, IN_VAE)] = value[..., None, None] if in_attention else value
    return tensors


def _inside(key: str) -> str:
    """Return a text encoder's name: libraries have it with or without `text_model`."""
    return key.removeprefix("text_model.")


def _clip_g(encoder: nn.Module) -> Tensors:
    """Return OpenCLIP's tensors: queries, keys and values in one, the projection transposed."""
    state = {_inside(key): value for key, value in encoder.state_dict().items()}
    tensors: Tensors = {f"{CLIP_G}text_projection": state.pop("text_projection.weight").T}
    for key, value in state.items():
        if key.endswith("position_ids") or re.search(r"\.[kv]_proj\.", key):
            continue
        name = _renamed(key, IN_CLIP_G)
        if ".q_proj." in key:
            value = torch.cat([state[key.replace("q_proj", f"{one}_proj")] for one in "qkv"])
            name = re.sub(r"q_proj\.(\w+)$", r"in_proj_\1", name)
        tensors[CLIP_G + name] = value
    return tensors
