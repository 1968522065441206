"""The set-up of a notebook in one call: silence, checks, a loaded model, and what it is."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any

from koala_nb.core import catalog
from koala_nb.core.catalog import Recipe, System
from koala_nb.core.errors import real_number, whole_number
from koala_nb.core.files import Record, banner, read_csv, short
from koala_nb.models import hub, load
from koala_nb.models.given import GivenImages
from koala_nb.models.load import ModelInfo, Pipeline, model_info

FILES = {  # parameters of notebooks that name a CSV, and its columns
    "prompts_file": ("prompt",),
    "frequencies": ("concept", "count"),
    "terms": ("term", "category"),
    "i2p": ("prompt",),
}


@dataclass(frozen=True, repr=False)
class Session:
    """A model ready to draw: what `start` and `wrap` return.

    `info` says what it is; `seeds` and `settings` are the checked arguments for `generate` that
    differ from its recipe: `kn.generate(session.pipe, prompts, session.seeds, **session.settings)`.
    """

    info: ModelInfo
    seeds: range = range(1)
    settings: Record = field(default_factory=dict)
    loaded: Pipeline | None = None

    @property
    def pipe(self) -> Pipeline:
        """The diffusers pipeline. ValueError where the session was started without weights."""
        if self.loaded is None:
            raise ValueError(f"{self.info.name} was started with weights=False: leave that out.")
        return self.loaded

    @property
    def recipe(self) -> Recipe:
        """How the model is meant to be sampled."""
        return self.info.recipe

    @property
    def domain(self) -> str:
        """What the model draws: `photographic` or `emoji-world`."""
        return self.info.domain

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of what it draws with these settings."""
        given = [self.settings.get(s) or getattr(self.recipe, s) for s in ("height", "width")]
        if None not in given:
            return given[0], given[1]
        side = load.native_size(self.pipe)
        return given[0] or side, given[1] or side

    def __repr__(self) -> str:
        info = self.info
        revision = f" at {info.revision}" if info.revision else ""
        lines = [f"{info.name} ({info.domain}): {info.source}{revision}"]
        if self.loaded is None:
            return f"{lines[0]}, without weights"
        if isinstance(self.loaded, GivenImages):
            return "\n".join([*lines, *info.notes])
        steps, guidance = (
            self.settings.get(name, getattr(self.recipe, name)) for name in ("steps", "guidance")
        )
        steps = steps or load.call_default(self.loaded, "num_inference_steps")
        if guidance is None:
            guidance = load.call_default(self.loaded, "guidance_scale")
        height, width = self.size
        drawing = f"{steps} steps, guidance {guidance:g}, {height} x {width} pixels"
        lines.append(f"on {info.device} in {info.dtype}: {drawing}")
        return "\n".join([*lines, *info.notes])


def start(
    model: str | os.PathLike[str],
    *,
    seeds: int = 1,
    seed: int = 0,
    steps: int = 0,
    guidance: float = 0.0,
    size: int = 0,
    negative_prompt: str = "",
    batch_size: int = 0,
    weights: bool = True,
    **loading: Any,
) -> Session:
    """Check the settings of a notebook, load its model without noise, and print what it is.

    `model` and `loading` (device, dtype, revision, offload, local_files_only) as for `load`;
    `seeds`: images per prompt, counted from `seed`; `size`: pixels per side. 0, or an empty text,
    means the recipe's value, or what fits the machine. With `weights=False`, for a catalogued name,
    nothing is loaded: the session knows its record alone.
    Raises ValueError for a bad name or setting, WeightsMissing where the weights are not there.

    >>> session = start("nano-koala", steps=4)  # doctest: +SKIP
    >>> generate(session.pipe, ["a koala"], session.seeds, **session.settings)  # doctest: +SKIP
    """
    numbers = {"seeds": seeds, "seed": seed, "steps": steps, "size": size}
    numbers["batch_size"] = batch_size
    loading = {name: value for name, value in loading.items() if value != ""}
    given = generation_settings(**numbers, guidance=guidance, negative_prompt=negative_prompt)
    load.silence_logging()
    if weights:
        pipe = load.load(model, **loading)
        return _shown(Session(model_info(pipe), given.pop("seeds"), given, pipe))
    system = catalog.find(str(model))
    source = system.repository or "no repository"
    info = ModelInfo(system, source, None, None, "", "meta", system.domain, system.recipe)
    return _shown(Session(info, given.pop("seeds"), given))


