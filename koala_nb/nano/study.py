"""`koala-nb train study`: which features should a KOALA imitate? Equal budgets, several seeds.

Every run distils a student of `nano-sdxl` in the emoji world and differs from the others in one
choice: feature, stage, start, size, or without the teacher's answers (the task loss alone). Runs
are independent, resumable and shared out over workers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from koala_nb.core.catalog import data_folder
from koala_nb.core.files import Record, locked, read_json, versions, write_json
from koala_nb.distillation.loop import Stage
from koala_nb.distillation.losses import FEATURES
from koala_nb.nano.presets import Preset, find_preset

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL
    from torch import nn

SEEDS = (0, 1, 2)
BUDGET = {  # the same for every run of a configuration
    "small": Stage(samples=12_800, batch=64, rate=5e-4, warmup=20),
    "full": Stage(samples=200_000, batch=512, rate=5e-4),
}
LARGE = ("none", "self-attention", "block")  # features tried on the larger student
SELF_ATTENTION_STAGES = ("down_blocks.1", "down_blocks.2", "up_blocks.0", "up_blocks.1")
STEP_OF_SEED = 10**7  # so that the seeds of a run never see the same batch
HELD_OUT_BATCHES = 8  # of 64 scenes
PROMPTS = 96  # a kind


@dataclass(frozen=True)
class Run:
    """One run of the study; `name` tells it apart."""

    system: str = "nano-koala"
    feature: str = "self-attention"
    stages: tuple[str, ...] = ()
    start: str = "inherited"
    seed: int = 0
    out: float = 1.0  # weight of L_out; without it and without features the task loss is alone

    @property
    def name(self) -> str:
        """System, feature, stages, start, seed and an L_out left out, as a folder's name."""
        where = "+".join(self.stages) or "all"
        answers = "" if self.out else "_no-out"
        return f"{self.system}_{self.feature}_{where}_{self.start}_{self.seed}{answers}"


def runs() -> list[Run]:
    """Return every run of the study, the question of the features first."""
    plan = [Run(feature=feature, seed=seed) for seed in SEEDS for feature in FEATURES]
    plan += [Run("nano-koala-large", f, seed=seed) for seed in SEEDS for f in LARGE]
    plan += [Run(start="random", seed=seed) for seed in SEEDS]
    plan += [Run(stages=(stage,), seed=s) for s in SEEDS for stage in SELF_ATTENTION_STAGES]
    plan += [Run(feature="none", out=0.0, seed=seed) for seed in SEEDS]
    return plan


def train(run: Run, preset: Preset, folder: Path, vae_folder: Path) -> Record:
    """Distil one student and return its measures; a stopped run goes on where it was."""
    import torch
    from diffusers import AutoencoderKL
    from diffusers.models.attention import BasicTransformerBlock

    from koala_nb.distillation.loop import Loop
    from koala_nb.distillation.losses import Weights
    from koala_nb.nano.models import build_tokenizer, pick_device, reduced_precision
    from koala_nb.nano.train_unet import Batches, Denoiser, distillation_losses, distiller_of

    where = pick_device(None)
    torch.manual_seed(run.seed)
    vae = AutoencoderKL.from_pretrained(vae_folder, torch_dtype=torch.float32).to(where)
    tokenizer = build_tokenizer(preset)
    module = Denoiser(preset, run.system, tokenizer)
    teacher, inherited = data_folder() / "models" / "nano-sdxl", run.start == "inherited"
    distiller = distiller_of(module, teacher, where, run.feature, run.stages, inherited)
    distiller.weights = Weights(out=run.out)
    batches = Batches(preset, tokenizer, vae)

    def loss(trained: nn.Module, number: int, size: int) -> tuple[torch.Tensor, dict]:
        batch = batches(number + run.seed * STEP_OF_SEED, size)
        with loop.accelerator.autocast():
            return distillation_losses(distiller, trained, module, batch)

    loop = Loop(
        folder,
        module,
        BUDGET[preset.name],
        loss,
        mixed_precision=reduced_precision(where),
        compiled=(BasicTransformerBlock,),
    )
    loop.run()
    with loop.averaged() as averaged, torch.compiler.set_stance("force_eager"):
        measures = held_out_losses(distiller, averaged, batches)
        measures |= drawn(averaged, vae, tokenizer, preset)
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    curve = [[row["step"], row["task"], row["out"], row["feat"]] for row in rows]
    return {**asdict(run), **measures, "curve": curve}


def held_out_losses(
    distiller: Any, module: nn.Module, batches: Any, count: int | None = None
) -> dict[str, float]:
    """Return L_task and L_out on `count` fixed batches of held-out scenes, with fixed noise.

    By default HELD_OUT_BATCHES. Without L_feat: its value depends on what is imitated, so it
    compares nothing.
    """
    import torch

    from koala_nb.nano.train_unet import distillation_losses

    losses: dict[str, list[float]] = {"task": [], "out": []}
    with torch.no_grad():
        for number in range(count or HELD_OUT_BATCHES):
            batch = batches.held_out(number, 64)
            _, parts = distillation_losses(distiller, module, module, batch)
            for name, values in losses.items():
                values.append(float(parts[name]))
    return {f"held_out_{name}": round(sum(v) / len(v), 6) for name, v in losses.items()}


