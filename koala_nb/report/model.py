"""What the audit report says of the model itself: size, speed, stored quality, attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from koala_nb.core import catalog, files
from koala_nb.generation.run_folder import Drawn
from koala_nb.models import load
from koala_nb.models.hub import read_json
from koala_nb.report import run as reports
from koala_nb.report.results import Section, results_file, row
from koala_nb.stats import estimates
from koala_nb.stats.estimates import Estimate

REPEATS = 5  # of a part, for its median time
WORDS = 5  # of a prompt, whose maps are shown
UNKNOWN = float("nan")
BATCHES = "mean, Student's t over batches, from three on; n counts images drawn"
FISHER = "Fisher's interval of a correlation; n counts occupations"
MEDIAN = "bootstrap of the median; n counts repeats"


def architecture(pipe: Any) -> Section:
    """Return the parameters of the model's parts, counted; a count has no interval."""
    from torch import nn

    parts = {k: v for k, v in pipe.components.items() if isinstance(v, nn.Module)}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    rows = [
        row(f"parameters of {name}", Estimate(count, UNKNOWN, UNKNOWN, 1), "an exact count", 1,
            "torch")
        for name, count in counts.items()
    ]  # fmt: skip
    return Section("architecture", rows)


def latency(pipe: Any, run: Any, size: int) -> Section:
    """Return seconds and memory of an image and its parts at a size in pixels.

    Measured in a report only, so that a committed notebook stays the same; elsewhere, and beside
    it, what `koala-nb benchmark latency` has stored for this system.
    """
    about = load.model_info(pipe)
    section = Section("latency", stored=list(_benchmarked(about.name, size)))
    if not reports.in_report():
        section.why = "" if section.stored else "Measured where this runs as a report."
        return section
    if any(hasattr(part, "_hf_hook") for part in pipe.components.values()):
        section.why = "Offloaded parts move to the GPU and back: their times would count that."
        return section
    if run.drawn:
        section.estimates.append(row("seconds an image", _an_image(run.drawn), BATCHES, 1, "clock"))
    section.estimates += _parts(pipe, about, size)
    return section


def _an_image(drawn: Drawn) -> Estimate:
    """Return the mean seconds of an image; no interval from fewer than three batches."""
    if len(drawn.times) < 3:
        return Estimate(drawn.seconds / drawn.images, UNKNOWN, UNKNOWN, drawn.images)
    batches = range(len(drawn.times))
    each = np.divide(drawn.times, drawn.sizes)
    return estimates.clustered_mean(np.repeat(each, drawn.sizes), np.repeat(batches, drawn.sizes))


def _parts(pipe: Any, about: load.ModelInfo, size: int) -> Iterator[dict[str, Any]]:
    from torch import nn

    from koala_nb.speed.latency import cases_of, measure

    modules = {k: v for k, v in pipe.components.items() if isinstance(v, nn.Module)}
    cases = cases_of(about.name, modules, [size], [1])
    device = files.device_name(about.device)
    for case in measure(cases, REPEATS, about.device):
        yield from _timed(case, device)


def _timed(case: Mapping[str, Any], device: str) -> Iterator[dict[str, Any]]:
    if case["outcome"] != "measured":
        return
    name = case["part"] + (", with guidance" if case["guided"] else "")
    value, low, high = (1000 * case[key] for key in ("seconds", "low", "high"))
    found = Estimate(value, low, high, case["n"])
    yield row(f"milliseconds, {name}", found, MEDIAN, 1, device)
    peak = Estimate(1000 * case["peak_gb"], UNKNOWN, UNKNOWN, 1)
    yield row(f"peak MB beside the weights, {name}", peak, "one pass", 1, device)


def _benchmarked(name: str, size: int) -> Iterator[dict[str, Any]]:
    for path in sorted((catalog.data_folder() / "results").glob("benchmark-latency-*.json")):
        found = read_json(path)
        for case in found["rows"]:
            if (case["system"], case["batch"]) == (name, 1) and case["size"] in (None, size):
                yield from _timed(case, str(found["environment"]["device"]))


def quality(pipe: Any) -> Section:
    """Return the stored quality of the model, where it is of this revision of the weights."""
    about = load.model_info(pipe)
    path = results_file("quality", about.name)
    told = read_json(path) if path else {}
    if not path or told.get("revision") != about.revision:
        return Section("quality", why="No stored quality of this revision: `koala-nb evaluate`.")
    rows = [
        row(f"{line['measure']}, by {line['instrument']}",
            Estimate(line["value"], line["low"], line["high"], line["n"]),
            FISHER if ", r," in line["measure"] else "Wilson interval", 0, line["instrument"])
        for line in told["rows"]
    ]  # fmt: skip
    return Section("quality", stored=rows, file=path.name)


def show_attention(pipe: Any, prompt: str, seed: int, **recipe: Any) -> None:
    """Draw one image of a prompt and show where its longest words are attended to.

    Prints what is missing where the attention of this pipeline cannot be captured.
    """
    from koala_nb.attention import page
    from koala_nb.attention.capture import CannotCapture, capture_attention
    from koala_nb.display import figures
    from koala_nb.generation.generate import generate

    try:
        with capture_attention(pipe, keep_axes=()) as attention:
            image = generate(pipe, [prompt], [seed], progress=False, **recipe).images[0]
    except CannotCapture as error:
        print(f"Not shown: {error}")
        return
    maps = attention.words(prompt)
    words = _longest(maps.texts)
    shown = [image, *(page.overlay(image, maps[word]) for word in words)]
    figure = figures.gallery(shown, ["the image", *words], columns=WORDS + 1)
    places = "; ".join(f"{word}: {page.place(maps[word])}" for word in words)
    alt = f"{prompt}, seed {seed}: where each word's attention is largest. {places}."
    figures.show(figure, alt, colours=256 if image.width <= 256 else None)


def _longest(texts: Sequence[str]) -> list[str]:
    """Return the longest different words of a prompt, in their order; marks are left out."""
    words = [text for text in dict.fromkeys(texts) if text.isalnum()]
    kept = sorted(words, key=len, reverse=True)[:WORDS]
    return [word for word in words if word in kept]
