"""Train `nano-clip`: a CLIP model of the balanced world that shares nothing with the family.

Contrastive over banks: for each attribute of an image, the softmax runs over the texts of all its
possible values, so that every step has every negative.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from koala_nb.core.catalog import data_folder
from koala_nb.core.files import write_json
from koala_nb.distillation.loop import Loop
from koala_nb.distillation.similarity import scaled
from koala_nb.nano.models import build_tokenizer, pick_device, reduced_precision, save_tokenizer
from koala_nb.nano.presets import Preset, training_record
from koala_nb.nano.render import Renderer
from koala_nb.nano.train_vae import denormalise, latest_vae
from koala_nb.nano.world import BACKGROUNDS, COUNTS, HELD_OUT_SEEDS, STYLES, Scene, Thing, World

LATENT_NOISE = 0.3  # of the latents' deviation, at most
COUNT_WORDS = ("one", *COUNTS.values())


def thing_text(thing: Thing) -> str:
    """Return the text under which the scorer knows a thing."""
    if thing.kind == "sign":
        return "a sign with a word"
    return f"a {thing.color} {thing.name}" if thing.color else f"a {thing.name}"


PLACES = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}
LAYOUTS = ("one thing", "two things side by side", "one thing above another", "several alike")


def text_bank(world: World) -> dict[str, list[str]]:
    """Return the texts of every attribute's possible values."""
    things = dict.fromkeys(thing_text(thing) for thing in world.things())
    placed = [text for text in things if text != "a sign with a word"]
    return {
        **{place: [f"{text} {where}" for text in placed] for place, where in PLACES.items()},
        "layout": list(LAYOUTS),
        "thing": list(things),
        "background": [f"{color} background" for color in BACKGROUNDS],
        "style": [f"{style} style" for style in STYLES],
        "presentation": ["a woman", "a man"],
        "tone": [f"{tone} skin" for tone in world.tones],
        "count": [f"{word} of them" for word in COUNT_WORDS],
    }


def targets(scenes: list[Scene], world: World, bank: dict[str, list[str]]) -> dict:
    """Return per attribute a distribution over its bank, (n, values); zero rows do not apply."""
    shares = {name: torch.zeros(len(scenes), len(texts)) for name, texts in bank.items()}
    where = {text: i for i, text in enumerate(bank["thing"])}
    for row, scene in enumerate(scenes):
        things = [placed.thing for placed in scene.placed]
        for thing in things:
            shares["thing"][row, where[thing_text(thing)]] += 1 / len(things)
            if thing.kind == "person":
                tone = world.tones.index(thing.tone)
                shares["presentation"][row, int(thing.presentation == "man")] = 1
                shares["tone"][row, tone] = 1
        if scene.relation:
            for place, thing in zip(places_of(scene.relation), things, strict=True):
                shares[place][row, bank[place].index(f"{thing_text(thing)} {PLACES[place]}")] = 1
        shares["layout"][row, layout_of(scene)] = 1
        shares["background"][row, list(BACKGROUNDS).index(scene.background)] = 1
        shares["style"][row, STYLES.index(scene.style)] = 1
        if scene.kind in ("count", "object"):
            shares["count"][row, len(things) - 1] = 1
    return shares


def places_of(relation: str) -> tuple[str, str]:
    """Return the places of the first and of the second thing of a relation."""
    ends = ("left", "right") if relation.endswith("of") else ("top", "bottom")
    return ends if relation in ("left of", "above") else ends[::-1]


def layout_of(scene: Scene) -> int:
    """Return which of LAYOUTS a scene has."""
    if scene.relation:
        return 1 if scene.relation.endswith("of") else 2
    return 3 if len(scene.placed) > 1 else 0