def wrap(pipe: Pipeline, *, seeds: int = 1, **settings: Any) -> Session:
    """Make a session of a diffusers pipeline of one's own, and print what is known of it.

    Its recipe (steps, guidance, sizes, negative prompt) is that of the catalogued system or the
    folder that the pipeline says it comes from, else the pipeline's own; its scheduler and parts
    stay as they are. `pipe.model_info` is set. Settings as for `start`. ValueError for a bad one,
    or for what is no pipeline of Stable Diffusion.
    """
    load.check_pipeline(pipe)
    if unknown := settings.keys() - signature(generation_settings).parameters:
        raise ValueError(f"wrap has no setting {sorted(unknown)[0]}=: leave it out.")
    given = generation_settings(seeds=seeds, **settings)
    load.silence_logging()
    info = model_info(pipe)
    if not hasattr(pipe, "model_info"):
        system, domain = _origin(info.source)
        recipe = system.recipe if system else load.domain_recipe(domain)
        notes = _scheduler_notes(pipe, recipe)
        info = replace(info, system=system, domain=domain, recipe=recipe, notes=notes)
        pipe.model_info = info
    pipe.set_progress_bar_config(disable=True)
    return _shown(Session(info, given.pop("seeds"), given, pipe))


def generation_settings(
    *,
    seeds: int,
    n: int = 1,
    seed: int = 0,
    steps: int = 0,
    guidance: float = 0.0,
    size: int = 0,
    negative_prompt: str = "",
    batch_size: int = 0,
) -> Record:
    """Check a report's settings, 0: the recipe's; return `generate`'s arguments, or ValueError."""
    for name, images, each in (("seeds", seeds, "prompt"), ("n", n, "probe")):
        whole_number(f"{name} (images per {each})", images, 1, load.MAX_IMAGES)
    given = {"steps": steps, "guidance": guidance, "batch_size": batch_size}
    for name, value in {**given, "size": size, "seed": seed}.items():
        check = real_number if name == "guidance" else whole_number
        check(name, value, 0, load.MOST[name])
    if size % 8:
        raise ValueError(f"size is {size}: give a multiple of 8.")
    if not isinstance(negative_prompt, str):
        raise ValueError(f"negative_prompt is {short(negative_prompt)}: give a text.")
    chosen: Record = {**given, "height": size, "width": size, "negative_prompt": negative_prompt}
    return {"seeds": range(seed, seed + seeds), **{k: v for k, v in chosen.items() if v}}


def check_model(name: str) -> None:
    """Raise ValueError for a name that is no place, hub id or catalogued system."""
    if not {"/", "\\"} & set(name) and not os.path.exists(name):
        catalog.find(name)


def check_parameters(values: Mapping[str, Any]) -> None:
    """Check a notebook's parameters by their names, before a kernel starts; ValueError."""
    for name in ("compare", "teacher"):
        if other := values.get(name):
            check_model(other)
    if {"seed", "seeds"} & values.keys():  # it draws
        given = {k: v for k, v in values.items() if k in signature(generation_settings).parameters}
        generation_settings(**{"seeds": 1, **given, "n": max(1, values.get("n", 1))})
    audit = {"n", "prompts_file"} <= values.keys()
    for name, least in {"n": int(audit), "prompts": 0, "repeats": 1, "steps": 0, "size": 0}.items():
        whole_number(name, values.get(name, least), least)
    real_number("threshold", values.get("threshold", 0), 0, 1)
    load.check_loading(*(values.get(name) or None for name in ("device", "dtype", "offload")))
    for name, columns in FILES.items():
        if file := values.get(name):
            texts = {"id", "text"} if name == "prompts_file" and "reader" in values else set()
            read_csv(file, sorted({*columns, *texts}), dtype=str)


def _origin(source: str) -> tuple[System | None, str]:
    facts = Path(source) / "koala_nb.json"
    known = hub.read_json(facts) if facts.is_file() else {}
    for system in catalog.SYSTEMS:
        if source == system.repository or known.get("name") == system.name:
            return system, system.domain
    return None, str(known.get("domain", "photographic"))


def _scheduler_notes(pipe: Pipeline, recipe: Recipe) -> list[str]:
    present = (type(pipe.scheduler).__name__, pipe.scheduler.config.get("timestep_spacing"))
    wanted = (recipe.scheduler, recipe.timestep_spacing)
    pairs = zip(("scheduler", "timestep spacing"), present, wanted)
    return [
        f"{k} {have}, the recipe's is {want}" for k, have, want in pairs if want not in (None, have)
    ]


def _shown(session: Session) -> Session:
    from koala_nb.display.figures import show_banner

    print(session)
    show_banner(banner(session.domain))
    return session
