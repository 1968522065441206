"""What a capture of attention costs, as ratios in one run, with latents compared bit for bit.

Writes `data/results/benchmark-attention-<model>.json`. Variants of capturing are interleaved in one
process. Extra memory is the peak of live tensors less that of the same generation without capture.

    python -m studies.attention --repeats 41
    python -m studies.attention --random koala-700m --dtype bfloat16 --size 512 --repeats 5

Some minutes each on two CPU cores; the second takes about 10 GB of memory.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from koala_nb.attention.capture import capture_attention
from koala_nb.models.load import load
from koala_nb.models.unet import build_unet, meta_inputs
from koala_nb.speed.timing import LiveBytes, filled, print_rows, write_result
from koala_nb.stats.estimates import ratio_interval

if TYPE_CHECKING:
    from koala_nb.models.load import Pipeline

Variant = Callable[[Any], AbstractContextManager]


def attention_map_diffusers(**options: Any) -> Variant:
    """Return attention-map-diffusers' own capture with its maps computed at the end."""
    from attention_map_diffusers import AttentionCapture

    class Computed(AttentionCapture):
        def __exit__(self, *error: Any) -> Any:
            result = super().__exit__(*error)
            self.maps = self.compute()
            return result

    return lambda pipe: Computed(pipe, relations="image->text", timesteps="all", **options)


def variants() -> dict[str, Variant]:
    """Return the variants of capturing to compare; another library's where it is installed."""
    ours: dict[str, Variant] = {
        "no capture": lambda pipe: nullcontext(),
        "koala_nb, by layer": capture_attention,
        "koala_nb, merged": lambda pipe: capture_attention(pipe, keep_axes=()),
        "koala_nb, by layer, head and step": lambda pipe: capture_attention(
            pipe, keep_axes=("layer", "head", "step"), limit_gb=16
        ),
    }
    try:
        exact = attention_map_diffusers(heads="mean", mode="exact")
        every = attention_map_diffusers(heads="all", mode="exact")
    except ImportError:
        return ours
    name = "attention-map-diffusers, all steps"
    return {**ours, f"{name}, head mean": exact, f"{name}, all heads": every}


def random_pipeline(system: str, dtype: str) -> Pipeline:
    """Return a pipeline around a catalogued U-Net at full width with random weights.

    Its text encoders are left out: `draw` gives random embeddings of the right size. Speed and
    memory do not depend on the weights' values.
    """
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.manual_seed(0)
    unet = filled(build_unet(system), dtype)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
    )
    tokenizer = load("nano-koala", device="cpu").tokenizer
    tokenizer.model_max_length = 77
    absent = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer_2"))
    scheduler = EulerDiscreteScheduler()
    pipe = StableDiffusionXLPipeline(
        vae=vae, unet=unet, scheduler=scheduler, tokenizer=tokenizer, **absent
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Pipeline, size: int | None, steps: int) -> torch.Tensor:
    """Return the latents of one guided image; random embeddings where there are no encoders."""
    text: dict[str, Any] = {"prompt": "a koala on a blue background"}
    if pipe.text_encoder is None:
        like, dtype = meta_inputs(pipe.unet, 8, 8, 77), pipe.unet.dtype
        states = torch.randn(2, *like["encoder_hidden_states"].shape)
        pooled = torch.randn(2, *like["added_cond_kwargs"]["text_embeds"].shape)
        text = {"prompt_embeds": states[0].to(dtype), "pooled_prompt_embeds": pooled[0].to(dtype)}
        text |= {f"negative_{k}": v[1].to(dtype) for k, v in zip(text, (states, pooled))}
    return pipe(
        **text,
        height=size,
        width=size,
        num_inference_steps=steps,
        guidance_scale=3.5,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images


def captured(
    pipe: Pipeline, variant: Variant, size: int | None, steps: int
) -> tuple[float, torch.Tensor]:
    """Return the seconds of one generation inside a variant of capturing, and its latents."""
    torch.manual_seed(0)
    begin = time.perf_counter()
    with variant(pipe):
        latents = draw(pipe, size, steps)
    return time.perf_counter() - begin, latents


def compare(pipe: Pipeline, size: int | None, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Return one row per variant: median ratio of its time to that without capture."""
    seconds: dict[str, list[float]] = {name: [] for name in variants()}
    same = dict.fromkeys(seconds, True)
    expected = captured(pipe, variants()["no capture"], size, steps)[1]  # and a warm-up
    order = list(variants().items())
    for turn in range(repeats):
        for name, variant in order[turn % len(order) :] + order[: turn % len(order)]:
            taken, latents = captured(pipe, variant, size, steps)
            seconds[name].append(taken)
            same[name] &= torch.equal(latents, expected)
    base = seconds["no capture"]
    rows = []
    for name, values in seconds.items():
        ratio = ratio_interval(values, base)
        row = {"way": name, "seconds": float(np.median(values)), "ratio": ratio.value}
        if ratio.high > ratio.low:
            row |= {"low": ratio.low, "high": ratio.high}
        rows.append({**row, "n": repeats, "same_latents": same[name]})
    return rows


def peak_bytes(pipe: Pipeline, variant: Variant, size: int | None, steps: int) -> int:
    """Return the peak of live tensors of one generation, on top of what was there before."""
    with LiveBytes() as live:
        captured(pipe, variant, size, steps)
    return live.peak


def main(argv: Sequence[str]) -> int:
    """Measure and write `data/results/benchmark-attention-<model>.json`."""
    parser = argparse.ArgumentParser(prog="python -m studies.attention", description=__doc__)
    parser.add_argument("--model", default="nano-koala", help="a model whose weights are here")
    parser.add_argument("--random", metavar="SYSTEM", help="instead: random weights, full width")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--size", type=int, default=None, help="pixels per side")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--out", type=Path, default=None, help="default: data/results")
    options = parser.parse_args(argv)
    if options.random:
        pipe = random_pipeline(options.random, options.dtype)
    else:
        pipe = load(options.model, device="cpu", dtype=options.dtype)
    rows = compare(pipe, options.size, options.steps, options.repeats)
    base = peak_bytes(pipe, variants()["no capture"], options.size, options.steps)
    for row in rows:
        peak = peak_bytes(pipe, variants()[row["way"]], options.size, options.steps)
        row["extra_peak_mb"] = (peak - base) / 1e6
    print_rows(rows)
    name = f"attention-{options.random or options.model}"
    command = " ".join(["python -m studies.attention", *argv])
    print(write_result(name, command, vars(options), options.out, "cpu", rows=rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
