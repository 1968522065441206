"""What each section of an audit measures, beside its stored large run.

Every probe is measured alike, by its prompts, scorer, estimates and headline ids: a new probe
needs no change here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from koala_nb.core import catalog, files
from koala_nb.core.files import Record, read_json, save_table
from koala_nb.models.given import NoImages
from koala_nb.probes import base
from koala_nb.probes import labels as label_files
from koala_nb.report import findings
from koala_nb.report import run as reports
from koala_nb.stats import estimates as stats
from koala_nb.stats.estimates import Estimate, estimate_id, estimate_row

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline
    from torch import nn

    from koala_nb.generation.run_folder import BatchTimes
    from koala_nb.models.load import ModelInfo
    from koala_nb.models.session import Session
    from koala_nb.probes.base import Probe

IMAGE_COLUMNS = ["section", "measure", "prompt", "seed", "value"]
DIFFERENCE = 0.1  # of a share of one half: what an audit is planned to find, with 80 % power
REPEATS = 5  # of a part, for its median time
UNKNOWN = float("nan")
AS_GIVEN = "The images are as given: there is no model to measure."
BATCHES = "mean, Student's t over batches, from three on; n counts images drawn"
MEDIAN = "bootstrap of the median; n counts repeats"


def _nothing() -> pd.DataFrame:
    return stats.estimates_frame([])


@dataclass
class Section:
    """One section's estimates, of this run and of a stored one, or what is missing.

    `estimates` and `stored` are tidy frames of the same ids; `details` are those of the findings
    and by group, of the stored run where there is one; `images` has the columns `IMAGE_COLUMNS`;
    `n` counts this run's images.
    """

    name: str
    estimates: pd.DataFrame = field(default_factory=_nothing)
    stored: pd.DataFrame = field(default_factory=_nothing)
    details: pd.DataFrame = field(default_factory=_nothing)
    n: int = 0
    why: str = ""
    file: str | None = None  # table of this run's images, or the stored results
    images: base.OptTable = None
    labels: str = "labels of its images"  # what corrected a share, for people

    @property
    def state(self) -> str:
        """Return "measured", "stored" or "not tested"."""
        if len(self.estimates):
            return "measured"
        return "stored" if len(self.stored) else "not tested"

    def best(self, id: str) -> Record | None:
        """Return the estimate of an id from more images, the stored one's where they tie."""
        rows = [
            {**row, "is_stored": frame is not self.estimates and len(self.stored) > 0}
            for frame in (self.details, self.stored, self.estimates)
            for row in base.to_jsonable(frame[frame.id == id])
        ]
        return max(rows, key=lambda row: row["n"], default=None)

    def to_dict(self) -> Record:
        """Return the section as `results.json` holds it."""
        return {
            "state": self.state,
            "n": self.n,
            "why": self.why,
            "estimates": base.to_jsonable(self.estimates),
            "stored": base.to_jsonable(self.stored),
            "details": base.to_jsonable(self.details),
            "file": self.file,
        }