class Scorer(nn.Module):
    """A CLIP model with the tokens of its text bank."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer(preset)
        self.world = World(preset.n_objects, balanced=True)
        self.bank = text_bank(self.world)
        self.clip = build_clip(preset, self.tokenizer)
        texts = [text for texts in self.bank.values() for text in texts]
        ids = self.tokenizer(texts, padding=True, return_tensors="pt").input_ids
        self.register_buffer("ids", ids, persistent=False)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the logits of every attribute, (n, values)."""
        image_features = F.normalize(
            pooled(self.clip.get_image_features(pixel_values=images)), dim=-1
        )
        read = F.normalize(pooled(self.clip.get_text_features(input_ids=self.ids)), dim=-1)
        logits = self.clip.logit_scale.exp() * image_features @ read.T
        sizes = [len(texts) for texts in self.bank.values()]
        return dict(zip(self.bank, logits.split(sizes, dim=1), strict=True))


def pooled(output: Any) -> torch.Tensor:
    """Return the projected features; transformers 5 wraps them, older versions do not."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def build_clip(preset: Preset, tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return a randomly initialised CLIP model of the preset's size."""
    size = preset.clip
    body = {
        "hidden_size": size["width"],
        "intermediate_size": 4 * size["width"],
        "num_attention_heads": size["heads"],
        "projection_dim": size["width"],
    }
    vision = {
        **body,
        "num_hidden_layers": size["layers"],
        "image_size": preset.image_size,
        "patch_size": size["patch"],
    }
    text = {
        **body,
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": preset.max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=size["width"])
    return CLIPModel(config)


def degrade(images: torch.Tensor, vae: AutoencoderKL) -> torch.Tensor:
    """Return images of which every second one has passed the autoencoder, with noisy latents.

    Generated images carry a decoder's softness and faults: a scorer must read through them.
    """
    mixed = images.clone()
    with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16):
        latents = scaled(vae, vae.encode(images[::2]).latent_dist.sample().float())
        level = LATENT_NOISE * torch.rand(len(latents), 1, 1, 1, device=images.device)
        noisy = latents + level * torch.randn_like(latents)
        mixed[::2] = vae.decode(denormalise(vae, noisy)).sample.float().clamp(-1, 1)
    return mixed


def train_clip(preset: Preset, folder: Path, device: str | None, minutes: float | None) -> bool:
    """Train the scorer and, when finished, write it to `data/models/nano-clip`."""
    where = pick_device(device)
    module = Scorer(preset)
    if where == "cpu":
        module.clip.set_attn_implementation("eager")  # as in train_unet
    vae = AutoencoderKL.from_pretrained(latest_vae(folder.parent)).to(where)
    vae = vae.to(memory_format=torch.channels_last).requires_grad_(False).eval()
    render = Renderer(preset.image_size, module.world.things(), vae.device)

    def loss(trained: nn.Module, number: int, size: int) -> tuple[torch.Tensor, dict]:
        first = HELD_OUT_SEEDS.stop + number * size
        scenes = [module.world.scene(first + i) for i in range(size)]
        logits = trained(degrade(render(scenes), vae))
        total, hits = torch.zeros((), device=where), {}
        for name, wanted in targets(scenes, module.world, module.bank).items():
            wanted = wanted.to(where)
            there = wanted.sum(1) > 0
            if not there.any():
                continue
            entropy = -(wanted * F.log_softmax(logits[name].float(), dim=1)).sum()
            total = total + entropy / there.sum()
            right = logits[name].argmax(1) == wanted.argmax(1)
            single = there & (wanted.max(1).values > 0.9)
            if single.any():
                hits[name] = right[single].float().mean()
        return total, hits

    loop = Loop(
        folder,
        module,
        preset.stages["clip"],
        loss,
        mixed_precision=reduced_precision(where),
        device=device,
    )
    finished = loop.run(minutes)
    if loop.accelerator.is_main_process:
        target = data_folder() / "models" / "nano-clip" if finished else folder / "nano-clip"
        with loop.averaged() as averaged:
            save_scorer(averaged, preset, target)
    return finished


def save_scorer(module: Scorer, preset: Preset, folder: Path) -> None:
    """Write an ordinary transformers folder: model, tokenizer and image processor."""
    from transformers import CLIPImageProcessor

    module.clip.save_pretrained(folder)
    save_tokenizer(module.tokenizer, folder)
    side = {"height": preset.image_size, "width": preset.image_size}
    CLIPImageProcessor(
        size=side, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    write_json(folder / "bank.json", module.bank)
    write_json(folder / "training.json", training_record(preset, "clip"))