def drawn(module: nn.Module, vae: AutoencoderKL, tokenizer: Any, preset: Preset) -> Record:
    """Draw held-out prompts at the recipe and return hits of the sprite matcher, as [hits, n]."""
    import numpy as np

    from koala_nb.nano.evaluation import compare, draw, held_out
    from koala_nb.nano.instruments import Matching
    from koala_nb.nano.train_unet import assemble
    from koala_nb.nano.world import World

    world, pipe = World(preset.n_objects), assemble(module, vae, tokenizer)
    matching = Matching(World(preset.n_objects, balanced=True), preset.image_size)
    hits: dict[str, list[bool]] = {}
    for kind in ("object", "person"):
        scenes = held_out(world, kind, PROMPTS)
        images = draw(pipe, [s.caption for s in scenes], steps=10, guidance=3.5)
        for name, values in compare(scenes, matching.read(images, kind), world).items():
            hits.setdefault(name, []).extend(values)
    return {"hits": {name: [int(np.sum(v)), len(v)] for name, v in hits.items()}}


def run_study(
    config: str = "small",
    folder: Path = Path("runs"),
    workers: int | None = None,
    first: int | None = None,
    only: str = "",
) -> int:
    """Run what is missing and write `data/results/distillation-study.json`; 3 if some are left.

    workers: runs at a time, by default one per CPU core; first: only so many runs of the list;
    only: the name of the one run that this process trains. FileNotFoundError without a teacher.
    """
    preset, folder, plan = find_preset(config), folder / config / "study", runs()[:first]
    teacher = data_folder() / "models" / "nano-sdxl"
    if not (teacher / "unet").is_dir():
        raise FileNotFoundError(f"No teacher in {teacher}: train it with --stage teacher.")
    if only:
        (run,) = [run for run in plan if run.name == only]
        with locked(folder / run.name):
            result = train(run, preset, folder / run.name, teacher / "vae")
            write_json(folder / run.name / "result.json", result)
        return 0
    work(plan, folder, workers or os.cpu_count() or 1, config)
    done = [run for run in plan if (folder / run.name / "result.json").is_file()]
    if done:
        print(collect(done, folder, config))
    return 0 if len(done) == len(runs()) else 3


def work(plan: list[Run], folder: Path, workers: int, config: str) -> None:
    """Start a process for each run without a result, `workers` at a time, each of one thread."""
    from tqdm import tqdm

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "koala_nb", "train", "study", "--config", config]
    command += ["--folder", str(folder.parents[1]), "--run"]

    def start(run: Run) -> None:
        (folder / run.name).mkdir(parents=True, exist_ok=True)
        with open(folder / run.name / "output.txt", "w", encoding="utf-8") as output:
            code = subprocess.call(
                [*command, run.name], env=environment, stdout=output, stderr=output
            )
        if code:
            tqdm.write(f"{run.name} failed: see {output.name}")

    missing = [run for run in plan if not (folder / run.name / "result.json").is_file()]
    with ThreadPoolExecutor(workers) as pool:
        list(tqdm(pool.map(start, missing), total=len(missing), unit="run"))


def run_of(record: Record) -> Run:
    """Return the run that a stored record is of; what an older record lacks is the default."""
    choices = {f.name: record[f.name] for f in fields(Run) if f.name in record}
    return Run(**{**choices, "stages": tuple(record["stages"])})


def collect(done: list[Run], folder: Path, config: str) -> Path:
    """Write all results with their budget and provenance.

    Stored runs of the same teacher, budget and held-out scenes stay, so that one arm can be added.
    """
    from koala_nb.models.load import load

    path = data_folder() / "results" / "distillation-study.json"
    results = [json.loads((folder / r.name / "result.json").read_text("utf-8")) for r in done]
    value: Record = {
        "command": f"koala-nb train study --config {config}",
        "budget": asdict(BUDGET[config]),
        "prompts_a_kind": PROMPTS,
        "held_out_scenes": HELD_OUT_BATCHES * 64,
        "teacher": load("nano-sdxl", device="cpu").model_info.revision,
        "versions": versions(),
    }
    stored = read_json(path) if path.is_file() else {"budget": {}, "runs": []}
    same = stored["budget"].items() <= value["budget"].items() and all(
        stored.get(key) == value[key] for key in ("prompts_a_kind", "held_out_scenes", "teacher")
    )
    kept = [run for run in stored["runs"] if same and run_of(run) not in done]
    return write_json(path, {**value, "runs": kept + results})
