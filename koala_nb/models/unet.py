"""U-Nets from their configurations alone: built on the meta device, counted and compared.

A module on torch's meta device has shapes and no values: nothing here needs weights or memory.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from koala_nb.core import catalog
from koala_nb.core.card import CARD_TABLE, CARD_TABLE_CONDITIONS
from koala_nb.core.files import Record, checked_path

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

KINDS = ("residual blocks", "self-attention", "cross-attention", "feed-forward", "other")
CARD_ROWS = "parameters;reduction;checkpoint;transformer blocks;mid block;latency (s)".split(";")
# Each up stage keeps the pairs 0 and 2 of three, numbered 0 and 1 in the student (BK-SDM's rule).
_MOVED = re.compile(r"^(up_blocks\.\d+\.(?:resnets|attentions))\.1(?=\.|$)")
# The parts beside the U-Net, as the released configurations of SDXL-Base and SD v2.0 give them.
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23}
CLIP_BIGG = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
SDXL_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}


def build_unet(system: str | Path | Mapping[str, Any]) -> "UNet2DConditionModel":
    """Build a U-Net on the meta device: its shapes can be counted, nothing is allocated.

    `system` is a catalogued name, a folder with `unet/config.json`, or a configuration. ValueError
    for an unknown name, FileNotFoundError for a folder (or an embedded system) without one.
    """
    from diffusers import UNet2DConditionModel

    config = dict(system if isinstance(system, Mapping) else _config(system))
    config.pop("_use_default_values", None)  # diffusers would ignore a change of these
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config).eval()


def _config(system: str | Path) -> Mapping[str, Any]:
    checked_path(system, "Give a system's name or a folder")
    if not Path(system).is_dir():
        known = catalog.find(str(system))
        folder = catalog.data_folder() / "models" / known.name / "unet"
        if known.embedded and not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{system} is not trained here: no {known.repository}/unet.")
        return known.unet_config
    file = Path(system) / "unet" / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"No U-Net configuration {file}: give a pipeline's folder.")
    return json.loads(file.read_text("utf-8"))


def parameters(module: nn.Module) -> int:
    """Return how many numbers a module learns."""
    return sum(weight.numel() for weight in module.parameters())


def stage_of(name: str) -> str:
    """Return the stage of a module or tensor: `down_blocks.0` ... `up_blocks.2`, else `rest`."""
    match = re.match(r"(?:down|up)_blocks\.\d+|mid_block", name)
    return match[0] if match else "rest"


def kind_of(name: str) -> str:
    """Return which of KINDS a module or tensor belongs to, by its name."""
    for part, kind in (
        (".attn1.", "self-attention"),
        (".attn2.", "cross-attention"),
        (".ff.", "feed-forward"),
        (".resnets.", "residual blocks"),
    ):
        if part in f".{name}.":
            return kind
    return "other"


def blocks(unet: nn.Module) -> pd.DataFrame:
    """List a U-Net's blocks, in order of execution within each stage.

    Columns: stage, block, type (class), transformer_blocks, residual_blocks, parameters.
    """
    rows = []
    for name, module in unet.named_modules():
        stage = stage_of(name)
        below = name.removeprefix(stage).count(".")  # "down_blocks.0.resnets.1": 2 below its stage
        if below == (0 if stage == "rest" else 2) and name not in ("", "down_blocks", "up_blocks"):
            rows.append(_block(stage, name, module))
    order = _stages(unet)
    rows.sort(key=lambda row: (order.index(row["stage"]), *_turn(row["block"])))
    return pd.DataFrame(rows).query("parameters > 0").reset_index(drop=True)  # no activations


def _turn(block: str) -> tuple[bool, int, bool]:
    """Return what sorts a stage's blocks: pair by pair, residual first, samplers last."""
    kind, _, number = block.partition(".")
    return kind.endswith("samplers"), int(number or 0), kind == "attentions"


def _block(stage: str, name: str, module: nn.Module) -> Record:
    kinds = [type(part).__name__ for part in module.modules()]
    return {
        "stage": stage,
        "block": name.removeprefix(f"{stage}."),
        "type": kinds[0],
        "transformer_blocks": kinds.count("BasicTransformerBlock"),
        "residual_blocks": kinds.count("ResnetBlock2D"),
        "parameters": parameters(module),
    }


def _stages(unet: nn.Module) -> list[str]:
    down, up = unet.config.down_block_types, unet.config.up_block_types
    names = [f"down_blocks.{i}" for i in range(len(down))]
    names += ["mid_block"] * (unet.mid_block is not None)
    return [*names, *(f"up_blocks.{i}" for i in range(len(up))), "rest"]


def stages(unet: nn.Module) -> pd.DataFrame:
    """Return transformer blocks, residual blocks and parameters per stage, with a row `total`."""
    counted = blocks(unet).groupby("stage", sort=False).sum(numeric_only=True)
    return pd.concat([counted, counted.sum().rename("total").to_frame().T])


