"""Training scenes drawn and encoded once: latents and token ids of captions, in shards on disk.

Drawing and encoding a scene costs a third of a training step on a CPU, and every stage reads the
same scenes. A shard is a pure function of its number; processes and machines may share the work.
"""

import os
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tqdm.auto import tqdm
from transformers import CLIPTokenizer

from koala_nb.distillation.similarity import scaled
from koala_nb.nano.curriculum import LAYOUT, Curriculum
from koala_nb.nano.presets import Preset
from koala_nb.nano.render import Renderer
from koala_nb.nano.world import HELD_OUT_SEEDS

SHARD = 4096  # scenes
HELD_OUT = 2048  # scenes
VARIANTS = 4  # captions of a scene, in other words each


def shard_path(folder: Path, number: int, held_out: bool = False) -> Path:
    """Return where a shard lies."""
    return folder / f"{'held-out' if held_out else 'scenes'}-{number:04d}.safetensors"


class Encoder:
    """Draw, encode and tell scenes; `device` is the autoencoder's."""

    def __init__(self, preset: Preset, tokenizer: Tokenizer, vae: AutoencoderKL) -> None:
        self.curriculum = Curriculum(preset.n_objects)
        self.tokenizer, self.length = tokenizer, preset.max_length
        self.vae = vae.to(memory_format=torch.channels_last).requires_grad_(False).eval()
        things = [t for t in self.curriculum.world.things() if t.kind != "sign"]
        self.render = Renderer(preset.image_size, things, str(vae.device))

    @torch.no_grad()
    def __call__(self, first: int, size: int, batch: int = 64) -> dict[str, torch.Tensor]:
        """Return the scenes of seeds `first` onwards.

        latents (n, 4, h, w) float16 as the U-Net sees them, ids (n, VARIANTS, tokens) int16 and
        layout (n,) bool: whether places decide the scene.
        """
        latents, ids, layout = [], [], []
        for begin in range(first, first + size, batch):
            seeds = range(begin, min(begin + batch, first + size))
            scenes = [self.curriculum.scene(seed) for seed in seeds]
            with torch.autocast(self.vae.device.type, torch.bfloat16):
                posterior = self.vae.encode(self.render(scenes)).latent_dist
            latents.append(scaled(self.vae, posterior.mean.float()).half().cpu())
            texts = [s.caption for s in scenes]
            for variant in range(1, VARIANTS):
                rngs = (np.random.default_rng([seed, 10 + variant]) for seed in seeds)
                texts += [
                    self.curriculum.phrasing.caption(s, rng)[0] for s, rng in zip(scenes, rngs)
                ]
            tokens = tokens_of(self.tokenizer, texts, self.length).view(VARIANTS, len(seeds), -1)
            ids.append(tokens.transpose(0, 1).short())
            layout.append(torch.tensor([s.kind in LAYOUT for s in scenes]))
        return {
            "latents": torch.cat(latents).contiguous(),
            "ids": torch.cat(ids).contiguous(),
            "layout": torch.cat(layout),
        }


def tokens_of(tokenizer: Tokenizer, texts: list[str], length: int) -> torch.Tensor:
    """Return token ids, (n, length) int64, padded and cut as the pipeline does."""
    return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(texts)])[:, :length]


def padded(tokenizer: CLIPTokenizer, length: int) -> Tokenizer:
    """Return a tokenizer's fast backend, padding and cutting to `length`."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.enable_truncation(length)
    backend.enable_padding(
        length=length, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token
    )
    return backend


def encode_scenes(
    encoder: Encoder, folder: Path, shards: range, rank: int = 0, of: int = 1
) -> None:
    """Write the shards that are missing; of several processes each takes every `of`-th."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [shard_path(folder, k) for k in shards]
    for k in tqdm(range(rank, len(wanted), of), desc="scenes encoded", disable=rank > 0):
        if wanted[k].is_file():
            continue
        arrays = encoder(HELD_OUT_SEEDS.stop + shards[k] * SHARD, SHARD)
        temporary = wanted[k].with_suffix(f".{os.getpid()}")
        save_file(arrays, temporary)
        temporary.replace(wanted[k])
    if rank == 0 and not shard_path(folder, 0, held_out=True).is_file():
        save_file(encoder(HELD_OUT_SEEDS.start, HELD_OUT), shard_path(folder, 0, held_out=True))


def read_scenes(folder: Path, held_out: bool = False) -> dict[str, torch.Tensor]:
    """Return all shards of a folder as one; FileNotFoundError where there is none."""
    paths = sorted(folder.glob("held-out-*" if held_out else "scenes-*"))
    paths = [path for path in paths if path.suffix == ".safetensors"]
    if not paths:
        raise FileNotFoundError(f"No scenes in {folder}: run `koala-nb train --stage latents`.")
    parts = [load_file(path) for path in paths]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
