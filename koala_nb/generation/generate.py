"""Prompts x seeds -> images, each with a complete record.

`generate` plans; `Drawing` draws batch by batch: `embed` and `_noise` make the inputs, the
pipeline's own loop calls the U-Net, `decode` makes the images.
"""

import platform
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from diffusers.configuration_utils import FrozenDict
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from koala_nb.core import files
from koala_nb.core.devices import empty_cache, is_out_of_memory
from koala_nb.core.files import Record
from koala_nb.generation import plan as planning
from koala_nb.generation import run_folder
from koala_nb.generation.plan import Plan, Request, Settings
from koala_nb.generation.run_folder import BatchTimes, Run
from koala_nb.models.fingerprint import fingerprint, summary
from koala_nb.models.given import GivenImages
from koala_nb.models.load import Pipeline, list_steps, model_info

Decoded = list[tuple[Image.Image, Record]]  # images, and how each was decoded
# Each is called before an attempt to draw; what it returns is called where memory ran out.
ON_RETRY: list[Callable[[], Callable[[], None]]] = []


def generate(
    pipe: Pipeline,
    prompts: str | Sequence[str],
    seeds: Sequence[int] | Sequence[Sequence[int]] = (0,),
    *,
    negative_prompt: str | None = planning.RECIPE,
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
    an interruption. Raises ValueError for a bad argument, or a folder with other settings or that
    another process writes.
    """
    folder = None if out is None else run_folder.folder_at(out)
    if folder and batch_size is None:
        batch_size = run_folder.batch_size_of(folder)
    given = Settings(negative_prompt, steps, guidance, height, width, batch_size, timestep_spacing)
    if isinstance(pipe, GivenImages):
        return _given(pipe, [prompts] if isinstance(prompts, str) else prompts, given, folder)
    plan = planning.make_plan(pipe, prompts, seeds, given)
    drawing = Drawing(pipe, plan)
    if folder is None:
        drawn = [one for batch in drawing.draw(set(plan.requests), progress) for one in batch]
        records = pd.DataFrame([one.record for one in drawn])
        return Run([one.image for one in drawn], records, None, drawing.times)
    with run_folder.open_folder(folder, drawing.folder_settings(), plan):
        drawing.write_missing(folder, progress)
        return run_folder.close_folder(folder, plan.requests, drawing.times)


def _given(
    images: GivenImages, prompts: Sequence[str], settings: Settings, folder: Path | None
) -> Run:
    """The run of all images that are given of these prompts; a folder holds their records."""
    changed = [key for key, value in vars(settings).items() if value != vars(Settings())[key]]
    if changed:
        raise ValueError(f"The images of {images.folder} are as given: leave out {changed[0]}.")
    info, table = images.model_info, images.select(prompts)
    facts = {name: getattr(info, name) for name in ("source", "revision", "domain")}
    paths = list(table.file)
    names = [path.relative_to(images.folder).as_posix() for path in paths]
    records = table.assign(file=names, system=info.name, **facts)
    if folder is not None:
        with run_folder.open_given(folder, {**facts, "prompts": list(prompts)}):
            files.write_lines(folder / run_folder.RECORDS, records.to_dict("records"))
    return Run(run_folder.FolderImages(paths), records, folder)


class Drawn(NamedTuple):
    """One image and what is known of it."""

    request: Request
    image: Image.Image
    record: Record


class Drawing:
    """A plan and the pipeline that draws it; warns of prompts that are not read whole."""

    def __init__(self, pipe: Pipeline, plan: Plan) -> None:
        self.pipe, self.plan = pipe, plan
        self.unread = find_unread(pipe, plan)
        with spacing(pipe, plan.timestep_spacing):
            self.settings = _settings_of(pipe, plan)
            self.parts = fingerprint(pipe)
        if plan.timestep_spacing and self.settings["timestep_spacing"] is None:
            raise ValueError(
                f"{self.settings['scheduler']} takes the same steps with any timestep_spacing: "
                "leave it out."
            )
        self.encode = lru_cache(maxsize=64)(partial(embed, pipe))
        self._sizes: list[int] = []
        self._seconds: list[float] = []

    @property
    def times(self) -> BatchTimes | None:
        """The batches drawn so far, None for none."""
        return BatchTimes(tuple(self._sizes), tuple(self._seconds)) if self._sizes else None

    def folder_settings(self) -> Record:
        """The settings of the run's folder, with all parts; not which GPU of several draws."""
        device = self.settings["device"].split(":")[0]
        return {**self.settings, "device": device, "parts": self.parts}

    def draw(self, todo: Set[Request], progress: bool) -> Generator[list[Drawn], None, None]:
        """Draw the images of `todo`, batch by batch, in halves where memory runs out.

        A batch with one image missing is drawn whole, as before, and only the missing is yielded.
        """
        draw = SmallerBatches(self._draw_together)
        before = time.perf_counter()
        with (
            spacing(self.pipe, self.plan.timestep_spacing),
            cpu_kernels(self.pipe),
            _bar(len(todo), progress) as advance,
        ):
            for batch in self.plan.batches():
                if todo.isdisjoint(batch):
                    continue
                decoded = draw(batch)
                if draw.limit is not None:
                    for _, decoding in decoded:
                        decoding["batch_halved_to"] = draw.limit
                drawn = [
                    Drawn(request, image, self._record(request, decoding))
                    for request, (image, decoding) in zip(batch, decoded)
                    if request in todo
                ]
                yield drawn
                advance(len(drawn))
                now = time.perf_counter()
                self._sizes.append(len(batch))
                self._seconds.append(now - before)
                before = now

    def write_missing(self, folder: Path, progress: bool) -> dict[Request, Record]:
        """Draw what an open run's folder lacks of the images; returns the records of these."""
        todo = run_folder.missing(folder, self.plan.requests, self.folder_settings())
        run_folder.check_space(folder, self.plan, len(todo))
        for name in {request.folder for request in todo}:
            (folder / name).mkdir(exist_ok=True)
        records: dict[Request, Record] = {}
        # Closed, so that the pipeline is as before even where a file cannot be written.
        with ThreadPoolExecutor(1) as writer, closing(self.draw(todo, progress)) as batches:
            writing: Future[None] | None = None
            for batch in batches:
                if writing:
                    writing.result()  # so that no more than two batches wait
                writing = writer.submit(_save, folder, batch)
                records |= {one.request: one.record for one in batch}
            if writing:
                writing.result()
        return records

    def _record(self, request: Request, decoding: Record) -> Record:
        unread = self.unread.get(request.prompt)
        return {
            "file": request.file,
            "prompt_index": request.index,
            "prompt": request.prompt,
            "seed": request.seed,
            **({} if unread is None else {"prompt_unread": unread}),
            **self.settings,
            "parts": summary(self.parts),
            **decoding,
            "banner": files.banner(self.settings["domain"]),
            "device_name": files.device_name(self.settings["device"]),
            **files.versions(),
        }

    def _draw_together(self, batch: Sequence[Request]) -> Decoded:
        pipe, plan = self.pipe, self.plan
        with torch.no_grad():
            embeddings = [self.encode(r.prompt) for r in batch]
            names = ["prompt_embeds", "pooled_prompt_embeds"][: len(embeddings[0])]
            inputs = {k: torch.cat([e[i] for e in embeddings]) for i, k in enumerate(names)}
            if plan.guidance > 1:  # as in diffusers: no unconditional half otherwise
                negative = self._negative(embeddings[0])
                for i, name in enumerate(names):
                    inputs[f"negative_{name}"] = torch.cat([negative[i]] * len(batch))
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
            at_once = planning.default_batch_size(max(latents.shape[2:]), latents.device.type)
            decoded = [one for part in latents.split(at_once) for one in decode(pipe, part)]
            pipe.maybe_free_model_hooks()
        return decoded

    def _negative(self, like: list[Tensor]) -> list[Tensor]:
        """Embeddings of the negative prompt; zeros for None where the pipeline is made so."""
        text = self.plan.negative_prompt
        if text is None and self.pipe.config.get("force_zeros_for_empty_prompt", False):
            return [part.new_zeros(part.shape) for part in like]
        return self.encode(text)


def _save(folder: Path, batch: Sequence[Drawn]) -> None:
    for one in batch:
        files.save_png(one.image, folder / one.request.file, one.record)


def find_unread(pipe: Pipeline, plan: Plan) -> dict[str, str]:
    """Prompts longer than the text encoder reads -> what it does not; one warning of them all."""
    tokenizer = pipe.tokenizer
    limit = tokenizer.model_max_length
    lost = {}
    for text in dict.fromkeys([r.prompt for r in plan.requests] + [plan.negative_prompt or ""]):
        whole = pipe.maybe_convert_prompt(text, tokenizer)  # textual inversion of several vectors
        ids = tokenizer(whole, truncation=False, verbose=False).input_ids
        if len(ids) > limit:
            lost[text] = tokenizer.decode(ids[limit - 1 : -1]).strip()
    if lost:
        first = files.short(next(iter(lost.values())))
        more = f" and of {len(lost) - 1} more prompts" if len(lost) > 1 else ""
        warnings.warn(
            f"Longer than the text encoder's {limit} tokens: it does not read {first}{more}.",
            stacklevel=4,
        )
    return lost


def _settings_of(pipe: Pipeline, plan: Plan) -> Record:
    info = model_info(pipe)
    # Tiles, which change the image a little, count only where it is larger than one.
    latent = max(plan.height, plan.width) // pipe.vae_scale_factor
    tiling = bool(pipe.vae.use_tiling) and latent > pipe.vae.tile_latent_min_size
    return {
        "system": info.label,
        "source": info.origin,
        "revision": info.revision,
        "variant": info.variant,
        "domain": info.domain,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "device": str(pipe._execution_device),
        "scheduler": type(pipe.scheduler).__name__,
        "timestep_spacing": effective_spacing(pipe, plan.steps),
        "steps": plan.steps,
        "guidance": plan.guidance,
        "negative_prompt": plan.negative_prompt,
        "height": plan.height,
        "width": plan.width,
        "vae_tiling": tiling,
    }


def effective_spacing(pipe: Pipeline, steps: int) -> str | None:
    """The scheduler's timestep spacing; None where any gives the same steps (LCM, TCD)."""
    spacing = pipe.scheduler.config.get("timestep_spacing")
    if spacing is None:
        return None
    every = [tuple(list_steps(pipe, steps, name).timestep) for name in planning.SPACINGS]
    return spacing if len(set(every)) > 1 else None


@contextmanager
def _bar(total: int, progress: bool) -> Iterator[Callable[[int], Any]]:
    """A bar of images; outside a terminal only for runs of more than a minute."""
    terminal = sys.stderr.isatty()
    times = {"delay": 0, "mininterval": 0.5} if terminal else {"delay": 60, "mininterval": 30}
    with tqdm(total=total, unit="image", disable=not progress, **times) as bar:
        yield bar.update


@contextmanager
def spacing(pipe: Pipeline, timestep_spacing: str | None) -> Iterator[None]:
    """Give the pipeline another timestep spacing for a while."""
    before = pipe.scheduler
    if timestep_spacing is not None:
        config = before.config
        pipe.scheduler = type(before).from_config(config, timestep_spacing=timestep_spacing)
    try:
        yield
    finally:
        pipe.scheduler = before


def embed(pipe: Pipeline, text: str | None) -> list[Tensor]:
    """Embeddings of one text, always alone in its batch, so that company cannot change them."""
    alone = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    embeddings = pipe.encode_prompt(prompt=text or "", device=pipe._execution_device, **alone)
    return [embeddings[0], embeddings[2]] if len(embeddings) == 4 else [embeddings[0]]


def _noise(pipe: Pipeline, plan: Plan, generators: list[torch.Generator]) -> Tensor:
    """Starting noise, (n, channels, height, width) of the latents; the pipeline scales it."""
    factor = pipe.vae_scale_factor
    shape = (1, pipe.unet.config.in_channels, plan.height // factor, plan.width // factor)
    noise = [torch.randn(shape, generator=g, dtype=torch.float32) for g in generators]
    return torch.cat(noise).to(pipe.unet.dtype)


def decode(pipe: Pipeline, latents: Tensor) -> Decoded:
    """Turn latents, (n, channels, h, w), into images, as the pipeline itself would.

    SDXL's VAE can overflow in half precision: a black image is decoded again in float32. With each
    stand `decoded_in`, the precision that counted, and `finite`: False for a latent of NaN.
    """
    dtype = decoding_dtype(pipe.vae, hasattr(pipe, "upcast_vae"))
    images = []
    for latent, pixels in zip(latents.split(1), _decode_in(pipe, latents, dtype).split(1)):
        used = dtype
        # NaN or infinity, or black all over.
        broken = not pixels.isfinite().all() or (pixels <= -1).all()
        if used != torch.float32 and broken:
            used = torch.float32
            pixels = _decode_in(pipe, latent, used)
        finite = bool(torch.isfinite(pixels).all())
        if not finite:
            pixels = torch.nan_to_num(pixels, nan=-1.0)
        image = pipe.image_processor.postprocess(pixels, output_type="pil")[0]
        decoding = {"decoded_in": str(used).removeprefix("torch."), "finite": finite}
        images.append((image, decoding))
    return images


def decoding_dtype(vae: nn.Module, is_xl: bool) -> torch.dtype:
    """The precision that a VAE decodes in: its own, or float32 where SDXL's asks for it."""
    upcast = is_xl and vae.dtype == torch.float16 and vae.config.force_upcast
    return torch.float32 if upcast else vae.dtype


def _decode_in(pipe: Pipeline, latent: Tensor, dtype: torch.dtype) -> Tensor:
    latent = unscale(pipe.vae.config, latent.to(dtype)).to(pipe._execution_device)
    pixels = decode_latent(pipe.vae, latent, dtype)
    watermark = getattr(pipe, "watermark", None)
    return watermark.apply_watermark(pixels) if watermark is not None else pixels


def decode_latent(vae: nn.Module, latent: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what a VAE decodes in a precision, which is its own again afterwards."""
    before = vae.dtype
    if dtype != before:
        vae.to(dtype=dtype)
    try:
        with torch.no_grad():
            return vae.decode(latent.to(dtype), return_dict=False)[0]
    finally:
        if dtype != before:
            vae.to(dtype=before)


def unscale(config: FrozenDict, latent: Tensor) -> Tensor:
    """Undo the scaling (and shift, where the VAE has one) that latents are drawn in."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return latent / config.scaling_factor
    shape = (1, -1, 1, 1)
    return latent * latent.new_tensor(std).view(shape) / config.scaling_factor + (
        latent.new_tensor(mean).view(shape)
    )


@contextmanager
def cpu_kernels(pipe: Pipeline) -> Iterator[None]:
    """Let a pipeline on a CPU use the faster routines for a while; elsewhere changes nothing.

    Matrix products in float32 by oneDNN instead of MKL, which uses no more than AVX2 on AMD's
    processors; the VAE's convolutions on channels-last weights. Results differ by rounding alone.
    """
    if pipe._execution_device.type != "cpu":  # where parts wait says nothing
        yield
        return
    changed = [m for m in _interpreted(pipe.unet) if _gains(m)]
    try:
        for module in changed:
            module.forward = _onednn(module)
        pipe.vae.to(memory_format=torch.channels_last)
        yield
    finally:
        for module in changed:
            del module.forward  # the class' own is below
        pipe.vae.to(memory_format=torch.contiguous_format)


def _interpreted(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that torch.compile has no part in: it chooses kernels itself."""
    if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
        return
    yield module
    for child in module.children():
        yield from _interpreted(child)


def _gains(module: nn.Module) -> bool:
    """Whether a module is a plain float32 linear layer that oneDNN can compute here."""
    return (
        type(module) is torch.nn.Linear
        and type(module.weight) is torch.nn.Parameter  # no quantised one
        and module.weight.dtype == torch.float32
        and "forward" not in vars(module)  # somebody else's
        and platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _onednn(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    product = torch.ops.mkldnn._linear_pointwise  # what torch.compile itself calls

    def forward(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # it has no gradient
            return torch.nn.functional.linear(x, layer.weight, layer.bias)
        return product(x, layer.weight, layer.bias, "none", [], "")

    return forward


class SmallerBatches:
    # Accelerate's find_executable_batch_size lowers by a tenth and draws again what fitted.
    """Draws batches whole, or in halves (of halves ...) from where memory ran out."""

    def __init__(self, draw: Callable[[Sequence[Request]], Decoded]) -> None:
        self.draw = draw
        self.limit: int | None = None  # images at once; None: never ran out

    def __call__(self, batch: Sequence[Request]) -> Decoded:
        """Return what `draw` makes of a batch, in order. Its error, if one image does not fit."""
        drawn: Decoded = []
        while len(drawn) < len(batch):
            todo = batch[len(drawn) :][: self.limit or len(batch)]
            undo = [begin() for begin in ON_RETRY]
            try:
                drawn += self.draw(todo)
                continue
            except (RuntimeError, MemoryError) as error:
                if len(todo) == 1 or not is_out_of_memory(error):
                    raise
            # Here the error is gone, and with it the tensors that its traceback held.
            self.limit = len(todo) // 2
            for restore in undo:
                restore()
            empty_cache()
        return drawn
