"""Pictures of one prompt over steps, guidance and seeds, on a page that stands alone."""

import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from koala_nb.core.files import banner, write_atomic
from koala_nb.display.page import filled_page, webp
from koala_nb.generation.generate import generate
from koala_nb.models.load import Pipeline, model_info

STEPS, GUIDANCES = (1, 2, 4, 7, 10, 25), (1.0, 2.0, 3.5, 7.0, 12.0)


def write_page(
    path: str | os.PathLike[str],
    pipe: Pipeline,
    prompt: str,
    seeds: Iterable[int] = range(4),
    steps: Sequence[int] = STEPS,
    guidances: Sequence[float] = GUIDANCES,
    size: int | None = None,
) -> Path:
    """Draw a prompt at each number of steps, guidance and seed; write a page to choose among them.

    `size`: pixels per side. ValueError as of `generate`, or where the page would be too large.
    """
    seeds = list(seeds)
    drawn = [
        [
            generate(pipe, prompt, seeds, steps=n, guidance=g, height=size, width=size).images
            for g in guidances
        ]
        for n in steps
    ]
    info = model_info(pipe)
    data = {
        "steps": list(steps),
        "guidance": list(guidances),
        "seed": seeds,
        "pictures": [[[webp(image) for image in run] for run in row] for row in drawn],
    }
    texts = {"prompt": escape(prompt), "model": escape(info.label)}
    template, advice = ("koala_nb.generation", "knobs.html"), "give fewer values"
    page = filled_page(template, data, banner(info.domain), advice, **texts)
    return write_atomic(path, page)
