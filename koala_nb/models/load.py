"""Load a system, a folder or a hub repository as an ordinary diffusers pipeline."""

import inspect
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pandas as pd

from koala_nb.core import catalog, devices
from koala_nb.core.catalog import Recipe, System
from koala_nb.core.errors import first_line, nearest, whole_number
from koala_nb.core.files import Record, short
from koala_nb.models import hub
from koala_nb.models.given import GivenImages, is_given
from koala_nb.models.hub import WeightsMissing

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionXLPipeline

    class Pipeline(StableDiffusionXLPipeline):
        """What `load` returns: one of CLASSES, with what it is."""

        model_info: "ModelInfo"
else:
    Pipeline = object  # a name for annotations: diffusers is imported when a pipeline is loaded


__all__ = ["ModelInfo", "WeightsMissing", "model_info", "list_steps", "load", "silence_logging"]

OFFLOADS = ("none", "model", "sequential")
# What is drawn with at most: sizes in pixels; far more guidance overflows and draws nothing.
MOST = {"steps": 1000, "guidance": 1000, "size": 4096, "batch_size": 4096, "seed": 2**63 - 1}
MAX_IMAGES = 5_000_000  # of a run, whose plan is held in memory
TILE = 512  # pixels
CLASSES = hub.CLASSES
UNLOADABLE = (ValueError, OSError, TypeError, KeyError, NotImplementedError)
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
SECOND = ("text_encoder_2", "tokenizer_2")
INSTEAD = {  # of keywords of diffusers
    "device_map": "write device= or offload='model', or load with diffusers and use kn.wrap.",
    "variant": "half precision is found by itself; write dtype= for what to compute in.",
    "use_safetensors": "nothing but safetensors is ever loaded; leave it out.",
    "safety_checker": "no checker is applied while drawing; leave it out.",
    "cache_dir": "set the environment variable HF_HOME.",
    "token": "run `hf auth login`.",
    "trust_remote_code": "no code of a repository is run; leave it out.",
    "custom_pipeline": "no code of a repository is run; load with diffusers and use kn.wrap.",
    "low_cpu_mem_usage": "weights are loaded so in any case; leave it out.",
}


