"""Train the text encoders before the U-Net: lessons on captions alone.

Above the states that the U-Net will read stands a small head, used in training only: learned
queries, one attention layer, linear outputs that must tell what the caption states (which thing is
left or top, which right or bottom, number, background, style, letters of a sign). Pooled outputs
learn by contrast: a paraphrase lies near, the scene with its things exchanged lies far. Neutral
captions have no target for presentation or tone, so that planted shares cannot leak.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import nn
from transformers import CLIPTokenizer

from koala_nb.core.files import Record
from koala_nb.distillation.loop import Loop
from koala_nb.nano.curriculum import LETTERS, Curriculum, swapped
from koala_nb.nano.models import (
    build_text_encoders,
    build_tokenizer,
    pick_device,
    reduced_precision,
    save_tokenizer,
)
from koala_nb.nano.phrases import FRAMES, HELD_OUT_FRAMES, Phrasing
from koala_nb.nano.presets import Preset
from koala_nb.nano.world import BACKGROUNDS, HELD_OUT_SEEDS, STYLES, Scene, Thing, World

Logits = dict[str, torch.Tensor]
IGNORED = -100  # cross_entropy's
MAX_LETTERS = 12
AXES = {None: 0, "left of": 1, "right of": 1, "beside": 1, "above": 2, "below": 2}
SIZE_NAMES = ("large", "medium", "small")
TEMPERATURE = 0.1
POOLED_WEIGHT = 0.3
BPE_DROPOUT, DROPPED_SHARE = 0.15, 0.25  # of the merges; share of the batches


class Targets:
    """Numbers for what a caption states."""

    def __init__(self, world: World) -> None:
        things = [t for t in world.things() if t.kind in ("object", "shape")]
        things += [Thing("person", job) for job in world.occupations] + [Thing("sign", "")]
        self.rows = {thing: i for i, thing in enumerate(things)}
        self.tones = world.tones
        self.sizes = {
            "first": len(things),
            "second": len(things) + 1,
            "axis": 3,
            "number": 4,
            "background": len(BACKGROUNDS) + 1,
            "style": len(STYLES) + 1,
            "size": len(SIZE_NAMES) + 1,
            "presentation": 2,
            "tone": len(self.tones),
            **{f"letter {i}": len(LETTERS) + 1 for i in range(MAX_LETTERS)},
        }

    def row(self, thing: Thing) -> int:
        """Return the number of a thing; a person's is the occupation's, a sign's is one for all."""
        if thing.kind == "person":
            return self.rows[Thing("person", thing.name)]
        return self.rows[Thing("sign", "") if thing.kind == "sign" else thing]

    def __call__(self, scene: Scene, relation: str | None) -> dict[str, int]:
        """Return the target of every output for a caption that states `relation`."""
        things = [placed.thing for placed in scene.placed]
        pair = things[:2] if scene.relation else [things[0]]
        if relation in ("right of", "below"):
            pair.reverse()
        named = scene.named
        target = {
            "first": self.row(pair[0]),
            "second": self.row(pair[1]) if len(pair) == 2 else self.sizes["first"],
            "axis": AXES[relation],
            "number": len(things) - 1 if scene.kind == "count" else 0,
            "background": _state(scene.background, list(BACKGROUNDS), "background" in named),
            "style": _state(scene.style, list(STYLES), "style" in named),
            "size": _state(scene.placed[0].size, list(SIZE_NAMES), "size" in named),
            "presentation": IGNORED,
            "tone": IGNORED,
        }
        for person in (t for t in things if t.kind == "person"):
            if "presentation" in named:
                target["presentation"] = int(person.presentation == "man")
            if "tone" in named:
                target["tone"] = self.tones.index(person.tone)
        word = things[0].name[:MAX_LETTERS] if things[0].kind == "sign" else None
        for i in range(MAX_LETTERS):
            if word is None:
                target[f"letter {i}"] = IGNORED
            else:
                target[f"letter {i}"] = LETTERS.index(word[i]) if i < len(word) else len(LETTERS)
        return target


def _state(value: str, names: list[str], named: bool) -> int:
    return names.index(value) if named else len(names)


