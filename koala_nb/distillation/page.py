"""A student's pictures while it is distilled, beside its teacher's, on a page that stands alone."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from koala_nb.core.files import write_atomic
from koala_nb.display.page import filled_page, webp


def write_page(
    path: str | os.PathLike[str],
    prompts: Sequence[str],
    student: Mapping[int, Sequence[Image.Image]],
    teacher: Sequence[Image.Image],
    losses: Mapping[int, str] | None = None,
    banner: str | None = None,
) -> Path:
    """Write a page to choose a prompt and a training step, or to play all steps as an animation.

    student: training step -> an image per prompt; teacher: an image per prompt; losses: step -> a
    sentence. ValueError where images and prompts differ in number, or the page would be too large.
    """
    if not student or any(len(row) != len(prompts) for row in [teacher, *student.values()]):
        raise ValueError("write_page: give one image per prompt for the teacher and for each step.")
    steps = sorted(student)
    data = {
        "prompts": list(prompts),
        "steps": steps,
        "losses": [(losses or {}).get(step, "") for step in steps],
        "student": [[webp(image) for image in student[step]] for step in steps],
        "teacher": [webp(image) for image in teacher],
    }
    template = ("koala_nb.distillation", "student.html")
    return write_atomic(path, filled_page(template, data, banner, "give fewer steps"))