@dataclass
class ModelInfo(hub.Revised):
    """What a pipeline is: attached by `load` as `pipe.model_info` and copied into every record."""

    system: System | None
    source: str
    _revision: "str | Callable[[], str] | None"
    variant: str | None
    dtype: str
    device: str
    domain: str
    recipe: Recipe
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The catalogue name, else the folder or hub id."""
        return self.system.name if self.system else self.source

    @property
    def origin(self) -> str:
        """The source as files tell it that are handed on: of a folder its name, not its place."""
        if self.system and self.source == self.system.repository:
            return self.source
        local = os.path.exists(self.source) or str(self.revision).startswith("weights-")
        return Path(self.source).name if local or os.path.isabs(self.source) else self.source

    @property
    def label(self) -> str:
        """The name as files tell it that are handed on."""
        return self.system.name if self.system else self.origin


def load(
    name_or_path: str | os.PathLike[str],
    *,
    device: "str | torch.device | None" = None,
    dtype: "str | torch.dtype | None" = None,
    revision: str | None = None,
    offload: str | None = None,
    local_files_only: bool | None = None,
    config: str | None = None,
    **parts: Any,
) -> "Pipeline":
    """Load a catalogued system, a folder or a hub id ("owner/name") with its recipe's scheduler.

    Device: the best available. dtype: float16 on a GPU, float32 on a CPU. offload: "none", "model"
    or "sequential"; by default chosen from the free GPU memory. config: of one safetensors file, a
    U-Net or a whole checkpoint, the system, folder or hub id whose configuration it has. parts:
    parts of one's own, such as `vae=`, or a `quantization_config=`, as for diffusers. What was
    loaded is described by `pipe.model_info`. A folder of images with prompts gives `GivenImages`,
    which probes and reports take in place of a pipeline. Only safetensors are loaded, no remote
    code is run.
    Raises ValueError for a bad name, device, dtype or offload, WeightsMissing (an OSError) for
    weights that are absent, damaged or out of reach.
    """
    import diffusers

    if not isinstance(name_or_path, str | os.PathLike):
        raise ValueError(f"Give a model's name, folder or hub id, not {short(name_or_path)}.")
    if revision is not None and not isinstance(revision, str):
        raise ValueError(f"revision must be a text such as 'main', not {short(revision)}.")
    if (other := parts.pop("torch_dtype", dtype)) != dtype and dtype is not None:
        raise ValueError(f"dtype is {dtype} and torch_dtype {other}: give one of them.")
    dtype = other
    _check_keywords(parts)
    chosen_device, chosen_dtype = check_loading(device, dtype, offload)
    silence_logging()
    if str(name_or_path) not in catalog.NAMES and is_given(Path(name_or_path)):
        return cast("Pipeline", GivenImages(Path(name_or_path)))
    skip = frozenset(parts)
    if str(name_or_path).endswith(".safetensors") and os.path.isfile(name_or_path):
        where = (revision, local_files_only)
        system, source = _single_file(Path(name_or_path), config, *where, skip)
    elif config is not None:
        _refuse_files(str(name_or_path))
        raise ValueError(f"{name_or_path} is no safetensors file: config= is for one.")
    else:
        system, source = _resolve(str(name_or_path), revision, local_files_only, skip)
    system = system or catalog.NAMES.get(source.facts.get("name", ""))
    if system and source.source == str(catalog.data_folder() / "models" / system.name):
        source.source = str(system.repository)  # the same on every machine
    domain = system.domain if system else source.facts.get("domain", "photographic")
    recipe = system.recipe if system else domain_recipe(domain)
    pipe = _assemble(source, chosen_dtype, parts)
    computing = str(chosen_dtype).removeprefix("torch."), str(chosen_device)
    identity = source.source, source._revision, source.variant
    pipe.model_info = ModelInfo(system, *identity, *computing, domain, recipe, source.notes)
    if "scheduler" not in parts:
        cls = getattr(diffusers, recipe.scheduler) if recipe.scheduler else type(pipe.scheduler)
        change = {"timestep_spacing": recipe.timestep_spacing} if recipe.timestep_spacing else {}
        pipe.scheduler = cls.from_config(pipe.scheduler.config, **change)
    _place(pipe, chosen_device, offload)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def check_loading(
    device: "str | torch.device | None", dtype: "str | torch.dtype | None", offload: str | None
) -> "tuple[torch.device, torch.dtype]":
    """Return the device and dtype that a model is loaded with; ValueError for a bad name."""
    if offload is not None and offload not in OFFLOADS:
        raise ValueError(f"Unknown offload {short(offload)}: use one of {', '.join(OFFLOADS)}.")
    chosen = devices.pick_device(device)
    return chosen, devices.pick_dtype(dtype, chosen)


def _check_keywords(given: Record) -> None:
    """Raise ValueError, saying what to write, for keywords that only diffusers has."""
    for name in given.keys() - {*PARTS, *SECOND, "quantization_config"}:
        close = nearest(name, [*PARTS, *SECOND, "device", "dtype", "revision", "offload"])
        advice = INSTEAD.get(name, f"load with diffusers and give the pipeline to kn.wrap.{close}")
        raise ValueError(f"load has no {name}=: {advice}")


def model_info(pipe: "Pipeline") -> ModelInfo:
    """What `load` attached to a pipeline; for one made otherwise, what it tells of itself."""
    info = getattr(pipe, "model_info", None)
    if isinstance(info, ModelInfo):
        return info
    if not hasattr(pipe, "config") or not hasattr(pipe, "components"):
        instead = ": give its .pipe" if hasattr(pipe, "pipe") else ""
        raise ValueError(f"{short(pipe)} is no pipeline of diffusers{instead}.")
    source = str(getattr(pipe.config, "_name_or_path", None) or type(pipe).__name__)
    revision = None
    unet = str(getattr(pipe.unet.config, "_name_or_path", ""))  # in the hub's cache, if from there
    if cached := re.search(r"models--([^/\\]+)--([^/\\]+)[/\\]snapshots[/\\](\w+)", unet):
        repository = f"{cached[1]}/{cached[2]}"
        if source == repository or unet.startswith(source):
            source, revision = repository, cached[3]
    dtype = str(pipe.unet.dtype).removeprefix("torch.")
    device = str(pipe._execution_device)
    return ModelInfo(None, source, revision, None, dtype, device, "photographic", Recipe())


def check_pipeline(pipe: "Pipeline") -> None:
    """Raise ValueError for what is no pipeline that draws images like SDXL's, from text alone."""
    if isinstance(pipe, GivenImages):
        raise ValueError(f"{pipe.folder} holds images as given: no model draws there.")
    name = type(pipe).__name__
    call = inspect.signature(pipe.__call__).parameters if callable(pipe) else {}
    lacking = [part for part in PARTS if getattr(pipe, part, None) is None]
    if not hasattr(pipe, "config") or not call:
        instead = ": give its .pipe" if hasattr(pipe, "pipe") else ""
        raise ValueError(f"{short(pipe)} is no pipeline of diffusers{instead}.")
    if lacking or "image" in call or "prompt_embeds" not in call:
        what = [*lacking, "prompt"][0]
        why = "it draws from an image" if "image" in call else f"it has no {what}"
        raise ValueError(
            f"{name} is no SDXL-type text-to-image pipeline ({why}): call it as diffusers says; "
            f"here {' and '.join(CLASSES)} draw."
        )
    if getattr(pipe.unet, "encoder_hid_proj", None) is not None:
        raise ValueError(
            f"This {name} has an IP-Adapter, which wants an image with each prompt: "
            "pipe.unload_ip_adapter(), or call the pipeline as diffusers says."
        )