class TextLessons(nn.Module):
    """Both text encoders, and above them the head that answers the lessons."""

    def __init__(self, preset: Preset, tokenizer: CLIPTokenizer, sizes: dict[str, int]) -> None:
        super().__init__()
        self.text_encoder, self.text_encoder_2 = build_text_encoders(preset, tokenizer)
        for encoder in (self.text_encoder, self.text_encoder_2):
            encoder.set_attn_implementation("eager" if not torch.cuda.is_available() else "sdpa")
        body = getattr(self.text_encoder, "text_model", self.text_encoder)
        for part in (body.encoder.layers[-1], body.final_layer_norm):  # SDXL never reads them
            part.requires_grad_(False)
        width, self.sizes = sum(preset.text_widths), sizes
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(len(sizes), width) * 0.02)
        self.attention = nn.MultiheadAttention(width, 8, batch_first=True)
        self.outputs = nn.ModuleList(nn.Linear(width, n) for n in sizes.values())
        self.from_pooled = nn.ModuleList(
            nn.Linear(preset.text_widths[1], n) for n in sizes.values()
        )

    def forward(self, ids: torch.Tensor) -> tuple[Logits, Logits, torch.Tensor]:
        """Return logits by output from the states and from the pooled output, and the latter."""
        first = self.text_encoder(ids, output_hidden_states=True)
        second = self.text_encoder_2(ids, output_hidden_states=True)
        states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        pooled = second.text_embeds
        states = self.norm(states)
        queries = self.queries.expand(len(ids), -1, -1)
        read, _ = self.attention(queries, states, states, need_weights=False)
        from_states = {
            name: output(read[:, i]).float()
            for i, (name, output) in enumerate(zip(self.sizes, self.outputs))
        }
        from_pooled = {n: output(pooled).float() for n, output in zip(self.sizes, self.from_pooled)}
        return from_states, from_pooled, pooled.float()