def costs(unet: nn.Module, latent: tuple[int, int] | None = None, tokens: int = 77) -> pd.DataFrame:
    """Count parameters and floating-point operations of one forward pass of one image.

    `latent` is the latents' (height, width) in cells, an eighth of SDXL's pixels; default: the
    configuration's `sample_size`. `tokens` is the prompt's length. Guidance doubles the operations.
    Returns one row per stage and kind: stage, kind, parameters, flops. A multiplication with its
    addition counts as two (torch.utils.flop_counter, which counts products of matrices and
    convolutions only). ValueError for a size that the U-Net cannot halve.
    """
    height, width = latent or (unet.config.sample_size,) * 2
    halvings = 2 ** (len(unet.config.down_block_types) - 1)
    if min(height, width) < halvings or height % halvings or width % halvings:
        raise ValueError(
            f"Latents of {height} x {width} cells: give multiples of {halvings}, since the U-Net "
            "halves them on its way down."
        )
    unet = build_unet(unet.config)  # the given one may hold real weights: do not compute with them
    with FlopCounterMode(display=False) as counter:
        unet(**meta_inputs(unet, height, width, tokens))
    counts = {
        name.partition(".")[2]: sum(ops.values())
        for name, ops in counter.get_flop_counts().items()
        if "." in name  # neither the sum "Global" nor the whole U-Net
    }
    rows = [(stage_of(n), kind_of(n), weight.numel(), 0) for n, weight in unet.named_parameters()]
    rows += [(stage_of(n), kind_of(n), 0, count) for n, count in _without_parts(counts).items()]
    frame = pd.DataFrame(rows, columns=["stage", "kind", "parameters", "flops"])
    order = {name: i for i, name in enumerate([*_stages(unet), *KINDS])}
    summed = frame.groupby(["stage", "kind"], sort=False, as_index=False).sum()
    return summed.sort_values(["stage", "kind"], key=lambda s: s.map(order), ignore_index=True)


def _without_parts(flops: Mapping[str, int]) -> dict[str, int]:
    counts = dict(flops)
    for name, count in flops.items():
        parent = name.rpartition(".")[0]
        while parent and parent not in counts:  # ModuleList: never called, so never counted
            parent = parent.rpartition(".")[0]
        if parent:
            counts[parent] -= count
    return counts


def meta_inputs(unet: nn.Module, height: int, width: int, tokens: int) -> Record:
    """Return a U-Net's arguments for one image, latents of height x width, on the meta device."""
    config = unet.config
    with torch.device("meta"):
        inputs: Record = {
            "sample": torch.empty(1, config.in_channels, height, width),
            "timestep": torch.empty(1),
            "encoder_hidden_states": torch.empty(1, tokens, config.cross_attention_dim),
        }
        if config.addition_embed_type == "text_time":
            pooled = config.projection_class_embeddings_input_dim
            pooled -= 6 * config.addition_time_embed_dim
            added = {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)}
            inputs["added_cond_kwargs"] = added
    return inputs


def other_parts(system: str) -> dict[str, int]:
    """Return the parameters of what a pipeline loads beside the U-Net, built on the meta device.

    Names as in the pipeline; all but SDM-v2.0 share SDXL's. ValueError for an embedded system.
    """
    if catalog.find(system).embedded:
        raise ValueError(f"{system} has small parts of its own: load it and count them.")
    parts = build_parts([CLIP_H] if system == "sdm-v2.0" else [CLIP_L, CLIP_BIGG], SDXL_VAE)
    return {name: parameters(part) for name, part in parts.items()}


