"""Read captured attention: maps of layers, heads, steps and words, as arrays with named axes."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from diffusers.loaders import TextualInversionLoaderMixin
from safetensors.numpy import save
from scipy.cluster.vq import kmeans2
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from koala_nb.attention.buffers import Batch, matches_prefix
from koala_nb.core.errors import nearest
from koala_nb.core.files import write_atomic

AXES = ("image", "guidance branch", "step", "head", "row", "column", "token")
UNITS = "share of a position's attention, 0 to 1; logits: before the softmax; mean over merged axes"
MARKS = ("[start]", "[end]", "[padding]")


@dataclass(frozen=True)
class Word:
    """A word of a prompt and the tokens that spell it."""

    text: str
    tokens: tuple[int, ...]


def words_of(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[Word]:
    """Return a prompt's words with the positions of their tokens, then the marks around them.

    Subwords are merged; punctuation is a word, and so is what a textual inversion added, with all
    its vectors. ValueError for a prompt that is longer than the text encoder reads.
    """
    limit = tokenizer.model_max_length
    prompt = TextualInversionLoaderMixin().maybe_convert_prompt(prompt, tokenizer)
    ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
    if len(ids) > limit:
        raise ValueError(
            f"The prompt has {len(ids)} tokens and the text encoder reads {limit}: shorten it."
        )
    words: list[Word] = []
    tokens: list[int] = []
    added = tokenizer.get_added_vocab()
    spelling = [*tokenizer.convert_ids_to_tokens(ids[1:-1]), None]
    for position, (spelled, following) in enumerate(pairwise(spelling), start=1):
        tokens.append(position)
        vector = re.fullmatch(r"(.+)_\d+", str(following)) if following in added else None
        if spelled in added and vector and vector[1] == re.sub(r"_\d+$", "", spelled):
            continue  # a further vector of the same word
        if spelled.endswith("</w>") or spelled in added or following in {*added, None}:
            spelling_it = tokens[:1] if spelled in added else tokens
            text = tokenizer.decode([ids[token] for token in spelling_it])
            words.append(Word(text.strip(), tuple(tokens)))
            tokens = []
    end = len(ids) - 1
    spans = ((0,), (end,), tuple(range(end + 1, limit)))
    return words + [Word(m, span) for m, span in zip(MARKS, spans, strict=True) if span]


class WordMaps:
    """The maps of a prompt's words: `maps["koala"]`, or `maps["koala", 2]` for the second one.

    `array`: (words, rows, columns), sums over tokens; with the marks they add up to 1 everywhere.
    """

    def __init__(self, words: list[Word], maps: np.ndarray) -> None:
        self.words = words
        self.array = np.stack([maps[..., list(word.tokens)].sum(-1) for word in words])

    @property
    def texts(self) -> list[str]:
        """The words as written, the marks last."""
        return [word.text for word in self.words]

    def __getitem__(self, key: str | tuple[str, int]) -> np.ndarray:
        """Return the map of a word or phrase, (rows, columns). ValueError where it is not there."""
        phrase, occurrence = (key, 1) if isinstance(key, str) else key
        return self.array[_find_phrase(self.texts, phrase, occurrence)].sum(0)


def tokens_of(
    tokenizer: PreTrainedTokenizerBase, prompt: str, phrase: str, occurrence: int = 1
) -> tuple[int, ...]:
    """Return where a phrase's tokens stand in a prompt, 0 the start's; ValueError for none."""
    words = words_of(tokenizer, prompt)
    place = _find_phrase([word.text for word in words], phrase, occurrence)
    return tuple(token for word in words[place] for token in word.tokens)


def _find_phrase(texts: list[str], phrase: str, occurrence: int) -> slice:
    if isinstance(occurrence, bool) or not isinstance(occurrence, int) or occurrence < 1:
        raise ValueError(f"{phrase!r}, {occurrence!r}: occurrences are 1 (the first), 2, ...")
    parts = phrase.lower().split()
    starts = [i for i in range(len(texts)) if texts[i : i + len(parts)] == parts]
    if not parts or len(starts) < occurrence:
        hint = nearest(phrase, texts) or f" It has: {', '.join(texts)}."
        times = "" if occurrence == 1 else f" {occurrence} times"
        raise ValueError(f"{phrase!r} is not in the prompt{times}.{hint}")
    first = starts[occurrence - 1]
    return slice(first, first + len(parts))


class Attention:
    """What was captured, image by image in the order of drawing."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, batches: list[Batch]) -> None:
        self.tokenizer, self.batches = tokenizer, batches

    @property
    def images(self) -> int:
        """The number of images."""
        return sum(batch.size[0] for batch in self.batches)

    def steps(self, image: int = 0) -> int:
        """Return the number of steps kept apart; 1 where only their mean was kept."""
        batch = self._find(image, None)[0]
        return batch.passes if "step" in batch.keep_axes else 1

    def layers(self, channel: str = "cross") -> list[str]:
        """Return the names of layers, or of resolutions where layers were merged."""
        return list(dict.fromkeys(k for b in self.batches for c, k in b.grids if c == channel))

    def maps(
        self,
        image: int = 0,
        *,
        layers: str | Sequence[str] | None = None,
        head: int | None = None,
        step: int | None = None,
        guidance_branch: str = "conditional",
        channel: str = "cross",
    ) -> np.ndarray:
        """Return one image's maps, (rows, columns, tokens), the mean over what is not chosen.

        layers: names or beginnings of names; layers of several resolutions are enlarged
        (bilinearly) to the finest. channel: "cross", "probe" (the second text), "logits",
        "logits_clip_l", or "self", whose last axis is the cells that are looked at.
        Raises ValueError for what was not kept or does not exist.
        """
        batch, row = self._find(image, guidance_branch)
        places = self._places(batch, channel, layers, step)
        grid = max((batch.grids[place[:2]] for place in places), key=np.prod)
        total, count = torch.zeros(()), 0
        for place in places:
            values = batch.buffers[place][row].float().cpu()  # heads, positions, tokens
            kept = len(values) if "head" in batch.keep_axes else 0
            if head is not None and not 0 <= head < kept:
                raise ValueError(f"head={head}: {kept} heads were kept of {place[1]}.")
            values = values.mean(0) if head is None else values[head]
            total = total + _enlarge(values, batch.grids[place[:2]], grid)
            count += batch.added[place]
        return (total / count).numpy()

    def words(self, prompt: str, image: int = 0, **chosen: Any) -> WordMaps:
        """Return the maps of the words that were drawn (or probed); `chosen` as in `maps`."""
        return WordMaps(words_of(self.tokenizer, prompt), self.maps(image, **chosen))

    def encoder_split(self, prompt: str, image: int = 0, **chosen: Any) -> pd.DataFrame:
        """Return how CLIP-L and CLIP-G share each word's logit; captured with `by_encoder`.

        clip_l + clip_g = logit, the mean over positions and the word's tokens. spread_clip_l: the
        share of the logit's variance over positions, cov(l, logit) / var(logit); 1 less it is G's.
        """
        channels = ("logits", "logits_clip_l")
        both = [self.maps(image, channel=channel, **chosen) for channel in channels]
        rows = []
        for word in words_of(self.tokenizer, prompt):
            logit, part = (v[..., list(word.tokens)].mean(-1).ravel().astype(float) for v in both)
            centred = logit - logit.mean()
            spread = (part * centred).sum() / (centred**2).sum()
            rows.append((word.text, logit.mean(), part.mean(), (logit - part).mean(), spread))
        return pd.DataFrame(rows, columns=["word", "logit", "clip_l", "clip_g", "spread_clip_l"])

    def clusters(self, number: int, image: int = 0, **chosen: Any) -> np.ndarray:
        """Return cells by what they look at (k-means), (rows, columns) of 0 to number - 1."""
        maps = self.maps(image, channel="self", **chosen)
        flat = maps.reshape(-1, maps.shape[-1]).astype(float)
        _, labels = kmeans2(flat, number, minit="++", rng=np.random.default_rng(0))
        return labels.reshape(maps.shape[:2])

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all by "channel/layer", axes `AXES`; ValueError for images of several sizes."""
        if len({(b.size[1:], len(b.branches), b.passes) for b in self.batches}) > 1:
            raise ValueError("Images of several sizes or steps were captured: use maps(image).")
        parts: dict[str, list[np.ndarray]] = {}
        for batch in self.batches:
            for channel, key in batch.grids:
                steps = [
                    buffer / batch.added[place]
                    for place, buffer in batch.buffers.items()
                    if place[:2] == (channel, key)
                ]
                value = torch.stack(steps, 1).float().cpu().numpy()  # rows, steps, heads, ...
                shape = (len(batch.branches), batch.size[0], *value.shape[1:3])
                value = value.reshape(*shape, *batch.grids[channel, key], -1).swapaxes(0, 1)
                parts.setdefault(f"{channel}/{key}", []).append(value)
        return {name: np.concatenate(values) for name, values in parts.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `arrays()` as safetensors, with axes and units in its metadata."""
        metadata = {"axes": json.dumps(AXES), "units": UNITS}
        arrays = {name: np.ascontiguousarray(value) for name, value in self.arrays().items()}
        write_atomic(path, save(arrays, metadata=metadata))

    def _find(self, image: int, branch: str | None) -> tuple[Batch, int]:
        """Return an image's batch and its row in the buffers; None is any guidance branch."""
        number = image
        for batch in self.batches:
            if 0 <= number < batch.size[0]:
                # Without guidance the only branch is the conditional one.
                drawn = ("conditional",) if batch.size[1] == 1 else ("unconditional", "conditional")
                kept = [drawn[row] for row in batch.branches]
                if branch is not None and branch not in kept:
                    raise ValueError(f"The guidance branch {branch!r} was not captured.")
                return batch, kept.index(branch or kept[0]) * batch.size[0] + number
            number -= batch.size[0]
        raise ValueError(f"image={image}: {self.images} images were captured, 0 is the first.")

    def _places(
        self, batch: Batch, channel: str, layers: str | Sequence[str] | None, step: int | None
    ) -> list[tuple[str, str, int]]:
        places = [p for p in batch.buffers if p[0] == channel]
        if not places:
            have = ", ".join(dict.fromkeys(p[0] for p in batch.buffers))
            raise ValueError(f"channel={channel!r} was not captured; these were: {have}.")
        if layers is not None:
            names = ", ".join(dict.fromkeys(p[1] for p in places))
            places = [p for p in places if matches_prefix(p[1], layers)]
            if not places:
                raise ValueError(f"layers={layers!r} were not captured; these were: {names}.")
        if step is not None:
            kept = batch.passes if "step" in batch.keep_axes else 0
            if not 0 <= step < kept:
                raise ValueError(f"step={step}: {kept} steps were kept apart, 0 is the first.")
            places = [p for p in places if p[2] == step]
        return places


def _enlarge(maps: torch.Tensor, grid: tuple[int, int], to: tuple[int, int]) -> torch.Tensor:
    """Turn (positions, tokens) into (rows, columns, tokens) of another grid; sums stay 1."""
    maps = maps.unflatten(0, grid)
    if grid == to:
        return maps
    planes = maps.permute(2, 0, 1)[None]
    return functional.interpolate(planes, to, mode="bilinear")[0].permute(1, 2, 0)
