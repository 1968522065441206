"""`koala-nb train student`: distil a KOALA-shaped U-Net from a full-size teacher, on your data.

Pictures and captions are encoded once; an interrupted run goes on when called again. Several GPUs:
`accelerate launch -m koala_nb train student`, with the same arguments.
"""

import copy
import json
import os
from contextlib import nullcontext
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import UNet2DConditionModel
from huggingface_hub import ModelCardData
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from koala_nb.core import catalog
from koala_nb.core.files import locked, read_json, write_atomic, write_json
from koala_nb.distillation import losses
from koala_nb.distillation.data import Cache, picture_sheet, prepare, read_pairs
from koala_nb.distillation.loop import Loop, Stage
from koala_nb.generation.generate import generate
from koala_nb.models import load
from koala_nb.models import unet as architecture
from koala_nb.models.load import Pipeline

PARTS = ("task", "out", "feat")  # of the loss


@dataclass(frozen=True)
class StudentTraining:
    """The options of `koala-nb train student`."""

    teacher: str  # a catalogued name or a folder
    student: str
    data: str  # a folder of pictures with captions, or a dataset's hub id
    out: Path = Path("runs/student")
    size: int | None = None  # pixels per side; default: the student's
    samples: int = 100_000  # pictures seen
    batch: int = 8  # pictures a step in all
    accumulation: int = 1  # parts of a batch
    rate: float = 5e-5  # BK-SDM's
    limit: int | None = None  # read so many pictures only
    feature: str = "self-attention"
    stage: list[str] = field(default_factory=list)  # imitate in these only
    weight_task: float = 1.0
    weight_out: float = 1.0
    weight_feat: float = 1.0
    random_start: bool = False
    checkpointing: bool = False
    precision: str | None = None  # no, bf16 or fp16; default: bf16 on a GPU
    device: str | None = None
    minutes: float | None = None
    cost: bool = False
    tflops: float | None = None
    prompt: list[str] = field(default_factory=list)  # drawn at each checkpoint


def train_student(options: StudentTraining) -> int:
    """Train, or print what a step costs; 0: finished, 3: time ran out; ValueError and OSError."""
    if options.batch % options.accumulation:
        raise ValueError(f"--batch {options.batch}: give a multiple of the accumulation.")
    if options.samples < options.batch:
        raise ValueError(f"--samples {options.samples}: give at least one batch.")
    weights = {f"weight-{part}": getattr(options, f"weight_{part}") for part in PARTS}
    for name, value in weights.items():
        if not 0 <= value < inf:
            raise ValueError(f"--{name} {value}: give a number of 0 or more.")
    if not any(weights.values()):
        raise ValueError("All weights of the loss are 0: give one that is more.")
    if not 0 < options.rate < inf:
        raise ValueError(f"--rate {options.rate}: give a number above 0.")
    student = architecture.build_unet(catalog.find(options.student).name)
    teacher = architecture.build_unet(options.teacher)
    pairs = losses.feature_pairs(student, teacher, options.feature, options.stage)
    if options.cost:
        print_cost(options, student, teacher)
        return 0
    return 0 if train(options, pairs) else 3