def build_parts(
    texts: Sequence[Mapping[str, Any]], vae: Mapping[str, Any], **tokens: int
) -> dict[str, nn.Module]:
    """Return a VAE and text encoders on the meta device; `tokens`: ids such as eos_token_id."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        parts: dict[str, nn.Module] = {"vae": AutoencoderKL(**vae, scaling_factor=0.13025)}
        for i, text in enumerate(texts):
            heads = text["hidden_size"] // 64
            config = CLIPTextConfig(**text, **tokens, num_attention_heads=heads)
            encoder = CLIPTextModelWithProjection if i else CLIPTextModel
            parts["text_encoder_2" if i else "text_encoder"] = encoder(config)
    return parts


def layers_per_block(unet: nn.Module) -> int:
    """Return how many residual blocks a U-Net has in each down stage."""
    layers = unet.config.layers_per_block
    return layers if isinstance(layers, int) else layers[0]


def teacher_name(name: str, teacher_layers: int = 2, student_layers: int = 1) -> str:
    """Return the teacher's name of a student's module or tensor.

    Only the cut from two layers a block to one renames: in up stages, pair 1 comes from pair 2.
    """
    if (teacher_layers, student_layers) == (2, 1):
        return _MOVED.sub(r"\1.2", name)
    return name


def weight_map(student: nn.Module, teacher: nn.Module) -> pd.DataFrame:
    """Return which teacher tensor each tensor of a student comes from; every shape is checked.

    Columns: student, teacher, shape, by_name (whether the teacher's tensor of the student's own
    name would fit). The rule is BK-SDM's (arXiv 2305.15798), on which KOALA builds; that its
    authors used exactly this map is not confirmed. ValueError naming the first tensor whose shape
    does not match or that is missing.
    """
    source, layers = teacher.state_dict(), (layers_per_block(teacher), layers_per_block(student))
    rows = []
    for name, tensor in student.state_dict().items():
        origin, shape = teacher_name(name, *layers), tuple(tensor.shape)
        if origin not in source or source[origin].shape != tensor.shape:
            counterpart = tuple(source[origin].shape) if origin in source else "none"
            raise ValueError(
                f"The student's {name} {shape} has no counterpart in the teacher: {origin} is "
                f"{counterpart}. Choose a student cut from this teacher."
            )
        rows.append((name, origin, shape, name in source and source[name].shape == tensor.shape))
    return pd.DataFrame(rows, columns=["student", "teacher", "shape", "by_name"])


def card_comparison() -> pd.DataFrame:
    """Return the card's table of U-Nets beside the one computed from configurations.

    Columns quantity, system, published, computed, verdict (holds, does not hold, quoted), note.
    """
    rows, sizes = [], {}
    for line in CARD_TABLE:
        name = str(line["U-Net"])
        (system,) = [s for s in catalog.SYSTEMS if s.title == name]
        unet = build_unet(system.name)
        count = sizes[name] = int(stages(unet).loc["total", "parameters"])
        has_mid = unet.mid_block is not None
        for quantity, computed, *verdict in (
            ("parameters", f"{count:,}", *_verdict_count(str(line["parameters"]), count)),
            ("checkpoint", _gigabytes(count), *_verdict_size(str(line["checkpoint"]), count)),
            ("transformer blocks", *_depths(unet, str(line["transformer blocks"])), ""),
            ("mid block", has_mid, _agrees(has_mid == line["mid block"]), ""),
            ("latency (s)", "not computed", "quoted", CARD_TABLE_CONDITIONS),
        ):
            rows.append((quantity, name, line[quantity], computed, *verdict))
    for name, published in (("KOALA-1B", 54), ("KOALA-700M", 69)):
        exact = 100 * (1 - sizes[name] / sizes["SDXL-Base-1.0"])
        note = f"of parameters, cut to whole percent ({exact:.0f} % when rounded)"
        row = ("reduction", name, f"up to {published} %", f"{exact:.2f} % of 2,567M")
        rows.append((*row, _agrees(int(exact) == published), note))
    frame = pd.DataFrame(rows, columns="quantity system published computed verdict note".split())
    return frame.set_index("quantity").loc[CARD_ROWS].reset_index()


def _agrees(holds: bool) -> str:
    return "holds" if holds else "does not hold"


def _verdict_count(published: str, count: int) -> tuple[str, str]:
    whole = int(published.rstrip("M").replace(",", ""))
    is_cut = count // 10**6 == whole != round(count / 1e6)
    return _agrees(is_cut or round(count / 1e6) == whole), "cut instead of rounded" * is_cut


def _gigabytes(count: int) -> str:
    return "; ".join(
        f"float{8 * size}: {count * size / 1e9:.2f} GB, {count * size / 2**30:.2f} GiB"
        for size in (4, 2)
    )


def _verdict_size(published: str, count: int) -> tuple[str, str]:
    figure = published.removesuffix("GB")
    digits = len(figure.partition(".")[2])
    for size in (4, 2):
        for unit, bytes_ in (("GB", 1e9), ("GiB", 2**30)):
            if f"{count * size / bytes_:.{digits}f}" == figure:
                return "holds", f"float{8 * size} in {unit}"
    if f"{math.ceil(count * 4 / 2**30 * 10**digits) / 10**digits:.{digits}f}" == figure:
        return "holds", "float32 in GiB, rounded up as `ls -lh` does; no file was opened"
    return "does not hold", "neither in float32 nor in float16, in GB or GiB"


def _depths(unet: nn.Module, published: str) -> tuple[str, str]:
    """Return the transformer blocks per pair of each down stage, as the card counts them."""
    depth = blocks(unet).groupby("stage")["transformer_blocks"]
    depths = [int(depth.max()[f"down_blocks.{i}"]) for i in range(len(unet.down_blocks))]
    inside = int(depth.sum().get("mid_block", 0))
    return f"{depths}; mid block {inside}", _agrees(str(depths) == published)
