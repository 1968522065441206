"""Prompts x seeds -> images, each with a complete record."""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from koala_nb.core import files
from koala_nb.generation import fast, run_folder
from koala_nb.generation.decoding import decode
from koala_nb.generation.plan import RECIPE, Plan, Request, default_batch_size, make_plan
from koala_nb.generation.run_folder import Clock, Drawn, Run
from koala_nb.models.load import ModelInfo, model_info

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from koala_nb.models.load import Pipeline


def generate(
    pipe: "Pipeline",
    prompts: str | Sequence[str],
    seeds: Sequence[int] | Sequence[Sequence[int]] = (0,),
    *,
    negative_prompt: str | None = RECIPE,
    steps: int | None = None,
    guidance: float | None = None,
    height: int | None = None,
    width: int | None = None,
    batch_size: int | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    timestep_spacing: str | None = None,
) -> Run:
    """Draw every prompt with every seed, or with its own seeds where `seeds` holds a list a prompt.

    Whatever is not given comes from the recipe in `pipe.model_info`; sizes in pixels. The starting
    noise is float32 from a CPU generator per image, so a seed means the same noise on every
    device, in any batch. With `out` the images go to a folder which the same call resumes after
    an interruption. Raises ValueError for a bad argument or a folder with other settings.
    """
    told = model_info(pipe)
    folder = None if out is None else run_folder.folder_at(out)
    plan = make_plan(pipe, told, locals())
    unread = find_unread(pipe, plan)
    with spacing(pipe, plan.timestep_spacing):
        base = settings_of(pipe, told, plan)
        if folder is None:
            return _run_in_memory(pipe, plan, base, unread, progress)
        return _run_in_folder(pipe, plan, base, unread, folder, progress)


def find_unread(pipe: Any, plan: Plan) -> dict[str, str]:
    """Prompts longer than the text encoder reads -> what it does not; one warning of them all."""
    tokenizer = pipe.tokenizer
    limit = tokenizer.model_max_length
    lost = {}
    for text in dict.fromkeys([r.prompt for r in plan.requests] + [plan.negative_prompt or ""]):
        ids = tokenizer(text, truncation=False, verbose=False).input_ids
        if len(ids) > limit:
            lost[text] = tokenizer.decode(ids[limit - 1 : -1]).strip()
    if lost:
        first = files.short(next(iter(lost.values())))
        more = f" and of {len(lost) - 1} more prompts" if len(lost) > 1 else ""
        warnings.warn(
            f"Longer than the text encoder's {limit} tokens: it does not read {first}{more}.",
            stacklevel=3,
        )
    return lost


def settings_of(pipe: Any, told: ModelInfo, plan: Plan) -> dict[str, Any]:
    """What determines the images, in the order in which a difference is reported."""
    config = pipe.scheduler.config
    return {
        "system": told.name,
        "source": told.source,
        "revision": told.revision,
        "variant": told.variant,
        "domain": told.domain,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "device": str(pipe._execution_device),
        "scheduler": type(pipe.scheduler).__name__,
        "timestep_spacing": config.get("timestep_spacing"),
        "steps": plan.steps,
        "guidance": plan.guidance,
        "negative_prompt": plan.negative_prompt,
        "height": plan.height,
        "width": plan.width,
        "vae_tiling": _tiles(pipe, plan),
    }


def _tiles(pipe: Any, plan: Plan) -> bool:
    """Whether the VAE decodes in tiles at this size, which changes the image a little."""
    latent = max(plan.height, plan.width) // pipe.vae_scale_factor
    return bool(pipe.vae.use_tiling) and latent > pipe.vae.tile_latent_min_size


def _record(
    base: dict[str, Any], unread: dict[str, str], request: Request, how: dict[str, Any]
) -> dict[str, Any]:
    cut = {"prompt_unread": unread[request.prompt]} if request.prompt in unread else {}
    return {
        "file": request.file,
        "prompt_index": request.index,
        "prompt": request.prompt,
        "seed": request.seed,
        **cut,
        **base,
        **how,
        "banner": files.banner(base["domain"]),
        "device_name": files.device_name(base["device"]),
        **files.versions(),
    }


def _run_in_memory(
    pipe: Any, plan: Plan, base: dict[str, Any], unread: dict[str, str], progress: bool
) -> Run:
    images, records = [], []
    clock = Clock()
    with _bar(len(plan.requests), progress) as advance:
        for batch, drawn in _draw(pipe, plan, plan.batches()):
            for request, (image, how) in zip(batch, drawn):
                images.append(image)
                records.append(_record(base, unread, request, how))
            advance(len(batch))
            clock.lap(len(batch))
    return run_folder.memory_run(images, records, clock.drawn())


def _run_in_folder(
    pipe: Any, plan: Plan, base: dict[str, Any], unread: dict[str, str], out: Path, progress: bool
) -> Run:
    device = base["device"].split(":")[0]  # which GPU of several does not matter
    run_folder.open_folder(out, {**base, "device": device}, plan)
    _, drawn = fill(pipe, plan, base, unread, out, progress)
    return run_folder.folder_run(out, run_folder.close_folder(out, plan.requests), drawn)


