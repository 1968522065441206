"""`koala-nb probe demographics`: whom does a model draw when the prompt does not say?

Occupations in neutral words at two guidances, counterfactual pairs, descriptors that should not
matter, intersectional groups; perceived presentation and skin tone by two instruments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from koala_nb.core.catalog import data_folder
from koala_nb.core.files import banner, environment, read_json, write_json
from koala_nb.core.options import probe_parser
from koala_nb.models.load import load, model_info
from koala_nb.probes import base, labels
from koala_nb.probes import bias_estimates as estimates
from koala_nb.probes import bias_report as report
from koala_nb.stats import simulation

if TYPE_CHECKING:
    from PIL import Image

NAME = "demographics"
READINGS = ("presentation_", "tone_")


@dataclass(frozen=True)
class Setting:
    """One run of the probe: which parts of the prompt set, how many images, with what changed."""

    parts: tuple[str, ...]
    images: int  # a prompt
    same_seeds: bool = False  # for paired contrasts only
    recipe: dict[str, Any] = field(default_factory=dict)


RUNS = {
    "g3.5": Setting(("neutral",), 10),
    "g1": Setting(("neutral",), 10, recipe={"guidance": 1.0}),
    "paired": Setting(("unspecified", "counterfactual", "descriptor"), 4, same_seeds=True),
    "intersectional": Setting(("intersectional",), 2),
    "unspecified": Setting(("unspecified",), 4, same_seeds=True),  # a part of "paired"
}
FULL = ("g3.5", "g1", "paired", "intersectional")


def prompts(domain: str) -> pd.DataFrame:
    """Return the prompt set of a domain."""
    return base.read_prompts(base.prompt_file(NAME, domain))


class Readers:
    """Several readers of people as one scorer; a reading that is missing is "unsure"."""

    def __init__(self, readers: Sequence[base.Scorer]) -> None:
        self.readers = list(readers)
        self.name = " and ".join(reader.name for reader in readers)
        self.version = "; ".join(f"{reader.name} {reader.version}" for reader in readers)

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Return one dictionary an image: presentation by each reader, face, skin tone."""
        rows: list[dict[str, Any]] = [{} for _ in images]
        for reader in self.readers:
            for row, read in zip(rows, reader.score(images, prompts), strict=True):
                row |= {k: v for k, v in read.items() if k != "probability"}
        for row in rows:
            monk = row.get("monk")
            row["tone_monk"] = labels.UNSURE if monk is None else str(monk)
        return rows


def make_scorer(pipe: Any, folder: str = "") -> base.Scorer:
    """Return the domain's instruments; `folder` holds another CLIP, or names one on the hub.

    ValueError in one sentence where a photographic model's readers are not installed.
    """
    if model_info(pipe).domain == "emoji-world" and not folder:
        from koala_nb.nano.people import PeopleReader

        return PeopleReader(pipe.default_sample_size * pipe.vae_scale_factor)
    from koala_nb.scorers import faces

    return Readers(faces.readers(folder))


def reference(domain: str) -> pd.DataFrame:
    """Return what the shares are compared with, by `reference`: columns women, women_other.

    Emoji world: planted given a neutral caption, and over all captions. Photographic: the share of
    women among US workers in 2022 and in 2019, the source's two years.
    """
    if domain == "emoji-world":
        from koala_nb.nano.people import planted

        return planted().rename(columns={"women_all": "women_other"})
    table = pd.read_csv(data_folder() / "reference" / "women_share_bls.csv")
    years = {"women_2022": "women", "women_2019": "women_other"}
    found = table.rename(columns={"occupation": "reference", **years})
    found[["women", "women_other"]] /= 100
    return found[["reference", "women", "women_other"]]


def plan(occupations: int, a_prompt: int, images: int) -> str:
    """Return what an audit of so many prompts and images a prompt can find in one occupation."""
    needed = estimates.planned(occupations)
    worth = estimates.trends.effective_sample_size(a_prompt, images, estimates.CORRELATION)
    found = power(occupations, a_prompt, images)
    told = "enough" if found >= 0.8 else "too few for 80 %"
    told = "too few: there will be no verdict" if worth < needed else told
    return (
        f"{base.plan(a_prompt, images)} That is one of {occupations} occupations. After Holm's "
        f"correction, with a reader that never errs, .75 is told from .50 in {100 * found:.0f} % "
        f"of simulated audits ({told}), and with yours in no more; below {needed} independent "
        "images there is no verdict."
    )


def power(
    occupations: int, a_prompt: int, images: int, errors: np.ndarray | None = None
) -> float:  # fmt: skip
    """Return how often such an audit finds the planned difference, after Holm, by simulation.

    `errors` is a reader's confusion, as `bias_estimates.confusion` returns it; None: none.
    """
    share = 0.5 + estimates.DIFFERENCE
    design = a_prompt, images
    return simulation.claim_power(occupations, design, estimates.CORRELATION, share, errors)


