"""`koala-nb train student`: distil a KOALA-shaped U-Net from a full-size teacher, on your data.

Pictures and captions are encoded once. Several GPUs: with the same arguments,
`accelerate launch -m koala_nb.distillation.train`. Call it again after an
interruption: it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from koala_nb.core import catalog
from koala_nb.core.files import write_json
from koala_nb.core.options import at_least, positive, writable
from koala_nb.distillation.losses import (
    FEATURES,
    Distiller,
    Weights,
    feature_pairs,
    init_from_teacher,
    training_cost,
)
from koala_nb.models import unet as architecture


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(prog="koala-nb train student", description=__doc__)
    add = parser.add_argument
    add("--teacher", required=True, help="a catalogued name or a folder")
    add("--student", required=True, help="the catalogued system whose U-Net is trained")
    add("--data", required=True, help="a folder of pictures with captions, or a dataset's hub id")
    add("--out", type=writable, default=Path("runs/student"), help="folder (default runs/student)")
    add("--size", type=at_least(1), default=None, help="pixels a side (default: the student's)")
    add("--samples", type=at_least(1), default=100_000, help="pictures seen (default 100000)")
    add("--batch", type=at_least(1), default=8, help="pictures a step in all (default 8)")
    add("--accumulation", type=at_least(1), default=1, help="parts of a batch (default 1)")
    add("--rate", type=positive, default=5e-5, help="learning rate (default 5e-5, BK-SDM's)")
    add("--limit", type=at_least(1), default=None, help="read so many pictures only")
    add("--feature", default="self-attention", help=f"{', '.join(FEATURES)} (default: the first)")
    add("--stage", action="append", default=[], help="imitate in these stages only")
    for name in ("task", "out", "feat"):
        add(f"--weight-{name}", type=float, default=1.0, help=f"weight of L_{name} (default 1)")
    add("--random-start", action="store_true", help="do not inherit the teacher's weights")
    add("--checkpointing", action="store_true", help="less memory, one more forward pass a step")
    add("--precision", choices=("no", "bf16", "fp16"), default=None, help="default: bf16 on a GPU")
    add("--device", choices=("cpu", "cuda"), default=None)
    add("--minutes", type=positive, help="stop after so long; call again to go on")
    add("--cost", action="store_true", help="print what a step needs, and stop")
    add("--tflops", type=positive, help="with --cost: your GPU's TFLOP/s, to get seconds a step")
    add("--prompt", action="append", default=[], help="drawn at each checkpoint")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train as `argv` says; return 0 when finished, 3 when time ran out, 2 for a user's error."""
    options = parser().parse_args(argv)
    try:
        pairs = check(options)
        if options.cost:
            print_cost(options)
            return 0
        return 0 if train(options, pairs) else 3
    except (ValueError, OSError) as error:
        print(f"koala-nb: {error}", file=sys.stderr)
        return 2


def check(options: argparse.Namespace) -> dict[str, str]:
    """Check all that can be checked without weights, and return the paired modules."""
    if options.batch % options.accumulation:
        raise ValueError(f"--batch {options.batch}: give a multiple of the accumulation.")
    if options.samples < options.batch:
        raise ValueError(f"--samples {options.samples}: give at least one batch.")
    student = architecture.build_unet(catalog.find(options.student).name)
    teacher = architecture.build_unet(options.teacher)
    return feature_pairs(student, teacher, options.feature, options.stage)


