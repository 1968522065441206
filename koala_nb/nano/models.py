"""The parts of an embedded model, built from a preset with ordinary diffusers classes."""

import copy
import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from koala_nb.core.catalog import SDXL_UNET
from koala_nb.core.files import Record
from koala_nb.nano.presets import SYSTEMS, Preset
from koala_nb.nano.world import World

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
# The card's prompt, its negative prompt and common words of prompts: read in few tokens.
COMMON_WORDS = (
    "a portrait painting of a golden retriever like leonard da vinci worst best low high quality "
    "illustration resolution photo photograph realistic blurry person people man woman child the "
    "and with in at for from one two three beautiful small large bright dark wearing holding "
    "sitting standing riding running street city beach table sky grass water tree"
)


def build_tokenizer(preset: Preset) -> CLIPTokenizer:
    """Return a byte-level CLIP tokenizer that encodes any text.

    Merges are learned from captions of the preset's world, so that each word of the world is one
    token; every byte has a token of its own, also at the end of a word.
    """
    world = World(preset.n_objects)
    if preset.scenes:
        captions, names = _free_corpus(preset, world)
    else:
        captions = [world.scene(seed).caption for seed in range(6000)]
        names = [
            *world.objects,
            *world.words,
            *world.occupations,
            *world.planted["held_out"]["words"],
        ]
    corpus = captions + names * 20 + [COMMON_WORDS] * 50
    layout = CLIPTokenizer()._tokenizer  # CLIP's own normaliser and splitter
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Sequence([layout.normalizer])
    learner.pre_tokenizer = layout.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=preset.vocabulary,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
        min_frequency=2,
    )
    learner.train_from_iterator(corpus, trainer)
    merges = [tuple(m) for m in json.loads(learner.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    tokens += [a.removesuffix("</w>") + b for a, b in merges]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, BOS, EOS]))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=preset.max_length)


def _free_corpus(preset: Preset, world: World) -> tuple[list[str], list[str]]:
    """Return captions and names in free phrasing; no words of signs, so that they fall apart."""
    from koala_nb.nano.curriculum import Curriculum
    from koala_nb.nano.phrases import PHRASES, plural, synonyms

    curriculum = Curriculum(preset.n_objects)
    scenes = (curriculum.scene(seed) for seed in range(8000))
    captions = [scene.caption for scene in scenes if scene.kind != "sign"]
    captions += [form.format(w="") for form in PHRASES["signs"]] * 100
    names = [*world.objects, *world.occupations]
    names += [other for name in names for other in synonyms()[name]]
    return captions, names + [plural(name) for name in names]


def pick_device(device: str | None) -> str:
    """Return the device that trains: the given one, else CUDA where it is, else the CPU."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def reduced_precision(device: str) -> str:
    """Return "bf16" where the device multiplies it faster than float32, else "no"."""
    fast = device.startswith("cuda") or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if fast else "no"


def build_text_encoders(
    preset: Preset, tokenizer: CLIPTokenizer
) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Return the two text encoders, with SDXL's roles: states of both, pooled of the second."""
    configs = [
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=preset.text_layers,
            num_attention_heads=width // 32,
            max_position_embeddings=preset.max_length,
            projection_dim=width,
            # With the defaults, which name CLIP's own vocabulary, all pooled outputs are equal.
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        for width in preset.text_widths
    ]
    return CLIPTextModel(configs[0]), CLIPTextModelWithProjection(configs[1])


def unet_config(preset: Preset, system: str) -> Record:
    """Return the U-Net configuration of an embedded system: SDXL's, with the preset's widths."""
    return {
        **SDXL_UNET,
        "sample_size": preset.latent_size,
        "block_out_channels": preset.widths,
        "cross_attention_dim": sum(preset.text_widths),
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": preset.text_widths[1] + 6 * 32,
        "norm_num_groups": 8,
        "attention_head_dim": [max(1, w // 32) for w in preset.widths],  # SDXL's naming: heads
        **SYSTEMS[system],
    }


def build_unet(preset: Preset, system: str) -> UNet2DConditionModel:
    """Return a randomly initialised U-Net of an embedded system."""
    return UNet2DConditionModel(**unet_config(preset, system))


def build_vae(preset: Preset) -> AutoencoderKL:
    """Return a fully convolutional autoencoder with four channels and four pixels a latent."""
    channels = preset.vae_channels
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=preset.image_size,
        mid_block_add_attention=False,  # trained on crops, used on whole images
        force_upcast=False,
    )


def build_scheduler() -> EulerDiscreteScheduler:
    """Return the scheduler file as KOALA's repositories release it (spacing "leading")."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
        interpolation_type="linear",
        use_karras_sigmas=False,
    )


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write a tokenizer in the files of old and of new transformers."""
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
    merges = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")


def save_pipeline(folder: Path, system: str, parts: Record) -> None:
    """Write an ordinary diffusers folder: U-Net and VAE in float16, text encoders in float32.

    `parts` holds unet, vae, text_encoder, text_encoder_2 and tokenizer, and is left as it is.
    """
    models = {name: copy.deepcopy(p) for name, p in parts.items() if name != "tokenizer"}
    pipe = StableDiffusionXLPipeline(
        vae=models["vae"].to(torch.float16),
        text_encoder=models["text_encoder"].float(),
        text_encoder_2=models["text_encoder_2"].float(),
        tokenizer=parts["tokenizer"],
        tokenizer_2=parts["tokenizer"],
        unet=models["unet"].to(torch.float16),
        scheduler=build_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    for name in ("tokenizer", "tokenizer_2"):
        save_tokenizer(parts["tokenizer"], folder / name)
    vae_config = json.loads((folder / "vae" / "config.json").read_text("utf-8"))
    vae_config.pop("_name_or_path", None)  # a folder of the machine that trained it
    (folder / "vae" / "config.json").write_text(json.dumps(vae_config, indent=2) + "\n", "utf-8")
    identity = {"name": system, "domain": "emoji-world"}
    (folder / "koala_nb.json").write_text(json.dumps(identity) + "\n", "utf-8")
