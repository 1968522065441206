"""LoRA of SDXL on U-Nets that were cut from SDXL's: each delta goes where its block went."""

import os
import warnings
from collections.abc import Mapping
from types import SimpleNamespace

import pandas as pd
import torch
from diffusers.utils import state_dict_utils as layouts
from safetensors import SafetensorError
from torch import Tensor, nn

from koala_nb.core import catalog
from koala_nb.core.errors import first_line, require
from koala_nb.core.files import Record, short
from koala_nb.models.load import Pipeline, model_info
from koala_nb.models.unet import layers_per_block, teacher_name

PARTS = ("unet", "text_encoder", "text_encoder_2")
Pairs = dict[str, dict[str, Tensor]]  # by "unet.<module>": lora_A, down, and lora_B, up


def load_lora(
    pipe: Pipeline,
    lora: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    name: str = "sdxl",
    **hub: str,
) -> pd.DataFrame:
    """Load a LoRA that was trained on SDXL-Base, each module into the block that came from its own.

    lora: a safetensors file, a hub id (with `weight_name=`, `revision=`) or a dictionary of
    tensors; `name`: the adapter's, for `pipe.set_adapters`. The block map is `teacher_name`'s.
    What KOALA has no block for is left out, with a warning. A LoRA trained on the pipeline's own
    model needs no map: `pipe.load_lora_weights`.
    Returns columns part, module (SDXL's name) and loaded_into (None: left out), a row per module.
    Raises ValueError where peft is missing, or for what is no LoRA of SDXL.
    """
    require("peft", "lora")
    model_info(pipe)  # refuses what is no pipeline
    _check_cut_from_sdxl(pipe)
    pairs = _read(pipe, lora, hub)
    modules = {part: dict(getattr(pipe, part).named_modules()) for part in PARTS}
    layers = layers_per_block(pipe.unet)
    origins = {teacher_name(module, 2, layers): module for module in modules["unet"]}
    rows = []
    state: dict[str, Tensor] = {}
    for key, pair in pairs.items():
        part, _, module = key.partition(".")
        into = origins.get(module) if part == "unet" else _in_encoder(module, modules[part])
        rows.append((part, module, into))
        if into is not None:
            _check_shape(key, pair, modules[part][into])
            state |= {f"{part}.{into}.{side}.weight": value for side, value in pair.items()}
    table = pd.DataFrame(rows, columns=["part", "module", "loaded_into"])
    lacking = table[table.loaded_into.isna()]
    if not state:
        named = f", such as {rows[0][1]}," if rows else ""
        raise ValueError(f"None of the {len(rows)} modules of this LoRA{named} is one of SDXL's.")
    pipe.load_lora_weights(state, adapter_name=name)
    if len(lacking):
        warnings.warn(
            f"{len(rows) - len(lacking)} of {len(rows)} modules of this LoRA are loaded; "
            f"{model_info(pipe).name} lacks the blocks of the other {len(lacking)}, such as "
            f"{lacking.module.iloc[0]}.",
            stacklevel=2,
        )
    return table


def _check_cut_from_sdxl(pipe: Pipeline) -> None:
    config = pipe.unet.config
    keys = ["down_block_types", "up_block_types"]
    if layers_per_block(pipe.unet) != 1:
        keys.append("transformer_layers_per_block")  # an integer, or a number for each block
    sdxl = catalog.SDXL_UNET
    same = all(config[key] in (sdxl[key], tuple(sdxl[key])) for key in keys)
    if not same or not hasattr(pipe, "text_encoder_2"):
        raise ValueError(
            f"{model_info(pipe).name} is neither SDXL nor KOALA: it is not known which of its "
            "blocks come from which of SDXL's. Load a LoRA of its own by pipe.load_lora_weights."
        )


def _read(pipe: Pipeline, lora: object, hub: Record) -> Pairs:
    """Read a LoRA of any format that diffusers knows, by SDXL's modules; alphas multiplied in."""
    if isinstance(lora, Mapping):
        source: object = dict(lora)
        usable = all(isinstance(k, str) and torch.is_tensor(v) for k, v in lora.items())
    else:
        source, usable = str(lora), isinstance(lora, str | os.PathLike)
    if not usable or not source:
        raise ValueError(f"{short(lora)} is no LoRA: give a file, a hub id or tensors by name.")
    try:
        state, alphas, metadata = type(pipe).lora_state_dict(
            source,
            unet_config=SimpleNamespace(**catalog.SDXL_UNET),  # block numbers of other formats
            use_safetensors=True,
            return_lora_metadata=True,
            **hub,
        )
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        why = first_line(error)
        raise ValueError(f"{short(lora)} is no LoRA that can be read: {why}.") from None
    named = {key.removesuffix(".alpha"): alpha for key, alpha in (alphas or {}).items()}
    whole = {k if k.endswith(".weight") else f"{k}.lora.down.weight": v for k, v in named.items()}
    alphas = {key.rpartition(".lora_")[0]: alpha for key, alpha in _renamed(whole).items()}
    pairs: Pairs = {}
    for key, tensor in _renamed(state).items():
        module, _, side = key.removesuffix(".weight").rpartition(".")
        if side not in ("lora_A", "lora_B") or module.partition(".")[0] not in PARTS:
            raise ValueError(f"{short(lora)} has {key}, which is no part of a plain LoRA of SDXL.")
        pairs.setdefault(module, {})[side] = tensor
    for module, pair in pairs.items():
        if len(pair) < 2 or any(tensor.ndim < 2 for tensor in pair.values()):
            raise ValueError(f"{short(lora)} lacks one of the two matrices of {module}.")
        scale = _scale(module, len(pair["lora_A"]), alphas, metadata or {})
        pair["lora_B"] = pair["lora_B"] * scale
    return pairs


def _renamed(state: Record) -> Record:
    """Return a LoRA's tensors, or numbers, under peft's names."""
    encoders = {k: v for k, v in state.items() if k.startswith("text_encoder")}
    others = {k: v for k, v in state.items() if k not in encoders}
    names = {**layouts.DIFFUSERS_OLD_TO_PEFT, **layouts.DIFFUSERS_TO_PEFT}
    unet = layouts.convert_state_dict(others, layouts.UNET_TO_DIFFUSERS)
    return {**unet, **layouts.convert_state_dict(encoders, names)}


def _scale(module: str, rank: int, alphas: Record, metadata: Record) -> float:
    part, _, inside = module.partition(".")
    alpha = alphas[module] if module in alphas else metadata.get(f"{part}.lora_alpha", rank)
    for pattern, value in (metadata.get(f"{part}.alpha_pattern") or {}).items():
        if inside == pattern or inside.endswith(f".{pattern}"):
            alpha = value
    root = metadata.get(f"{part}.use_rslora", False)
    return float(alpha) / (rank**0.5 if root else rank)


def _in_encoder(module: str, modules: Mapping[str, nn.Module]) -> str | None:
    """Return a text encoder's module: libraries name it with or without `text_model`."""
    names = (module, module.removeprefix("text_model."), f"text_model.{module}")
    return next((name for name in names if name in modules), None)


def _check_shape(key: str, pair: Mapping[str, Tensor], module: nn.Module) -> None:
    weight = getattr(module, "base_layer", module).weight
    (rank, inside), outside = pair["lora_A"].shape[:2], len(pair["lora_B"])
    if (outside, inside) != tuple(weight.shape[:2]):
        raise ValueError(
            f"{key} of this LoRA (rank {rank}) is for {outside} x {inside} weights, and SDXL's are "
            f"{weight.shape[0]} x {weight.shape[1]}: it was trained on another kind of model."
        )
