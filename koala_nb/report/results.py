"""The results of an audit report: sections and their estimates, and the files that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from koala_nb.core import catalog, files
from koala_nb.models import load
from koala_nb.models.hub import read_json
from koala_nb.report import run as reports
from koala_nb.report.page import TEMPLATES
from koala_nb.stats import trends

if TYPE_CHECKING:
    import pandas as pd

    from koala_nb.stats.estimates import Estimate

SCHEMA = TEMPLATES / "results.schema.json"
VERSION = 1  # of the schema
IMAGES = "key_images.csv"  # what `sweep_page` pairs two runs by
DIFFERENCE = 0.1  # of a share of one half: what an audit is planned to find, with 80 % power
CORRELATION = 0.05  # of the images of one prompt, as in the probes' plans


@dataclass
class Section:
    """One section's results: estimates of this run and of a stored one, or what is missing."""

    name: str
    estimates: list[dict[str, Any]] = field(default_factory=list)
    stored: list[dict[str, Any]] = field(default_factory=list)
    n: int = 0  # images of this run
    why: str = ""
    file: str | None = None  # table of this run's images, or the stored results
    images: pd.DataFrame | None = None  # section, measure, prompt, seed, value

    @property
    def state(self) -> str:
        """Return "measured", "stored" or "not tested"."""
        return "measured" if self.estimates else "stored" if self.stored else "not tested"

    def best(self, name: str) -> dict[str, Any] | None:
        """Return the estimate of a name from more images, the stored one's where they tie."""
        named = [e for e in (*self.stored, *self.estimates) if e["name"] == name]
        return max(named, key=lambda e: e["n"], default=None)

    def is_stored(self, estimate: Mapping[str, Any]) -> bool:
        """Whether an estimate is the stored run's and not this one's."""
        return any(estimate is one for one in self.stored)

    def told(self) -> dict[str, Any]:
        """Return the section as `results.json` holds it."""
        found: dict[str, Any] = {"state": self.state, "n": self.n, "estimates": self.estimates}
        found |= {"why": self.why} if self.why else {}
        found |= {"stored": self.stored} if self.stored else {}
        return found | {"file": self.file}


Sections = Mapping[str, Section]


def row(
    name: str, found: Estimate, method: str, prompts: int = 0, instrument: str = ""
) -> dict[str, Any]:
    """Return an estimate as `results.json` holds it; ends that are not finite are None."""
    ends = {key: _finite(getattr(found, key)) for key in ("value", "low", "high")}
    counts = {"n": int(found.n), "prompts": prompts or int(found.n)}
    return {"name": name, **ends, **counts, "instrument": instrument, "method": method}


def _finite(value: float) -> float | None:
    """Return a number rounded for JSON, None where it is not finite."""
    return round(float(value), 6) if abs(value) < float("inf") else None


@cache
def needed() -> int:
    """Return how many independent images a verdict is planned with."""
    return trends.required_sample_size(DIFFERENCE)


def worth(estimate: Mapping[str, Any]) -> float:
    """Return how many independent images an estimate's are worth, as a probe's plan counts them."""
    prompts = estimate["prompts"]
    return trends.effective_sample_size(prompts, estimate["n"] / prompts, CORRELATION)


def results_file(kind: str, model: str) -> Path | None:
    """Return `data/results/<kind>-<model>.json` where it is there; None for a folder or hub id."""
    path = catalog.data_folder() / "results" / f"{kind}-{model}.json"
    return path if not {"/", "\\"} & set(model) and path.is_file() else None


def key_figures(sections: Sections) -> dict[str, dict[str, Any]]:
    """Return this run's estimates by name, without what one and the same number is in all runs."""
    keys = ("value", "low", "high", "n")
    return {
        e["name"]: {key: e[key] for key in keys}
        for section in sections.values() if section.images is not None or section.name == "latency"
        for e in section.estimates
    }  # fmt: skip


def collect(
    pipe: Any,
    run: Any,
    prompts: pd.DataFrame,
    chosen: Mapping[str, Any],
    n: int,
    sections: Sections,
    claims: Sequence[Mapping[str, Any]],
    summary: Sequence[str],
) -> dict[str, Any]:
    """Return all of a report that a program may want, as `results.schema.json` describes it."""
    about = load.model_info(pipe)
    return {
        "schema_version": VERSION,
        "model": {
            "system": about.name,
            "source": about.source,
            "revision": about.revision,
            "variant": about.variant,
            "dtype": about.dtype,
            "device": about.device,
            "domain": about.domain,
            "notes": list(about.notes),
        },
        "banner": files.banner(about.domain),
        "settings": {**chosen, "seeds": list(chosen["seeds"]), "n": n},
        "environment": files.environment(),
        "prompts": prompts.to_dict("records"),
        "images": len(run.images),
        "seconds_per_image": run.seconds_per_image,
        "files": {
            "page": "index.html",
            "images": "generated/images",
            "records": "generated/records.jsonl",
            "key_images": IMAGES,
            "model_card": "model_card.md",
        },
        "sections": {name: section.told() for name, section in sections.items()},
        "key_figures": key_figures(sections),
        "claims": list(claims),
        "summary": list(summary),
    }


def write(results: Mapping[str, Any], sections: Sections, folder: Path) -> list[Path]:
    """Write `results.json` and `key_images.csv` of a report; returns their paths.

    ValueError, naming the field, where the results are not as the schema describes them.
    """
    import pandas as pd

    check(results)
    frames = [s.images for s in sections.values() if s.images is not None]
    columns = ["section", "measure", "prompt", "seed", "value"]
    table = pd.concat(frames) if frames else pd.DataFrame(columns=columns)
    text = table.to_csv(index=False, lineterminator="\n")
    images = files.write_atomic(folder / IMAGES, text.encode())
    return [reports.write_results(results, folder), images]


def check(results: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the field, where results are not as the schema describes them."""
    import jsonschema

    validator = jsonschema.Draft202012Validator(read_json(SCHEMA))
    for error in validator.iter_errors(results):
        raise ValueError(f"results.json, {error.json_path}: {error.message[:300]}")