def native_size(pipe: "Pipeline | GivenImages") -> int:
    """The pixels per side that a pipeline draws at by itself."""
    if isinstance(pipe, GivenImages):
        return pipe.native_size
    return int(pipe.unet.config.sample_size * pipe.vae_scale_factor)


def call_default(pipe: "Pipeline", name: str) -> Any:
    """The default that the pipeline's own call has for an argument."""
    return inspect.signature(pipe.__call__).parameters[name].default


def list_steps(pipe: "Pipeline", steps: int, timestep_spacing: str | None = None) -> pd.DataFrame:
    """The sampler's steps, as columns step, timestep and sigma (noise level); changes nothing."""
    model_info(pipe)  # refuses what is no pipeline
    whole_number("steps", steps, 1, MOST["steps"])
    change = {"timestep_spacing": timestep_spacing} if timestep_spacing else {}
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **change)
    scheduler.set_timesteps(steps)
    times = [float(t) for t in scheduler.timesteps]
    table = pd.DataFrame({"step": range(1, len(times) + 1), "timestep": times})
    if hasattr(scheduler, "sigmas"):
        table["sigma"] = [float(s) for s in scheduler.sigmas[: len(times)]]
    return table


def silence_logging() -> None:
    """Silence the progress bars and notices of diffusers, transformers and the hub."""
    import diffusers
    import transformers
    from huggingface_hub.utils import disable_progress_bars, logging

    disable_progress_bars()
    logging.set_verbosity_error()
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    # What a LoRA, a textual inversion or a single file holds and a model lacks.
    logging.get_logger("diffusers.loaders").setLevel(logging.WARNING)


def _resolve(
    name: str, revision: str | None, local_only: bool | None, skip: hub.Parts
) -> tuple[System | None, hub.Source]:
    if name not in catalog.NAMES and os.path.isdir(name):
        return None, _folder(name, Path(name), revision, skip)
    _refuse_files(name)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and "\\" not in name:
        known = next((s for s in catalog.SYSTEMS if s.repository == name), None)
        if known is None or known.embedded:
            return None, hub.from_hub(name, revision, local_only, skip)
        return _resolve(known.name, revision, local_only, skip)
    if "/" in name or "\\" in name:
        raise ValueError(
            f"There is no folder {short(name)}, and it is not a hub id of the form owner/name."
        )
    system = catalog.find(name)
    if system.repository is None:
        raise ValueError(f"{system.title} cannot be loaded. {system.note}")
    if system.embedded:
        folder = catalog.data_folder() / "models" / system.name
        if not folder.is_dir():
            raise WeightsMissing(
                f"The embedded model {name} is not at {folder}: work in a checkout of the "
                "project, set KOALA_NB_DATA to the checkout's data folder, or train it with "
                "`koala-nb train`."
            )
        return system, _folder(name, folder, revision, skip)
    if system.unet_file and system.parts:
        return system, hub.with_unet_file(system, revision, local_only, skip)
    return system, hub.from_hub(system.repository, revision, local_only, skip)


def _refuse_files(name: str) -> None:
    if address := re.match(r"https?://(?:[\w.-]+/)([\w.-]+/[\w.-]+)", name):
        raise ValueError(
            f"{name} is a web address: write a hub id, here {address[1]!r}, or download it "
            "and give its place."
        )
    if name.endswith(".gguf"):
        raise ValueError(
            f"{name}: GGUF is not read here; load the U-Net with diffusers' GGUFQuantizationConfig "
            "and give the pipeline to kn.wrap, or give safetensors."
        )
    if name.endswith(".safetensors"):
        raise ValueError(f"There is no file {name}: give the path of one, with config=.")
    if name.endswith(hub.PICKLES):
        raise ValueError(f"{name} is a pickle, which is never loaded: give safetensors.")


def _single_file(
    file: Path, config: str | None, revision: str | None, local_only: bool | None, skip: hub.Parts
) -> tuple[System | None, hub.Source]:
    """The system and files of one file's configuration, to which its weights belong."""
    if config is None:
        raise ValueError(
            f"{file} is one file: say whose configuration it has, such as config='koala-700m'."
        )
    whole = hub.kind_of_file(file) == "pipeline"
    inside = frozenset(hub.WEIGHTED if whole else ("unet",)) - skip
    system, source = _resolve(str(config), revision, local_only, skip | inside)
    hub.fetch_configs(source, inside, local_only)
    lent = "the configuration" if whole else "all but the U-Net"
    is_folder = os.path.isdir(source.source)
    lender = Path(config).name if is_folder else config
    # Of a folder that lends no weights the hash is of nothing.
    at = "" if is_folder and whole else f" at {source.revision}"
    source.notes.append(f"{lent} from {lender}{at}")
    source.unet_file, source.source = file, str(file)
    source._revision = hub.start_fingerprint([file], source.donor)
    return system, source


