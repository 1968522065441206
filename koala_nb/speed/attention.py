"""`koala-nb benchmark attention`: what a capture of attention costs, as ratios in one run.

Ways of capturing take turns in one process, so that the machine's moods hit all alike. Extra memory
is the peak of live tensors less that of the same generation without capture.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from koala_nb.attention.capture import capture_attention
from koala_nb.core.options import at_least, writable
from koala_nb.models.load import load
from koala_nb.models.unet import build_unet, meta_inputs
from koala_nb.speed.timing import LiveBytes, ratio_interval, write_result

if TYPE_CHECKING:
    from koala_nb.models.load import Pipeline

Way = Callable[[Any], AbstractContextManager]


def attention_map_diffusers(**options: Any) -> Way:
    """Return attention-map-diffusers' own capture with its maps computed at the end."""
    from attention_map_diffusers import AttentionCapture

    class Computed(AttentionCapture):
        def __exit__(self, *error: Any) -> Any:
            found = super().__exit__(*error)
            self.maps = self.compute()
            return found

    return lambda pipe: Computed(pipe, relations="image->text", timesteps="all", **options)


def ways() -> dict[str, Way]:
    """Return the ways of capturing to compare; another library's where it is installed."""
    found: dict[str, Way] = {
        "no capture": lambda pipe: nullcontext(),
        "koala_nb, by layer": capture_attention,
        "koala_nb, merged": lambda pipe: capture_attention(pipe, keep=()),
        "koala_nb, by layer, head and step": lambda pipe: capture_attention(
            pipe, keep=("layer", "head", "step"), limit_gb=16
        ),
    }
    try:
        exact = attention_map_diffusers(heads="mean", mode="exact")
        every = attention_map_diffusers(heads="all", mode="exact")
    except ImportError:
        return found
    name = "attention-map-diffusers, all steps"
    return {**found, f"{name}, head mean": exact, f"{name}, all heads": every}


def random_pipeline(system: str, dtype: str) -> Pipeline:
    """Return a pipeline around a catalogued U-Net at full width with random weights.

    Its text encoders are left out: `draw` gives random embeddings of the right size. Speed and
    memory do not depend on the weights' values.
    """
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.manual_seed(0)
    unet = build_unet(system).to(getattr(torch, dtype)).to_empty(device="cpu")
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            weight.normal_(std=0.02) if weight.ndim > 1 else weight.fill_(name.endswith("weight"))
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
    )
    tokenizer = load("nano-koala", device="cpu").tokenizer
    tokenizer.model_max_length = 77
    pipe = StableDiffusionXLPipeline(
        vae=vae, text_encoder=None, text_encoder_2=None, tokenizer=tokenizer, tokenizer_2=None,
        unet=unet, scheduler=EulerDiscreteScheduler(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Pipeline, size: int | None, steps: int) -> torch.Tensor:
    """Return the latents of one guided image; random embeddings where there are no encoders."""
    text: dict[str, Any] = {"prompt": "a koala on a blue background"}
    if pipe.text_encoder is None:
        like, kind = meta_inputs(pipe.unet, 8, 8, 77), pipe.unet.dtype
        states = torch.randn(2, *like["encoder_hidden_states"].shape)
        pooled = torch.randn(2, *like["added_cond_kwargs"]["text_embeds"].shape)
        text = {"prompt_embeds": states[0].to(kind), "pooled_prompt_embeds": pooled[0].to(kind)}
        text |= {f"negative_{k}": v[1].to(kind) for k, v in zip(text, (states, pooled))}
    return pipe(
        **text,
        height=size,
        width=size,
        num_inference_steps=steps,
        guidance_scale=3.5,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images


def captured(pipe: Pipeline, way: Way, size: int | None, steps: int) -> tuple[float, torch.Tensor]:
    """Return the seconds of one generation inside a way of capturing, and its latents."""
    torch.manual_seed(0)
    begin = time.perf_counter()
    with way(pipe):
        latents = draw(pipe, size, steps)
    return time.perf_counter() - begin, latents


def take_turns(pipe: Pipeline, size: int | None, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Return per way the median ratio of its time to that without capture, with its interval."""
    seconds: dict[str, list[float]] = {name: [] for name in ways()}
    same = dict.fromkeys(seconds, True)
    expected = captured(pipe, ways()["no capture"], size, steps)[1]  # and a warm-up
    order = list(ways().items())
    for turn in range(repeats):
        for name, way in order[turn % len(order) :] + order[: turn % len(order)]:
            taken, latents = captured(pipe, way, size, steps)
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


def peak_bytes(pipe: Pipeline, way: Way, size: int | None, steps: int) -> int:
    """Return the peak of live tensors of one generation, beyond what was there before."""
    with LiveBytes() as live:
        captured(pipe, way, size, steps)
    return live.peak


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write `data/results/benchmark-attention-<model>.json`."""
    parser = argparse.ArgumentParser(prog="koala-nb benchmark attention", description=__doc__)
    parser.add_argument("--model", default="nano-koala", help="a model whose weights are here")
    parser.add_argument("--random", metavar="SYSTEM", help="instead: random weights, full width")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--size", type=at_least(1), default=None, help="pixels a side")
    parser.add_argument("--steps", type=at_least(1), default=10)
    parser.add_argument("--repeats", type=at_least(2), default=11)
    parser.add_argument("--out", type=writable, default=None, help="default: data/results")
    given = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(given)
    if options.random:
        pipe = random_pipeline(options.random, options.dtype)
    else:
        pipe = load(options.model, device="cpu", dtype=options.dtype)
    rows = take_turns(pipe, options.size, options.steps, options.repeats)
    base = peak_bytes(pipe, ways()["no capture"], options.size, options.steps)
    for row in rows:
        peak = peak_bytes(pipe, ways()[row["way"]], options.size, options.steps)
        row["extra_peak_mb"] = (peak - base) / 1e6
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    name = options.random or options.model
    told = vars(options)
    print(write_result(f"attention-{name}", given, told, options.out, "cpu", rows=rows))
    return 0
