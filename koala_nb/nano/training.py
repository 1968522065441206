"""`koala-nb train`: one command a stage, resumable, on as many processes as there are devices."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from koala_nb.core.errors import unknown_name
from koala_nb.core.files import locked
from koala_nb.nano.presets import Preset, find_preset

STAGES = (
    *("vae", "decoder", "text", "latents", "clip"),
    *("direct", "start", "teacher", "student", "control"),
)
# Of a family.
ALL_STAGES = ("vae", "text", "latents", "clip", "start", "teacher", "student", "control")


def train(
    config: str = "small",
    stages: Sequence[str] = (),
    minutes: float | None = None,
    folder: Path = Path("runs"),
    device: str | None = None,
    processes: int | None = None,
) -> int:
    """Train stages, by default all in order; return 0 when all are finished, 3 when time ran out.

    minutes: stop after so long; folder: of checkpoints and logs; processes: by default one per CPU
    core or GPU. ValueError for an unknown configuration or stage.
    """
    preset = find_preset(config)
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise unknown_name("stage", unknown[0], STAGES)
    if not stages:
        stages = ALL_STAGES if preset.scenes else ("vae", "decoder", "clip", "teacher", "student")
    if "LOCAL_RANK" not in os.environ:
        processes = processes or _default_processes(device)
        if processes > 1:
            options = ["--config", config, "--folder", str(folder)]
            options += [word for stage in stages for word in ("--stage", stage)]
            options += ["--minutes", str(minutes)] if minutes else []
            options += ["--device", device] if device else []
            code = _launch(options, processes, device)
            return code or (0 if _finished(folder / config, stages, preset) else 3)
    import torch

    if "LOCAL_RANK" in os.environ:
        torch.set_num_threads(1)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    is_first = os.environ.get("RANK", "0") == "0"
    for name in stages:
        place = folder / config / _places(name, preset)[0]
        with locked(place) if is_first else nullcontext():
            finished = _run(name, preset, folder / config, device, minutes)
        if not finished:
            # A launcher would report any other code than 0 as a crash.
            return 0 if "LOCAL_RANK" in os.environ else 3
    return 0


def _finished(folder: Path, stages: Sequence[str], preset: Preset) -> bool:
    """Whether every stage has left the mark of its end."""
    places = [place for name in stages for place in _places(name, preset)]
    return all((folder / place / "finished").is_file() for place in places)


def _places(name: str, preset: Preset) -> list[str]:
    """Return the folders of a stage."""
    places = {"student": ["student"] if preset.scenes else ["nano-koala-large", "nano-koala"]}
    places["latents"] = ["scenes", "start-scenes"]
    return places.get(name, [name])


def _run(
    name: str, preset: Preset, folder: Path, device: str | None, minutes: float | None
) -> bool:
    from koala_nb.core.catalog import data_folder

    limits = (device, minutes)
    if name in ("vae", "decoder"):
        from koala_nb.nano.train_vae import train_vae

        trained = folder / "vae" / "vae" if name == "decoder" else None
        return train_vae(preset, folder / name, *limits, trained=trained)
    if name == "text":
        from koala_nb.nano.train_text import train_text

        return train_text(preset, folder / "text", *limits)
    if preset.scenes and name == "latents":
        return _encode(preset, folder, device)
    if preset.scenes and name in ("start", "teacher", "student", "control"):
        from koala_nb.nano.train_family import train_family

        return train_family(preset, folder / name, name, *limits)
    if name == "clip":
        from koala_nb.nano.train_clip import train_clip

        return train_clip(preset, folder / "clip", *limits)
    from koala_nb.nano.train_unet import train_unet

    if name != "student":
        system = "nano-sdxl" if name == "teacher" else "nano-koala"
        return train_unet(preset, folder / name, system, name, *limits)
    teacher = data_folder() / "models" / "nano-sdxl"
    return all(
        train_unet(preset, folder / system, system, name, *limits, teacher=teacher)
        for system in ("nano-koala-large", "nano-koala")
    )


def _encode(preset: Preset, folder: Path, device: str | None) -> bool:
    """Encode the training scenes, each process its share; all wait for the last one."""
    import torch
    from accelerate import PartialState
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

    from koala_nb.nano.latents import SHARD, Encoder, encode_scenes, padded
    from koala_nb.nano.models import pick_device
    from koala_nb.nano.train_vae import latest_vae

    tokenizer = CLIPTokenizer.from_pretrained(folder / "text" / "tokenizer")
    vae = AutoencoderKL.from_pretrained(latest_vae(folder)).to(pick_device(device))
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    for place, size in (("start-scenes", preset.for_start()), ("scenes", preset)):
        encoder = Encoder(size, padded(tokenizer, preset.max_length), vae)
        shards = range(size.scenes // SHARD)
        encode_scenes(encoder, folder / place, shards, state.process_index, state.num_processes)
        state.wait_for_everyone()
        (folder / place / "finished").touch()
    return True


def _default_processes(device: str | None) -> int:
    import torch

    if torch.cuda.is_available() and device != "cpu":
        return torch.cuda.device_count()
    return min(os.cpu_count() or 1, 4)


def _launch(options: Sequence[str], processes: int, device: str | None) -> int:
    """Start the command again in several processes (on a CPU, one thread each is fastest)."""
    import torch

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if device == "cpu" or not torch.cuda.is_available():
        environment["ACCELERATE_USE_CPU"] = "true"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", "-m", "koala_nb", "train", *options]
    return subprocess.call(command, env=environment)