def measured_section(
    probe: Probe, session: Session, n: int, folder: Path, label_table: base.OptTable = None
) -> Section:
    """Return a probe's section: about n images drawn and scored in `<folder>/<probe>`.

    label_table: labels of these images, or of the stored run's, as `labels.read` returns them.

    An interrupted one goes on there. Where the session's settings change the recipe no stored run
    is comparable, and none is shown. What the machine lacks becomes the section's `why`.
    """
    info, pipe = session.info, session.pipe
    changed = session.settings.keys() - {"batch_size"}
    section = Section(probe.name) if changed else stored_section(probe, info, label_table)
    section.labels = _labels(probe, info, label_table)
    try:  # only what a machine may lack: errors of the measurement itself are not hidden
        prompts = probe.report_prompts(info.domain)
        scorer = probe.scorer(pipe, prompts, **probe.report_options)
    except (ValueError, OSError, ImportError) as error:
        section.why = str(error).strip().splitlines()[0]
        return section
    chosen = base.subsample_prompts(prompts, n, probe.stratify)
    try:
        table = probe.measure(
            pipe,
            chosen,
            scorer,
            images=max(1, n // len(chosen)),
            first_seed=session.seeds[0],
            out=folder / probe.name,
            progress=False,
            **session.settings,
        )
    except NoImages as error:
        section.why = str(error)
        return section
    reader = f"{scorer.name} {scorer.version}"
    known = {} if label_table is None else {"labels": label_table}
    frame = probe.headline_estimates(table, known, reader)
    if section.details.empty:
        every = probe.estimates(table, known, reader)
        chosen = findings.select(every, probe.name, info.recipe.guidance or 0)
        section.details = findings.by_row(chosen)
    extra = stats.estimates_frame(probe.imageless_rows(pipe, prompts, scorer))
    extra = extra.assign(scorer=extra.scorer.where(extra.scorer != "", reader)).round(base.ROUND)
    section.estimates = pd.concat([frame, extra], ignore_index=True) if len(extra) else frame
    section.estimates = findings.by_row(section.estimates)
    section.n, section.images = len(table), images_of(probe, table)
    section.file = save_table(table, folder / f"{probe.name}.csv").name
    return section


def stored_section(probe: Probe, info: ModelInfo, label_table: base.OptTable = None) -> Section:
    """Return a section with its stored large run, where that is of the same revision."""
    stored = probe.load_results(info.name, info.revision)
    if stored is None:
        return Section(probe.name)
    table = probe.report_table(stored.table, info)
    frame = stored.estimates
    if len(table) < len(stored.table) or frame.empty:  # only a part of it is comparable
        frame = probe.headline_estimates(table, stored.instrument, stored.info["scorer"])
    every = stored.estimates
    if label_table is not None:  # the run's own, corrected again
        every = probe.estimates(stored.table, {"labels": label_table}, stored.info["scorer"])
    details = findings.by_row(findings.select(every, probe.name, info.recipe.guidance or 0))
    file = probe.results_file(info.name).name
    frame = findings.by_row(base.select(frame, *probe.headline))
    about = _labels(probe, info, label_table)
    return Section(probe.name, stored=frame, details=details, file=file, labels=about)


def _labels(probe: Probe, info: ModelInfo, given: base.OptTable) -> str:
    """Return what labels correct a probe's shares: how many, and who gave those of the project."""
    shipped = label_files.load_labels(probe.name, info.name) if given is None else None
    if (table := given if shipped is None else shipped) is None:
        return "labels of its images"
    first = table[table["pass"] == 1]
    n = len(first[first.guidance == info.recipe.guidance]) or len(first)
    who = f" by {findings.rules()['labeller']}" if shipped is not None else " given"
    return f"{n:,} labels{who}"


def images_of(probe: Probe, table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per image and measure: `IMAGE_COLUMNS`, the measure an estimate's id."""
    counted = probe.counted(table)
    frames = [
        counted[["prompt", "seed"]].assign(
            section=probe.name, measure=id, value=counted[column].astype(float)
        )
        for id, column in probe.image_values.items()
        if column in counted
    ]
    images = pd.concat(frames) if frames else pd.DataFrame(columns=IMAGE_COLUMNS)
    return images[IMAGE_COLUMNS]


def architecture(pipe: StableDiffusionXLPipeline) -> Section:
    """Return the parameters of the model's parts, counted; a count has no interval."""
    if not _modules(pipe):
        return Section("architecture", why=AS_GIVEN)
    rows = [
        estimate_row(
            estimate_id("architecture", name, "parameters"),
            f"parameters of {name}",
            Estimate(sum(p.numel() for p in part.parameters()), UNKNOWN, UNKNOWN, 1),
            method="an exact count",
            scorer="torch",
        )
        for name, part in _modules(pipe).items()
    ]
    return Section("architecture", stats.estimates_frame(rows))


def _modules(pipe: StableDiffusionXLPipeline) -> dict[str, nn.Module]:
    from torch import nn

    return {k: v for k, v in pipe.components.items() if isinstance(v, nn.Module)}


def latency(
    pipe: StableDiffusionXLPipeline, info: ModelInfo, size: int, times: BatchTimes | None = None
) -> Section:
    """Return seconds and memory of an image and its parts, at a size in pixels per side.

    Measured in a report only, so that a committed notebook stays the same; beside it, what
    `koala-nb benchmark latency` has stored for this system.
    """
    stored = {row["id"]: row for row in _benchmarked(info.name, size)}
    section = Section("latency", stored=stats.estimates_frame(stored.values()))
    if not _modules(pipe):
        return Section("latency", why=AS_GIVEN)
    if not reports.in_report():
        section.why = "" if len(section.stored) else "Measured where this runs as a report."
        return section
    if any(hasattr(part, "_hf_hook") for part in pipe.components.values()):
        section.why = "Offloaded parts move to the GPU and back: their times would count that."
        return section
    rows = list(_part_rows(pipe, info, size))
    if times:
        id, value = "latency.image.seconds", seconds_an_image(times)
        rows.insert(0, estimate_row(id, "seconds per image", value, method=BATCHES, scorer="clock"))
    section.estimates = stats.estimates_frame(rows)
    return section


def seconds_an_image(batches: BatchTimes) -> Estimate:
    """Return the mean seconds of an image; no interval from fewer than three batches."""
    sizes, times = batches
    if len(times) < 3:
        return Estimate(sum(times) / batches.images, UNKNOWN, UNKNOWN, batches.images)
    numbers = np.repeat(range(len(times)), sizes)
    return stats.clustered_mean(np.repeat(np.divide(times, sizes), sizes), numbers, (0, np.inf))


def _part_rows(pipe: StableDiffusionXLPipeline, info: ModelInfo, size: int) -> Iterator[Record]:
    from koala_nb.speed.latency import cases_of, measure

    cases = cases_of(info.name, _modules(pipe), [size], [1])
    device = files.device_name(info.device)
    for case in measure(cases, REPEATS, info.device):
        yield from _timed(case, device)


def _timed(case: Record, device: str) -> Iterator[Record]:
    if case["outcome"] != "measured":
        return
    name = case["part"] + (", with guidance" if case["guided"] else "")
    value, low, high = (1000 * case[key] for key in ("seconds", "low", "high"))
    peak = Estimate(1000 * case["peak_gb"], UNKNOWN, UNKNOWN, 1)
    time = Estimate(value, low, high, case["n"])
    id, label = estimate_id("latency", name, "milliseconds"), f"milliseconds, {name}"
    yield estimate_row(id, label, time, method=MEDIAN, scorer=device)
    id, label = estimate_id("latency", name, "peak_mb"), f"peak MB beside the weights, {name}"
    yield estimate_row(id, label, peak, method="one pass", scorer=device)


def _benchmarked(name: str, size: int) -> Iterator[Record]:
    for path in sorted((catalog.data_folder() / "results").glob("benchmark-latency-*.json")):
        stored = read_json(path)
        for case in stored["rows"]:
            if (case["system"], case["batch"]) == (name, 1) and case["size"] in (None, size):
                yield from _timed(case, str(stored["environment"]["device"]))


def stored_quality(info: ModelInfo) -> Record:
    """Return `data/results/quality-<model>.json` where it is of these weights, else {}."""
    path = catalog.data_folder() / "results" / f"quality-{info.name}.json"
    stored = read_json(path) if not {"/", "\\"} & set(info.name) and path.is_file() else {}
    return stored if stored.get("revision") == info.revision else {}


def quality(info: ModelInfo) -> Section:
    """Return the stored quality of the model, where it is of this revision of the weights."""
    stored = stored_quality(info)
    if not stored:
        return Section("quality", why="No stored quality of this revision: `koala-nb evaluate`.")
    rows = [
        estimate_row(
            estimate_id("quality", line["measure"], line["instrument"]),
            line["measure"],
            Estimate(line["value"], line["low"], line["high"], line["n"]),
            method=line.get("method", "Wilson interval"),
            scorer=line["instrument"],
        )
        for line in stored["rows"]
    ]
    return Section("quality", stored=stats.estimates_frame(rows), file=f"quality-{info.name}.json")
