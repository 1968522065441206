"""Pictures with captions for a distillation: read by Hugging Face datasets, encoded once, kept.

A U-Net sees neither pictures nor words: it trains on latents of the VAE and states of the text
encoders. They are computed once, into shards on disk, so that the training holds neither.
"""

import io
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from diffusers.utils import make_image_grid
from PIL import ImageOps
from PIL.Image import Image
from safetensors import safe_open
from safetensors.torch import save
from tqdm import tqdm

from koala_nb.core.errors import first_line
from koala_nb.core.files import read_json, write_atomic, write_json
from koala_nb.distillation.loop import random_draws
from koala_nb.distillation.similarity import scaled
from koala_nb.models.load import Pipeline, model_info

SHARD = 64  # pictures
CAPTIONS = ("text", "caption", "prompt", "txt", "description")
PICTURES = ("image", "jpg", "jpeg", "png", "webp")
HELD_OUT = 64  # pictures at most, and a tenth of all: never trained on
DROPPED = 0.1  # of the captions in training: what guidance needs
READ_WITH = {".parquet": "parquet", ".tar": "webdataset"}  # any other folder: an image folder


def read_pairs(source: str | Path) -> Iterator[tuple[Image, str]]:
    """Read (picture, caption) one by one from a folder or a dataset on the hub, never all at once.

    A folder holds Parquet files, WebDataset archives (.tar), or pictures with a `metadata.csv` or
    `.jsonl` that has the columns `file_name` and `text`. ValueError for a folder without pictures,
    columns that are not there, and a row that cannot be read.
    """
    import datasets

    path, folder = str(source), None
    if Path(source).is_dir():
        suffixes = sorted({f.suffix for f in Path(source).rglob("*")} & READ_WITH.keys())
        path, folder = (READ_WITH[suffixes[0]] if suffixes else "imagefolder"), path
    elif path.count("/") != 1 or path.startswith((".", "/")):
        raise ValueError(f"There is no folder {source}, and it is not a dataset id owner/name.")
    try:
        rows = datasets.load_dataset(path, data_dir=folder, split="train", streaming=True)
        first = next(iter(rows), None)
    except Exception as error:  # datasets raises many kinds for what it cannot open
        raise ValueError(f"{source} cannot be read as a dataset: {first_line(error)}.") from None
    if first is None:
        raise ValueError(f"{source} holds no pictures: give a folder or dataset with some.")
    for names in (PICTURES, CAPTIONS):
        if not first.keys() & set(names):
            raise ValueError(
                f"{source} has the columns {', '.join(first)}: one of {', '.join(names)} is needed."
            )
    image, text = (next(n for n in names if n in first) for names in (PICTURES, CAPTIONS))
    return _checked(iter(rows), image, text, source)


def _checked(
    rows: Iterator[dict], image: str, text: str, source: str | Path
) -> Iterator[tuple[Image, str]]:
    for number in count():
        try:
            if (row := next(rows, None)) is None:
                return
            picture, caption = row[image].convert("RGB"), row[text]
        except Exception as error:
            raise ValueError(
                f"Row {number} of {source} cannot be read ({error}): repair or remove it."
            ) from None
        if not isinstance(caption, str):
            raise ValueError(f"Row {number} of {source}: its {text} is no text: {caption!r}.")
        yield picture, caption