def measure(
    pipe: Any, asked: pd.DataFrame, scorer: base.Scorer, setting: Setting, **more: Any
) -> pd.DataFrame:
    """Draw and score one setting's part of a prompt set; as `base.measure`, with `guidance`."""
    own = asked[asked.part.isin(setting.parts)].reset_index(drop=True)
    given = {"images": setting.images, "same_seeds": setting.same_seeds, **setting.recipe, **more}
    table = base.measure(pipe, own, scorer, **given)
    guidance = given.get("guidance") or model_info(pipe).recipe.guidance
    table.insert(len(own.columns), "guidance", float(guidance or 0))
    return table


def run_folder(pipe: Any, run: str) -> Path:
    """Return where a run's images are; other weights, another folder."""
    about = model_info(pipe)
    name = about.name.replace("/", "--")
    return Path("runs") / f"probe-{NAME}-{name}-{str(about.revision)[-8:]}-{run}"


def saved(model: str, revision: str | None = "") -> pd.DataFrame | None:
    """Return the table of the large run, or None; what was not asked for is None.

    None also where a `revision` is given and the run is of other weights of that name.
    """
    found = base.load_table(NAME, model) if _told(model, revision) else None
    return None if found is None else found.astype(object).where(found.notna(), None)


def saved_estimates(model: str, revision: str | None = "") -> dict[str, Any]:
    """Return the estimates of the large run, the calibration among them; {} as `saved` is None."""
    return _told(model, revision).get("estimates", {})


def saved_labels(model: str, revision: str | None) -> pd.DataFrame | None:
    """Return the labels of the large run's images; None for other weights, which drew others."""
    return labels.saved(NAME, model) if _told(model, revision) else None


def _told(model: str, revision: str | None) -> dict[str, Any]:
    path = data_folder() / "results" / f"probe-{NAME}-{model}.json"
    told = read_json(path) if path.is_file() else {}
    return told if revision in ("", told.get("revision")) else {}


def series(domain: str, column: str = "women") -> Mapping[str, float]:
    """Return the reference's share of women by its key; `women_other` for the other reading."""
    found = reference(domain)
    return dict(zip(found.reference, found[column]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the probe at its full size; resumable in `runs/`; writes its table and estimates."""
    parser = probe_parser(NAME, 0, fewest=0)
    parser.add_argument("--runs", default=",".join(FULL), help=f"some of {','.join(RUNS)}")
    parser.add_argument("--scorer", default="", help="a CLIP by name or folder")
    parser.add_argument("--teacher", default="", help="a model whose table is compared with")
    options = parser.parse_args(argv)
    if unknown := [name for name in options.runs.split(",") if name not in RUNS]:
        parser.error(f"--runs: {unknown[0]!r} is none of {', '.join(RUNS)}")
    pipe = load(options.model)
    about = model_info(pipe)
    asked, scorer = prompts(about.domain), make_scorer(pipe, options.scorer)
    tables = []
    for name in options.runs.split(","):
        setting = RUNS[name]
        own = base.subsample_prompts(
            asked[asked.part.isin(setting.parts)], options.prompts, "occupation"
        )
        images = options.images or setting.images
        if "neutral" in setting.parts:
            each = own.groupby("occupation").size()
            print(f"{name}: {plan(len(each), int(each.max()), images)}")
        how = {"images": images, "first_seed": options.seed, "out": run_folder(pipe, name)}
        tables.append(measure(pipe, own, scorer, setting, **how))
    table = pd.concat(tables, ignore_index=True)
    held = saved_labels(about.name, about.revision)
    told = [f"--{k}={v}" for k, v in vars(options).items() if v and k != "out"]
    result = {
        "command": " ".join([f"koala-nb probe {NAME}", *told]),
        "model": about.name,
        "revision": about.revision,
        "banner": banner(about.domain),
        "scorer": f"{scorer.name} {scorer.version}",
        "environment": environment(),
        "estimates": base.to_jsonable(report.estimates(
            table, series(about.domain), series(about.domain, "women_other"), held,
            saved(options.teacher) if options.teacher else None,
        )),
    }  # fmt: skip
    if hasattr(scorer, "matcher") and (table.part == "neutral").any():
        from koala_nb.nano.people import calibrate

        result["estimates"]["instrument"] = base.to_jsonable(calibrate(scorer, pipe.vae.float()))  # type: ignore[arg-type]
    place = options.out or data_folder() / "results"
    place.mkdir(parents=True, exist_ok=True)
    stem = f"probe-{NAME}-{about.name.replace('/', '--')}"
    base.save_table(table, place / f"{stem}.csv")
    print(write_json(place / f"{stem}.json", result))
    return 0
