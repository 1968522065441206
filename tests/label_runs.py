"""Runs in memory for the tests of labelling."""

import pandas as pd
from PIL import Image

from koala_nb.generation.run_folder import Run

PROMPT = "a portrait of a judge"


def run_of(n, guidance=1.0, first=0, prompts=4):
    """Return a run in memory whose image k has the grey level k."""
    records = [
        {"file": f"images/{k:05d}.png", "prompt_index": k % prompts, "prompt": PROMPT,
         "seed": first + k, "guidance": guidance}
        for k in range(n)
    ]  # fmt: skip
    images = []
    for k in range(n):
        image = Image.new("RGB", (8, 8), (first + k,) * 3)
        image.info["koala_nb"] = PROMPT  # as an opened PNG with its record has it
        image.info["comment"] = PROMPT  # which a JPEG would take over
        images.append(image)
    return Run(images, pd.DataFrame(records))