def fit(picture: Image, size: int) -> tuple[torch.Tensor, list[int]]:
    """Return a picture's middle square, (3, size, size) in -1..1, and SDXL's six time ids.

    Time ids: original height and width, top and left of the crop, target height and width (SDXL,
    arXiv 2307.01952, section 2.2).
    """
    scale = size / min(picture.size)
    top, left = (round((side * scale - size) / 2) for side in (picture.height, picture.width))
    ids = [picture.height, picture.width, top, left, size, size]
    pixels = np.asarray(ImageOps.fit(picture, (size, size)), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1, ids


@torch.no_grad()
def encode(pipe: Pipeline, pairs: Sequence[tuple[Image, str]], size: int) -> dict:
    """Encode pairs as tensors in half precision: mean, std (of latents), states, pooled, ids."""
    fitted = [fit(picture, size) for picture, _ in pairs]
    vae, device = pipe.vae, pipe._execution_device
    images = torch.stack([pixels for pixels, _ in fitted]).to(device, vae.dtype)
    posterior = vae.encode(images).latent_dist
    states, _, pooled, _ = pipe.encode_prompt(
        [caption for _, caption in pairs], device=device, do_classifier_free_guidance=False
    )
    spread = scaled(vae, posterior.std) - scaled(vae, torch.zeros_like(posterior.std))
    values = {"mean": scaled(vae, posterior.mean), "std": spread}
    values |= {"states": states, "pooled": pooled}
    halves = {name: value.to("cpu", torch.float16).contiguous() for name, value in values.items()}
    return {**halves, "ids": torch.tensor([ids for _, ids in fitted], dtype=torch.int32)}


def prepare(
    pipe: Pipeline, source: str | Path, folder: Path, size: int, limit: int | None = None
) -> "Cache":
    """Encode a dataset, resumable; ValueError as of `read_pairs`, or for another's `folder`."""
    info = model_info(pipe)
    settings = {"source": str(source), "size": size, "limit": limit, "revision": info.revision}
    settings |= {"model": info.source}
    if (folder / "settings.json").is_file():
        there = read_json(folder / "settings.json")
        if there != settings:
            raise ValueError(f"{folder} was encoded with other settings ({there}): name another.")
    if (folder / "finished.json").is_file():
        return Cache(folder)
    pairs = islice(read_pairs(source), limit)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "settings.json", settings)
    done, read = len(list(folder.glob("*.safetensors"))), 0
    precision = pipe.vae.dtype
    pipe.vae.float()  # SDXL's overflows in float16
    with tqdm(unit="picture", desc="encode") as bar:
        while shard := list(islice(pairs, SHARD)):
            if read // SHARD >= done:
                parts = [encode(pipe, shard[i : i + 4], size) for i in range(0, len(shard), 4)]
                joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
                write_atomic(folder / f"{read // SHARD:06d}.safetensors", save(joined))
            read += len(shard)
            bar.update(len(shard))
    pipe.vae.to(precision)
    write_json(folder / "finished.json", {"pictures": read})
    return Cache(folder)


class Cache:
    """The encoded pictures of a folder; a batch is a function of its number alone."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.glob("*.safetensors"))
        whole = read_json(folder / "finished.json")["pictures"]
        self.kept = range(whole - min(HELD_OUT, whole // 10), whole)
        self.count = self.kept.start

    def __call__(self, number: int, size: int) -> dict[str, torch.Tensor]:
        """Return the batch with that number; every epoch has an order of its own.

        latents (n, c, h, w), noise alike, states (n, tokens, d), pooled (n, p), ids (n, 6), and
        time (n,) in 0..1. A tenth of the captions is dropped to zeros.
        """
        first = number * size
        return self.batch([self.index(first + i) for i in range(size)], first, DROPPED)

    def held_out(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the batches, of up to eight, of the pictures that are kept out of training."""
        for first in range(0, len(self.kept), 8):
            yield self.batch(list(self.kept[first : first + 8]), first, 0.0)

    def batch(self, indices: list[int], first: int, dropped: float) -> dict[str, torch.Tensor]:
        """Return the batch of some pictures, with the random numbers of samples `first` onwards."""
        rows = [self.row(index) for index in indices]
        batch = {name: torch.stack([row[name] for row in rows]).float() for name in rows[0]}
        uniform, noise, spread = random_draws(first, len(rows), tuple(batch["mean"].shape[1:]))
        kept = (uniform[:, 0] >= dropped).float()
        return {
            "latents": batch["mean"] + batch["std"] * spread,
            "noise": noise,
            "states": batch["states"] * kept[:, None, None],
            "pooled": batch["pooled"] * kept[:, None],
            "ids": batch["ids"],
            "time": uniform[:, 1],
        }

    def index(self, sample: int) -> int:
        """Return which picture the training sees as its `sample`-th."""
        epoch, place = divmod(sample, self.count)
        return int(_order(epoch, self.count)[place])

    def row(self, index: int) -> dict[str, torch.Tensor]:
        """Return one encoded picture, read from its shard."""
        with safe_open(self.files[index // SHARD], "pt") as shard:
            return {name: shard.get_slice(name)[index % SHARD] for name in shard.keys()}  # noqa: SIM118


@lru_cache(maxsize=2)
def _order(epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng(epoch).permutation(count)


def picture_sheet(images: Sequence[Image], columns: int) -> bytes:
    """Return pictures of one size as one PNG, `columns` a row; every row is full."""
    sheet = make_image_grid(list(images), len(images) // columns, columns)
    sheet.save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()