def fill(
    pipe: Any, plan: Plan, base: dict[str, Any], unread: dict[str, str], out: Path, progress: bool
) -> tuple[dict[Request, dict[str, Any]], Drawn | None]:
    """Draw what is missing of a plan's images into an open run's folder.

    Returns the records of what was missing, and what was drawn for it; None where nothing was.
    """
    todo = run_folder.missing(out, plan.requests)
    run_folder.check_space(out, plan, len(todo))
    for folder in {request.folder for request in todo}:
        (out / folder).mkdir(exist_ok=True)
    # A batch with one image missing is drawn whole, as before, and only the missing is written.
    batches = [batch for batch in plan.batches() if todo.intersection(batch)]
    records = {}
    clock = Clock()
    with _bar(len(todo), progress) as advance, ThreadPoolExecutor(1) as writer:
        writing: list[Future[Any]] = []
        for batch, drawn in _draw(pipe, plan, iter(batches)):
            _finish(writing)  # so that no more than two batches are held
            writing = []
            for request, (image, how) in zip(batch, drawn):
                if request in todo:
                    records[request] = _record(base, unread, request, how)
                    file = out / request.file
                    writing.append(writer.submit(files.save_png, image, file, records[request]))
            advance(len(writing))
            clock.lap(len(batch))
        _finish(writing)
    return records, clock.drawn()


def _finish(writing: "list[Future[Any]]") -> None:
    """Wait until files are written. Raises what went wrong."""
    for file in writing:
        file.result()


@contextmanager
def _bar(total: int, progress: bool) -> Iterator[Callable[[int], Any]]:
    """A bar of images; outside a terminal only for runs of more than a minute."""
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    times = {"delay": 0, "mininterval": 0.5} if terminal else {"delay": 60, "mininterval": 30}
    with tqdm(total=total, unit="image", disable=not progress, **times) as bar:
        yield bar.update


@contextmanager
def spacing(pipe: Any, timestep_spacing: str | None) -> Iterator[None]:
    """Give the pipeline another timestep spacing for a while."""
    before = pipe.scheduler
    if timestep_spacing is not None:
        config = before.config
        pipe.scheduler = type(before).from_config(config, timestep_spacing=timestep_spacing)
    try:
        yield
    finally:
        pipe.scheduler = before


def _draw(
    pipe: Any, plan: Plan, batches: Iterator[tuple[Request, ...]]
) -> Iterator[tuple[tuple[Request, ...], "list[tuple[Image.Image, dict[str, Any]]]"]]:
    """Each batch with its images and how they were decoded; in halves where memory runs out."""

    @lru_cache(maxsize=64)
    def encode(text: str | None) -> "list[torch.Tensor]":
        return embed(pipe, text)

    def together(
        requests: Sequence[Request],
    ) -> "list[tuple[Image.Image, dict[str, Any]]]":
        return _draw_together(pipe, plan, requests, encode)

    draw = fast.Halving(together)
    with fast.cpu_kernels(pipe):
        for batch in batches:
            drawn = draw(batch)
            if draw.most is not None:
                for _, how in drawn:
                    how["batch_halved_to"] = draw.most
            yield batch, drawn


def _draw_together(
    pipe: Any, plan: Plan, batch: Sequence[Request], encode: Callable[[str | None], Any]
) -> "list[tuple[Image.Image, dict[str, Any]]]":
    import torch

    is_xl = hasattr(pipe, "text_encoder_2")
    with torch.no_grad():
        asked = [encode(r.prompt) for r in batch]
        named = {"prompt_embeds": 0, **({"pooled_prompt_embeds": 1} if is_xl else {})}
        inputs = {k: torch.cat([e[i] for e in asked]) for k, i in named.items()}
        if plan.guidance > 1:  # as in diffusers: no unconditional half otherwise
            against = _negative(pipe, plan.negative_prompt, encode, asked[0])
            for key, i in named.items():
                inputs[f"negative_{key}"] = torch.cat([against[i]] * len(batch))
        generators = [torch.Generator("cpu").manual_seed(r.seed) for r in batch]
        latents = pipe(
            **inputs,
            latents=_noise(pipe, plan, generators),
            generator=generators,  # for samplers that add noise on the way
            num_inference_steps=plan.steps,
            guidance_scale=plan.guidance,
            height=plan.height,
            width=plan.width,
            output_type="latent",
        ).images
        at_once = default_batch_size(max(latents.shape[2:]), latents.device.type)
        drawn = [one for part in latents.split(at_once) for one in decode(pipe, part)]
        pipe.maybe_free_model_hooks()
    return drawn


def embed(pipe: Any, text: str | None) -> "list[torch.Tensor]":
    """Embeddings of one text, always alone in its batch, so that company cannot change them."""
    found = pipe.encode_prompt(
        prompt=text or "",
        device=pipe._execution_device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
    )
    return [found[0], found[2]] if len(found) == 4 else [found[0]]


def _negative(
    pipe: Any, text: str | None, encode: Callable[[str | None], Any], like: "list[torch.Tensor]"
) -> "list[torch.Tensor]":
    """Embeddings of the negative prompt; zeros for None where the pipeline is made so."""
    if text is None and pipe.config.get("force_zeros_for_empty_prompt", False):
        return [part.new_zeros(part.shape) for part in like]
    return encode(text)


def _noise(pipe: Any, plan: Plan, generators: "list[torch.Generator]") -> "torch.Tensor":
    """Starting noise, (n, channels, height, width) of the latents; the pipeline scales it."""
    import torch

    factor = pipe.vae_scale_factor
    shape = (1, pipe.unet.config.in_channels, plan.height // factor, plan.width // factor)
    noise = [torch.randn(shape, generator=g, dtype=torch.float32) for g in generators]
    return torch.cat(noise).to(pipe.unet.dtype)