def print_cost(options: StudentTraining, student: nn.Module, teacher: nn.Module) -> None:
    """Print the computed memory and operations of a step."""
    factor = 4 if catalog.find(options.student).embedded else 8
    latent = (options.size // factor,) * 2 if options.size else None
    cost = losses.training_cost(student, teacher, options.batch, latent, options.checkpointing)
    for name, value in cost.items():
        print(f"{name}: {value:,.2f}")
    if options.tflops:
        seconds = cost["operations a step (TFLOP)"] / options.tflops
        print(f"seconds per step at {options.tflops:g} TFLOP/s: {seconds:.2f}")
    print("Activations come on top: measure them.")


def train(options: StudentTraining, pairs: dict[str, str]) -> bool:
    """Encode the data, train and save, with the folder's lock; True when finished."""
    read_pairs(options.data)  # a bad data folder stops before any weights are read
    processes = PartialState(cpu=options.device == "cpu")
    with locked(options.out) if processes.is_main_process else nullcontext():
        return _train(options, pairs, processes)


def _train(options: StudentTraining, pairs: dict[str, str], processes: PartialState) -> bool:
    on_gpu = processes.device.type == "cuda"
    pipe = load.load(options.teacher, device=str(processes.device), offload="none")
    size = options.size or catalog.find(options.student).recipe.height
    size = size or load.native_size(pipe)
    with processes.main_process_first():
        remember(options, size)
        cache = prepare(pipe, options.data, options.out / "encoded", size, options.limit)
    batches = Batches(cache, pipe)
    unet = build_student(options, pipe)
    weights = losses.Weights(options.weight_task, options.weight_out, options.weight_feat)
    distiller = losses.Distiller(unet, pipe.unet.requires_grad_(False).eval(), pairs, weights)

    def loss(trained: nn.Module, number: int, count: int) -> tuple[Tensor, dict]:
        return batches.loss(distiller, trained, batches.cache(number, count))

    def validate(student: nn.Module) -> bytes | None:
        with open(options.out / "validation.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(batches.validate(distiller, student)) + "\n")
        return draw(pipe, student, options.prompt) if options.prompt else None

    amount = options.samples, options.batch, options.rate
    stage = Stage(*amount, decay=0.0, accumulation=options.accumulation)
    precision = options.precision or ("bf16" if on_gpu else "no")
    loop = Loop(options.out, unet, stage, loss, validate, precision, device=options.device)
    finished = loop.run(options.minutes)
    if loop.accelerator.is_main_process:
        with loop.averaged() as averaged:
            save(pipe, averaged, options)
    return finished


def remember(options: StudentTraining, size: int) -> None:
    """Write the run's settings into its folder; ValueError where another run has that folder."""
    free = ("out", "minutes", "cost", "tflops", "prompt", "device")  # may change from call to call
    settings = {k: v for k, v in vars(options).items() if k not in free} | {"size": size}
    file = options.out / "settings.json"
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(file, settings, exclusive=True)
    there = read_json(file)
    if changed := [name for name in settings if there.get(name) != settings[name]]:
        raise ValueError(
            f"{options.out} holds a run with another --{changed[0].replace('_', '-')} "
            f"({there.get(changed[0])!r}): give it back, or name another --out."
        )


def build_student(options: StudentTraining, pipe: Pipeline) -> UNet2DConditionModel:
    """Return the student's U-Net in float32: its teacher's weights, or random ones."""
    torch.manual_seed(0)
    config = catalog.find(options.student).unet_config
    unet = UNet2DConditionModel.from_config(dict(config)).train()
    if not options.random_start:
        losses.init_from_teacher(unet, pipe.unet)
    if options.checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


class Batches:
    """Noisy latents of cached pictures, and the loss on them, on the teacher's device."""

    def __init__(self, cache: Cache, pipe: Pipeline) -> None:
        if pipe.scheduler.config.prediction_type != "epsilon":
            raise ValueError("The teacher predicts no noise (epsilon): choose an SDXL-like one.")
        self.cache, self.teacher = cache, pipe.unet
        self.alphas = pipe.scheduler.alphas_cumprod

    def loss(
        self, distiller: losses.Distiller, student: nn.Module, batch: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a student's distillation loss on a batch, and its parts."""
        device, dtype = self.teacher.device, self.teacher.dtype
        times = (batch["time"] * len(self.alphas)).long()
        alpha = self.alphas[times][:, None, None, None]
        noisy = alpha.sqrt() * batch["latents"] + (1 - alpha).sqrt() * batch["noise"]
        inputs = {"sample": noisy, "timestep": times, "encoder_hidden_states": batch["states"]}
        added = {"text_embeds": batch["pooled"], "time_ids": batch["ids"]}
        inputs = tree_map(lambda v: v.to(device), inputs | {"added_cond_kwargs": added})
        rounded = tree_map(lambda v: v.to(dtype) if v.is_floating_point() else v, inputs)
        noise = batch["noise"].to(device)
        return distiller.losses(lambda: student(**inputs).sample, rounded, noise)

    def validate(self, distiller: losses.Distiller, student: nn.Module) -> dict[str, float]:
        """Return the parts of the loss on the held-out pictures, always with the same noise."""
        with torch.no_grad():
            parts = [self.loss(distiller, student, b)[1] for b in self.cache.held_out()]
        return {name: round(sum(float(p[name]) for p in parts) / len(parts), 6) for name in PARTS}


def draw(pipe: Pipeline, student: nn.Module, prompts: list[str]) -> bytes:
    """Return one image a prompt, seed 0, drawn with the student at the pipeline's recipe."""
    teacher, pipe.unet = pipe.unet, student
    try:
        images = generate(pipe, prompts, [0], progress=False).images
        return picture_sheet(list(images), len(prompts))
    finally:
        pipe.unet = teacher


def save(pipe: Pipeline, student: nn.Module, options: StudentTraining) -> None:
    """Write an ordinary pipeline folder: the student's U-Net, all else its teacher's."""
    teacher, folder = pipe.unet, options.out / "student"
    pipe.unet = copy.deepcopy(student).to(teacher.dtype)
    try:
        pipe.save_pretrained(folder)
    except SafetensorError as error:
        raise OSError(
            f"The student cannot be written to {folder} ({error}): free some space and call again; "
            "its last checkpoint is kept."
        ) from error
    finally:
        pipe.unet = teacher
    identity = {"name": options.student, "domain": pipe.model_info.domain}
    write_json(folder / "koala_nb.json", identity)
    for file in (folder / "model_index.json", *folder.glob("*/config.json")):
        config = {k: v for k, v in read_json(file).items() if k != "_name_or_path"}
        write_json(file, config)  # a folder of this machine helps nobody
    settings = read_json(options.out / "settings.json").items()
    kept = {k: Path(v).name if isinstance(v, str) and os.path.isabs(v) else v for k, v in settings}
    write_json(folder / "training.json", kept)  # without the places of this machine
    write_atomic(folder / "README.md", _card(pipe, options).encode())


def _card(pipe: Pipeline, options: StudentTraining) -> str:
    info = pipe.model_info
    teacher = info.name if info.system and info.system.embedded else info.source
    base = None if os.path.isdir(teacher) else teacher  # a path of this machine helps nobody
    facts = ModelCardData(library_name="diffusers", pipeline_tag="text-to-image", base_model=base)
    return (
        f"---\n{facts.to_yaml()}\n---\n# {options.student}\n\n"
        f"A U-Net of {options.student}'s structure, distilled from {base or 'a folder'} by "
        "`koala-nb train student`; all other parts are its teacher's. `training.json` holds the "
        "settings.\n"
    )