def _folder(name: str, folder: Path, revision: str | None, skip: hub.Parts) -> hub.Source:
    if revision is not None:
        raise ValueError(f"{name} is a folder: revision={revision!r} is for hub repositories.")
    return hub.from_folder(folder, skip=skip)


def domain_recipe(domain: str) -> Recipe:
    """The recipe of a model of this domain that no record names."""
    return catalog.EMOJI_RECIPE if domain == "emoji-world" else Recipe()


def _assemble(source: hub.Source, dtype: "torch.dtype", parts: Record) -> "Pipeline":
    import diffusers
    import torch
    from diffusers.loaders.single_file_utils import SingleFileComponentError
    from safetensors.torch import load_file

    cls = getattr(diffusers, source.index["_class_name"])
    kind_of_unet = diffusers.UNet2DConditionModel
    options = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
    weights, given = source.weights, {}
    file = source.unet_file if "unet" not in parts else None
    kind = hub.kind_of_file(file) if file else None
    release = {"config": str(source.folder), "torch_dtype": dtype, "local_files_only": True}
    try:
        if file and kind == "unet":
            tensors = load_file(file)
            if not any(key.startswith(hub.RELEASE_UNET) for key in tensors):
                tensors = {hub.RELEASE_UNET + key: value for key, value in tensors.items()}
            unet = kind_of_unet.from_single_file(tensors, subfolder="unet", **release)
            given["unet"] = unet.eval()
        if file and kind == "diffusers unet":
            config = hub.read_json(source.folder / "unet" / "config.json")
            with torch.device("meta"):
                unet = kind_of_unet.from_config(config)
            tensors = {k: v.to(dtype) for k, v in load_file(file).items()}
            hub.check_names(unet, tensors, file)
            unet.load_state_dict(tensors, assign=True)
            given["unet"] = unet.eval()
        if donor := source.donor:
            lent = cls.from_pretrained(donor.folder, unet=None, variant=donor.variant, **options)
            here = {part.name for part in source.folder.iterdir()}
            wanted = source.index.keys() & lent.components.keys() - here
            given |= {part: lent.components[part] for part in wanted}
            weights = {**donor.weights, **weights}
        given |= parts
        if kind == "pipeline":
            pipe = cls.from_single_file(str(file), **release, **given)
        else:
            pipe = cls.from_pretrained(source.folder, variant=source.variant, **options, **given)
        for part, files in weights.items():
            if part not in parts:
                hub.check_weights(getattr(pipe, part), files)
        if file:
            hub.check_no_meta(pipe.components, file)
    except (*UNLOADABLE, SingleFileComponentError) as error:
        raise WeightsMissing(
            f"{source.source} cannot be loaded ({first_line(error)[:200]}): its configurations and "
            "weights do not belong together; copy or download them again."
        ) from error
    if getattr(pipe, "safety_checker", None) is not None:
        source.notes.append("the repository's safety checker is not applied")
    return pipe


def _place(pipe: "Pipeline", device: "torch.device", offload: str | None) -> None:
    """Move a pipeline to its device; on a GPU that is too small, by parts and with VAE tiles."""
    if device.type != "cuda":
        if offload not in (None, "none"):
            raise ValueError(f"offload={offload!r} needs a CUDA device, not {device}.")
        pipe.to(device)
        return
    parts = [part for part in pipe.components.values() if hasattr(part, "parameters")]
    sizes = list(map(devices.gigabytes, parts))
    free = devices.free_gigabytes(device)
    size = pipe.model_info.recipe.height or native_size(pipe)
    area = (size / 1024) ** 2
    tiles, planned = devices.plan_memory(sizes, free, area)
    offload = offload or planned
    if tiles:
        pipe.vae.enable_slicing()
        pipe.vae.enable_tiling()
        # SDXL's own tile is 1024 px: no tiles at all at its usual size.
        pipe.vae.tile_sample_min_size = TILE
        pipe.vae.tile_latent_min_size = TILE // pipe.vae_scale_factor
        pipe.model_info.notes.append(f"VAE in slices and tiles ({free:.1f} GB of GPU memory free)")
    if offload == "none":
        pipe.to(device)
        return
    pipe.model_info.notes.append(f"{offload} offload ({free:.1f} GB of GPU memory free)")
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:
        # The VAE stays whole, so that it can change to float32 when half precision overflows.
        pipe._exclude_from_cpu_offload = [*pipe._exclude_from_cpu_offload, "vae"]
        pipe.enable_sequential_cpu_offload(device=device)
