"""`koala-nb train`: one command a stage, resumable, on as many processes as there are devices."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from koala_nb.core.options import at_least, positive, writable
from koala_nb.nano.presets import PRESETS, Preset

STAGES = ("vae", "decoder", "text", "latents", "clip", "direct", "teacher", "student", "control")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(prog="koala-nb train", description=__doc__)
    parser.add_argument("--config", choices=PRESETS, default="small")
    parser.add_argument("--stage", choices=STAGES, action="append", help="default: all, in order")
    parser.add_argument("--minutes", type=positive, help="stop after so long; call again to go on")
    parser.add_argument(
        "--folder", type=writable, default=Path("runs"), help="checkpoints and logs"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None)
    parser.add_argument(
        "--processes", type=at_least(1), default=None, help="default: one a CPU core or GPU"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train the stages named in `argv`; return 0 when all are finished, 3 when time ran out."""
    options = parser().parse_args(argv)
    stages = options.stage or ["vae", "decoder", "clip", "teacher", "student"]
    if PRESETS[options.config].scenes and not options.stage:
        stages = ["vae", "text", "latents", "clip", "teacher", "student", "control"]
    if "LOCAL_RANK" not in os.environ:
        processes = options.processes or _default_processes(options.device)
        if processes > 1:
            code = _launch(list(sys.argv[1:] if argv is None else argv), processes, options.device)
            return code or (0 if _finished(options.folder / options.config, stages) else 3)
    import torch

    if "LOCAL_RANK" in os.environ:
        torch.set_num_threads(1)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    preset, folder = PRESETS[options.config], options.folder / options.config
    for name in stages:
        if not _run(name, preset, folder, options):
            # A launcher would report any other code than 0 as a crash.
            return 0 if "LOCAL_RANK" in os.environ else 3
    return 0


def _finished(folder: Path, stages: list[str]) -> bool:
    """Whether every stage has left the mark of a finished loop."""
    return all(
        (folder / ("nano-koala" if stage == "student" else stage) / "finished").is_file()
        for stage in stages
    )


def _run(name: str, preset: Preset, folder: Path, options: argparse.Namespace) -> bool:
    from koala_nb.core.catalog import data_folder

    limits = (options.device, options.minutes)
    if name in ("vae", "decoder"):
        from koala_nb.nano.train_vae import train_vae

        trained = folder / "vae" / "vae" if name == "decoder" else None
        return train_vae(preset, folder / name, *limits, trained=trained)
    if name == "text":
        from koala_nb.nano.train_text import train_text

        return train_text(preset, folder / "text", *limits)
    if preset.scenes and name == "latents":
        return _encode(preset, folder, options)
    if preset.scenes and name in ("teacher", "student", "control"):
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


def _encode(preset: Preset, folder: Path, options: argparse.Namespace) -> bool:
    """Encode the training scenes, each process its share."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

    from koala_nb.nano.latents import SHARD, Encoder, encode_scenes, padded
    from koala_nb.nano.models import pick_device
    from koala_nb.nano.train_vae import latest_vae

    tokenizer = CLIPTokenizer.from_pretrained(folder / "text" / "tokenizer")
    vae = AutoencoderKL.from_pretrained(latest_vae(folder)).to(pick_device(options.device))
    encoder = Encoder(preset, padded(tokenizer, preset.max_length), vae)
    rank, of = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1)))
    encode_scenes(encoder, folder / "scenes", range(preset.scenes // SHARD), rank, of)
    return True


def _default_processes(device: str | None) -> int:
    import torch

    if torch.cuda.is_available() and device != "cpu":
        return torch.cuda.device_count()
    return min(os.cpu_count() or 1, 4)


def _launch(argv: list[str], processes: int, device: str | None) -> int:
    """Start the command again in several processes (on a CPU, one thread each is fastest)."""
    import torch

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if device == "cpu" or not torch.cuda.is_available():
        environment["ACCELERATE_USE_CPU"] = "true"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", "-m", "koala_nb.nano.training", *argv]
    return subprocess.call(command, env=environment)


if __name__ == "__main__":
    sys.exit(main())