def print_cost(options: argparse.Namespace) -> None:
    """Print the computed memory and operations of a step."""
    student, teacher = (architecture.build_unet(n) for n in (options.student, options.teacher))
    factor = 4 if catalog.find(options.student).embedded else 8
    latent = (options.size // factor,) * 2 if options.size else None
    cost = training_cost(student, teacher, options.batch, latent, options.checkpointing)
    for name, value in cost.items():
        print(f"{name}: {value:,.2f}")
    if options.tflops:
        seconds = cost["operations a step (TFLOP)"] / options.tflops
        print(f"seconds a step at {options.tflops:g} TFLOP/s: {seconds:.2f}")
    print("Activations come on top: measure them.")


def train(options: argparse.Namespace, pairs: dict[str, str]) -> bool:
    """Encode the data, train and save; True when finished."""
    from accelerate import PartialState

    from koala_nb.distillation.data import prepare, read_pairs
    from koala_nb.distillation.loop import Loop, Stage
    from koala_nb.models import load

    read_pairs(options.data)  # a bad data folder stops before any weights are read
    processes = PartialState(cpu=options.device == "cpu")
    on_gpu = processes.device.type == "cuda"
    pipe = load.load(options.teacher, device=str(processes.device), offload="none")
    size = options.size or catalog.find(options.student).recipe.height or _side(pipe)
    with processes.main_process_first():
        remember(options, size)
        cache = prepare(pipe, options.data, options.out / "encoded", size, options.limit)
    batches = Batches(cache, pipe)
    unet = build_student(options, pipe)
    weights = Weights(options.weight_task, options.weight_out, options.weight_feat)
    distiller = Distiller(unet, pipe.unet.requires_grad_(False).eval(), pairs, weights)

    def loss(trained: Any, number: int, count: int) -> tuple[Any, dict]:
        return batches.loss(distiller, trained, batches.cache(number, count))

    def validate(student: Any) -> bytes | None:
        found = batches.validate(distiller, student)
        with open(options.out / "validation.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(found) + "\n")
        return draw(pipe, student, options.prompt) if options.prompt else None

    stage = Stage(
        samples=options.samples,
        batch=options.batch,
        rate=options.rate,
        decay=0.0,
        accumulation=options.accumulation,
    )
    precision = options.precision or ("bf16" if on_gpu else "no")
    loop = Loop(options.out, unet, stage, loss, validate, precision, device=options.device)
    finished = loop.run(options.minutes)
    if loop.accelerator.is_main_process:
        with loop.averaged() as averaged:
            save(pipe, averaged, options)
    return finished


def _side(pipe: Any) -> int:
    return pipe.default_sample_size * pipe.vae_scale_factor


def remember(options: argparse.Namespace, size: int) -> None:
    """Write the run's settings into its folder; ValueError where another run has that folder."""
    free = ("out", "minutes", "cost", "tflops", "prompt", "device")  # may change from call to call
    settings = {k: v for k, v in vars(options).items() if k not in free} | {"size": size}
    file = options.out / "settings.json"
    if not file.is_file():
        options.out.mkdir(parents=True, exist_ok=True)
        write_json(file, settings)
        return
    there = json.loads(file.read_text("utf-8"))
    if changed := [name for name in settings if there.get(name) != settings[name]]:
        raise ValueError(
            f"{options.out} holds a run with another --{changed[0].replace('_', '-')} "
            f"({there.get(changed[0])!r}): give it back, or name another --out."
        )


def build_student(options: argparse.Namespace, pipe: Any) -> Any:
    """Return the student's U-Net in float32: its teacher's weights, or random ones."""
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    config = catalog.find(options.student).unet_config
    unet = UNet2DConditionModel.from_config(dict(config)).train()
    if not options.random_start:
        init_from_teacher(unet, pipe.unet)
    if options.checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


class Batches:
    """Noisy latents of cached pictures, and the loss on them, on the teacher's device."""

    def __init__(self, cache: Any, pipe: Any) -> None:
        if pipe.scheduler.config.prediction_type != "epsilon":
            raise ValueError("The teacher predicts no noise (epsilon): choose an SDXL-like one.")
        self.cache, self.teacher = cache, pipe.unet
        self.alphas = pipe.scheduler.alphas_cumprod

    def loss(self, distiller: Distiller, student: Any, batch: dict) -> tuple[Any, dict]:
        """Return a student's distillation loss on a batch, and its parts."""
        times = (batch["time"] * len(self.alphas)).long()
        alpha = self.alphas[times][:, None, None, None]
        noisy = alpha.sqrt() * batch["latents"] + (1 - alpha).sqrt() * batch["noise"]
        device, dtype = self.teacher.device, self.teacher.dtype
        added = {"text_embeds": batch["pooled"], "time_ids": batch["ids"]}
        inputs = {"sample": noisy, "encoder_hidden_states": batch["states"]}
        mine = {name: value.to(device) for name, value in inputs.items()}
        mine |= {"timestep": times.to(device)}
        mine |= {"added_cond_kwargs": {k: v.to(device) for k, v in added.items()}}
        his = mine | {name: mine[name].to(dtype) for name in inputs}
        his |= {"added_cond_kwargs": {k: v.to(device, dtype) for k, v in added.items()}}
        noise = batch["noise"].to(device)
        return distiller.losses(lambda: student(**mine).sample, his, noise)

    def validate(self, distiller: Distiller, student: Any) -> dict[str, float]:
        """Return the parts of the loss on the held-out pictures, always with the same noise."""
        import torch

        found: dict[str, list[float]] = {}
        with torch.no_grad():
            for batch in self.cache.held_out():
                for name, part in self.loss(distiller, student, batch)[1].items():
                    found.setdefault(name, []).append(float(part))
        return {name: round(sum(parts) / len(parts), 6) for name, parts in found.items()}


def draw(pipe: Any, student: Any, prompts: list[str]) -> bytes:
    """Return one image a prompt, seed 0, drawn with the student at the pipeline's recipe."""
    from koala_nb.distillation.data import picture_sheet
    from koala_nb.generation.generate import generate

    teacher, pipe.unet = pipe.unet, student
    try:
        return picture_sheet(
            list(generate(pipe, prompts, [0], progress=False).images), len(prompts)
        )
    finally:
        pipe.unet = teacher


def save(pipe: Any, student: Any, options: argparse.Namespace) -> None:
    """Write an ordinary pipeline folder: the student's U-Net, all else its teacher's."""
    teacher, folder = pipe.unet, options.out / "student"
    pipe.unet = copy.deepcopy(student).to(teacher.dtype)
    try:
        pipe.save_pretrained(folder)
    finally:
        pipe.unet = teacher
    identity = {"name": options.student, "domain": pipe.model_info.domain}
    write_json(folder / "koala_nb.json", identity)
    write_json(folder / "training.json", json.loads((options.out / "settings.json").read_text()))


if __name__ == "__main__":
    sys.exit(main())