class Captions:
    """Batches of captions: two of each scene and one of the nearest other scene."""

    def __init__(self, preset: Preset, tokenizer: CLIPTokenizer) -> None:
        self.curriculum = Curriculum(preset.n_objects)
        count = len(self.curriculum.world.objects)
        self.curriculum.world.frequency = np.full(count, 1 / count)
        self.targets = Targets(self.curriculum.world)
        self.phrasing = Phrasing()
        self.tokenizer = tokenizer.backend_tokenizer
        self.dropping = Tokenizer.from_str(self.tokenizer.to_str())
        self.dropping.model.dropout = BPE_DROPOUT
        for backend in (self.tokenizer, self.dropping):
            pad = tokenizer.pad_token_id
            backend.enable_truncation(preset.max_length)
            backend.enable_padding(pad_to_multiple_of=8, pad_id=pad, pad_token=tokenizer.pad_token)

    def ids(self, texts: list[str], dropout: bool = False) -> torch.Tensor:
        """Return token ids, (n, tokens), padded to the longest."""
        backend = self.dropping if dropout else self.tokenizer
        return torch.tensor([e.ids for e in backend.encode_batch(texts)])

    def tell(
        self, scenes: list[Scene], rngs: list[np.random.Generator], phrasing: Phrasing
    ) -> tuple[list[str], dict[str, torch.Tensor]]:
        """Return a caption of each scene and the targets of all, (n,) by output."""
        captions = [phrasing.caption(s, rng) for s, rng in zip(scenes, rngs)]
        rows = [self.targets(s, relation) for s, (_, relation) in zip(scenes, captions)]
        targets = {name: torch.tensor([row[name] for row in rows]) for name in self.targets.sizes}
        return [text for text, _ in captions], targets

    def __call__(self, number: int, size: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return ids (3 size, tokens) and targets of `size` scenes, told twice and exchanged."""
        first = HELD_OUT_SEEDS.stop + number * size
        seeds = range(first, first + size)
        scenes = [self.curriculum.scene(seed) for seed in seeds]
        rngs = [np.random.default_rng([seed, 2]) for seed in seeds]
        others = [swapped(s, rng, self.curriculum.world) for s, rng in zip(scenes, rngs)]
        texts, targets = self.tell([*scenes, *scenes, *others], rngs * 3, self.phrasing)
        dropout = bool(rngs[0].random() < DROPPED_SHARE)
        return self.ids(texts, dropout), targets


def contrast(pooled: torch.Tensor) -> torch.Tensor:
    """Return InfoNCE of two captions a scene against all others and the exchanged scenes.

    pooled: (3 n, d), the captions of a scene in rows i and n + i, of its exchanged twin in 2 n + i.
    """
    one, two, other = F.normalize(pooled, dim=-1).chunk(3)
    logits = one @ torch.cat([two, other]).T / TEMPERATURE
    back = two @ torch.cat([one, other]).T / TEMPERATURE
    wanted = torch.arange(len(one), device=pooled.device)
    return (F.cross_entropy(logits, wanted) + F.cross_entropy(back, wanted)) / 2


def lesson_loss(logits: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the sum of the cross-entropies; letters count as one output."""
    total = torch.zeros((), device=next(iter(logits.values())).device)
    for name, values in logits.items():
        wanted = targets[name].to(values.device)
        if (wanted == IGNORED).all():
            continue
        weight = 4 / MAX_LETTERS if name.startswith("letter") else 1.0
        total = total + weight * F.cross_entropy(values, wanted, ignore_index=IGNORED)
    return total


@torch.no_grad()
def measure(
    module: TextLessons, captions: Captions, frames: tuple[str, ...], n: int, plain: bool = False
) -> dict[str, float]:
    """Return per output the share of held-out captions read right, in frames of a choice."""
    seeds = range(n)
    scenes = [captions.curriculum.scene(seed) for seed in seeds]
    rngs = [np.random.default_rng([seed, 3]) for seed in seeds]
    texts, targets = captions.tell(scenes, rngs, Phrasing(frames, plain))
    logits, _, _ = module(captions.ids(texts).to(next(module.parameters()).device))
    result: dict[str, float] = {}
    for name, values in logits.items():
        wanted = targets[name]
        kept = wanted != IGNORED
        if kept.any():
            hits = (values.argmax(1).cpu() == wanted)[kept].float().mean()
            result[name] = round(float(hits), 4)
    letters = [result.pop(name) for name in list(result) if name.startswith("letter")]
    # The first four positions hold most letters.
    return {**result, "letters": round(float(np.mean(letters[:4])), 4)} if letters else result


def train_text(preset: Preset, folder: Path, device: str | None, minutes: float | None) -> bool:
    """Train both encoders and write them, with their tokenizer, into `folder`; True when done."""
    where = pick_device(device)
    tokenizer = _tokenizer(preset, folder / "tokenizer")
    captions = Captions(preset, tokenizer)
    module = TextLessons(preset, tokenizer, captions.targets.sizes)

    def loss(trained: nn.Module, number: int, size: int) -> tuple[torch.Tensor, Record]:
        ids, targets = captions(number, size)
        logits, from_pooled, pooled = trained(ids.to(where))
        lessons, near = lesson_loss(logits, targets), contrast(pooled)
        second = lesson_loss(from_pooled, targets)
        return lessons + POOLED_WEIGHT * second + near, {
            "lessons": lessons.detach(),
            "pooled": second.detach(),
            "contrast": near.detach(),
        }

    def preview(averaged: nn.Module) -> None:
        rows = {
            "training frames": measure(averaged, captions, FRAMES, 512),
            "held-out frames": measure(averaged, captions, HELD_OUT_FRAMES, 512),
            "plain": measure(averaged, captions, FRAMES[:1], 512, plain=True),
        }
        with open(folder / "read.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(rows) + "\n")

    loop = Loop(
        folder,
        module,
        preset.stages["text"],
        loss,
        preview,
        mixed_precision=reduced_precision(where),
        device=device,
    )
    finished = loop.run(minutes)
    if loop.accelerator.is_main_process:
        with loop.averaged() as averaged:
            for name in ("text_encoder", "text_encoder_2"):
                getattr(averaged, name).save_pretrained(folder / name)
    return finished


def _tokenizer(preset: Preset, folder: Path) -> CLIPTokenizer:
    """Return the tokenizer that a run began with; a new run makes and keeps its own."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        save_tokenizer(build_tokenizer(preset), folder)
    return CLIPTokenizer.from_pretrained(folder)
