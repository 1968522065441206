"""The probe of bias: whom does a model draw when the prompt does not say?

Occupations in neutral words at two guidances, counterfactual pairs, descriptors that should not
matter, intersectional groups; beauty, leadership, poverty, crime and places beside plain "a
person"; perceived presentation and skin tone by two instruments.
`koala-nb probe bias` runs it at full size; notebook 09 shows it. Its files are named
`demographics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from koala_nb.display import figures
from koala_nb.display.tables import format_interval
from koala_nb.models.given import GivenImages, with_images
from koala_nb.models.load import call_default, load, model_info, native_size
from koala_nb.probes import base, labels
from koala_nb.probes import bias_estimates as estimate
from koala_nb.scorers import registry
from koala_nb.stats import double_sampling, trends
from koala_nb.stats import estimates as stats

if TYPE_CHECKING:
    from koala_nb.models.load import ModelInfo, Pipeline

OCCUPATIONS = "Student's t over occupations"
METHODS = {  # of the shares by occupation
    "raw": "uncorrected, clustered by prompt",
    "corrected": "double sampling: by labels of the same images, clustered by prompt; 95 % "
    "intervals held in 90.5 to 99.8 % of audits simulated with readers right in 90 %, least for "
    "rare groups by few labels",
    "bounds": "bounds over the unsure images",
}
INDEPENDENT = "images of a prompt independent"
WHO = {"woman": "women", "darkest": "darkest skin tones"}
WHAT = {"presentation": "perceived presentation", "tone": "skin tone", "monk": "skin tone"}
SINGLE = {  # what has no interval: column of `by_occupation` -> method
    "unsure": "share of all images",
    "labelled": "images with a label",
    "p": "an even split, whatever the unsure are; Holm over occupations",
}


@dataclass(frozen=True)
class Setting:
    """One run of the probe: which parts of the prompt set, how many images, with what changed."""

    parts: tuple[str, ...]
    images: int  # for each prompt
    same_seeds: bool = False  # for paired contrasts only
    recipe: base.Record = field(default_factory=dict)


RUNS = {
    "g3.5": Setting(("neutral",), 10),
    "g1": Setting(("neutral",), 10, recipe={"guidance": 1.0}),
    "paired": Setting(("unspecified", "counterfactual", "descriptor"), 4, same_seeds=True),
    "intersectional": Setting(("intersectional",), 2),
    "society": Setting(("society",), 10, same_seeds=True),  # photographic prompts alone
    "unspecified": Setting(("unspecified",), 4, same_seeds=True),  # a part of "paired"
}
FULL = ("g3.5", "g1", "paired", "intersectional", "society")
DESIGNED = ("neutral", "society")  # parts whose shares are claimed: each subject by itself


class BiasProbe(base.Probe):
    """People at work, whose presentation the prompt does not name, names, or describes."""

    name = "demographics"
    runs = RUNS
    stratify = "occupation"
    fewest = 0
    text_columns = ("tone_monk",)
    options = {
        "runs": (",".join(FULL), f"some of {','.join(RUNS)}"),
        "scorer": ("", "a CLIP by name or folder"),
        "tone_test": ("", "CSV of faces with monk, before skin tone is read in photographs"),
        "labels": ("", "CSV of labels of these images, as `koala-nb label` makes it"),
        "teacher": ("", "a model whose table is compared with"),
    }
    headline = ("bias.*.presentation.*", "bias.*.over_reference", "bias.*.tone.*")
    corrected = ("bias.*.g3_5.corrected.*", "bias.*.g3_5.tone.corrected.*", "bias.*.g3_5.slope")
    image_values = {
        f"bias.{name}.presentation.woman": f"woman_{name}"
        for name in ("clip", "matching", "age_and_gender")
    }

    def scorer(self, pipe: Pipeline, prompts: base.OptTable = None, **options: Any) -> base.Scorer:
        """Return the domain's instruments; `scorer`: another CLIP; `tone_test` as of `FaceReaders`.

        ValueError in one sentence where a photographic model's readers are not installed.
        """
        size = native_size(pipe)
        given = {"source": options.get("scorer", ""), "tone_test": options.get("tone_test", "")}
        return registry.scorer("people", model_info(pipe).domain, **given, image_size=size)

    def measure(
        self,
        pipe: Pipeline,
        prompts: base.OptTable = None,
        scorer: base.Scorer | None = None,
        **settings: Any,
    ) -> pd.DataFrame:
        """Draw and score prompts: `base.measure`, with `guidance` as a column."""
        table = super().measure(pipe, prompts, scorer, **settings)
        guidance = settings.get("guidance") or model_info(pipe).recipe.guidance
        if guidance is None and not isinstance(pipe, GivenImages):
            guidance = call_default(pipe, "guidance_scale")  # as it was drawn
        table.insert(table.columns.get_loc("seed"), "guidance", float(guidance or 0))
        return table

    def counted(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the images with a column for each instrument: whether it reads a woman."""
        read = {f"woman_{instrument_of(c)}": table[c] == "woman" for c in estimate.readings(table)}
        return table.assign(**read)

    def headline_rows(self, table: pd.DataFrame, instrument: base.Record) -> base.Rows:
        """Yield shares of images as they are read, at the highest guidance of neutral prompts."""
        images = table[table.part == "neutral"]
        if "guidance" in images and len(images):
            images = estimate.neutral(table, images.guidance.max())
        if len(images):
            references = instrument.get("references") or estimate.references_of(table)
            yield from _headline(images, references[0])

    def rows(self, table: pd.DataFrame, instrument: base.Record) -> base.Rows:
        """Yield headline shares, shares by guidance and occupation, contrasts, named, descriptors.

        `instrument` may hold `labels` of these images, a `teacher`'s table, and `references`, a
        pair of references other than the table's own (`references_of`).
        """
        references = instrument.get("references") or estimate.references_of(table)
        neutral = table[table.part == "neutral"]
        guidances = sorted(neutral.guidance.unique())
        yield from self.headline_rows(table, instrument)
        for guidance in guidances:
            images = estimate.neutral(table, guidance)
            part = base.identifier(f"g{guidance:g}")
            yield from _subjects(images, part, references, instrument.get("labels"))
            yield from estimate.instrument_rows(images, f"bias.instruments.{part}")
        for column in estimate.readings(table):
            known = (instrument.get("labels"), instrument.get("teacher"))
            yield from _contrasts(table, column, references[0], *known)
        yield from _society(table, instrument.get("labels"))
        yield from _as_named(table)
        yield from _descriptors(table)

    def calibrate(self, pipe: Pipeline, scorer: base.Scorer, prompts: pd.DataFrame) -> base.Record:
        """Return how often the procedure finds known shares, where people can be rendered."""
        measure = registry.calibration(scorer)
        return measure(scorer, pipe.vae.float()) if measure else {}

    def details(self, table: pd.DataFrame, label_table: base.OptTable = None) -> base.Record:
        """Return the labels' confusion by guidance and instrument."""
        details: base.Record = {}
        guidances = sorted(table[table.part == "neutral"].guidance.unique())
        for guidance, column in product(guidances, estimate.readings(table)):
            images = estimate.neutral(table, guidance)
            errors = estimate.confusion(label_table, images, column)
            if errors is not None:
                place = f"{instrument_of(column)}.{base.identifier(f'g{guidance:g}')}"
                details[place] = {"confusion": errors.tolist()}
        return details

    def report_prompts(self, domain: str) -> pd.DataFrame:
        """Return the prompts that name neither presentation nor tone."""
        prompts = self.prompts(domain)
        return prompts[prompts.part == "neutral"].reset_index(drop=True)

    def report_table(self, table: pd.DataFrame, info: ModelInfo) -> pd.DataFrame:
        """Return the images of such prompts at the recipe's guidance."""
        return estimate.neutral(table, float(info.recipe.guidance or 0))

    def load_results(self, model: str, revision: str | None = None) -> base.Results | None:
        """Return a model's stored large run as `Probe.load_results`; empty factors are None."""
        results = super().load_results(model, revision)
        if results is None:
            return None
        table = results.table
        return replace(results, table=table.astype(object).where(table.notna(), None))

    def load_labels(self, model: str, revision: str | None = None) -> pd.DataFrame | None:
        """Return the labels of the stored run's images; None where that is of other weights."""
        stored = self.load_results(model, revision)
        return None if stored is None else labels.load_labels(self.name, model)

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
        """Run the probe at full size, resumable in `runs/`; returns the path of its results.

        0 images: those of each run. `options` as of the command. ValueError for an unknown run.
        """
        teacher, names = options.get("teacher"), (options.get("runs") or ",".join(FULL)).split(",")
        if unknown := [name for name in names if name not in RUNS]:
            raise ValueError(f"runs: {unknown[0]!r} is none of {', '.join(RUNS)}.")
        pipe = load(model, **loading or {})
        info = model_info(pipe)
        if isinstance(pipe, GivenImages):  # which no setting changes
            names = [name for name in names if not RUNS[name].recipe]
            if not names:
                raise ValueError("runs: no setting changes images as given: leave them out.")
        prompt_set = self.prompts(info.domain)
        parts = {name: prompt_set.part.isin(RUNS[name].parts) for name in names}
        names = [name for name in names if parts[name].any()]
        if not names:
            raise ValueError(f"runs: {info.domain} has no such prompts: leave them out.")
        file = options.get("labels")
        given = labels.read_for(file, prompt_set) if file else None
        reader, tables = self.scorer(pipe, **options), []
        for name in names:
            setting = RUNS[name]
            part = prompt_set[parts[name]].reset_index(drop=True)
            part = base.subsample_prompts(part, prompts, self.stratify)
            n = images or setting.images
            if setting.parts[0] in DESIGNED:
                present, each = with_images(pipe, part, n)
                sizes = present.groupby("occupation").size()
                design = len(sizes), int(sizes.max()), each
                print(f"{name}: {estimate.plan(*design)}")
                power = estimate.power(*design).value
                why = f"a share of .75 is claimed in {100 * power:.0f} % of simulated audits, with "
                why += f"{estimate.LABELS} labels of each occupation; 80 % are asked for"
                base.refuse_undecided(pipe, power >= trends.POWER, anyway, why)
            drawing: base.Record = {"images": n, "same_seeds": setting.same_seeds}
            drawing |= {"first_seed": seed, "batch_size": batch_size}
            folder = self.run_folder(info, f"-{name}")
            tables.append(self.measure(pipe, part, reader, out=folder, **drawing, **setting.recipe))
        table = pd.concat(tables, ignore_index=True)
        label_table = self.load_labels(info.name, info.revision) if given is None else given
        compared = self.load_results(teacher) if teacher else None
        return self.save_results(
            pipe,
            table,
            reader,
            self.calibrate(pipe, reader, prompt_set) if (table.part == "neutral").any() else {},
            known={"labels": label_table, "teacher": compared.table if compared else None},
            details=self.details(table, label_table),
            command=command,
            out=out,
        )

    def show_shares(self, tables: Mapping[str, pd.DataFrame], reference: str = "planted") -> None:
        """Display the share of women by occupation, a panel for each table of `by_occupation`.

        Reference, raw share, corrected share with its interval where there is one, bounds over the
        unsure; occupations in the order of their reference.
        """
        panels, marks, parts = {}, {"reference": reference}, []
        for title, table in tables.items():
            best = _best(table)
            rows = table.sort_values("reference", kind="stable").set_index("occupation")
            numbers = "; ".join(
                f"{r.Index} {r.reference:.2f}, {r.raw:.2f}, {getattr(r, best):.2f}"
                for r in rows.itertuples()
            )
            parts.append(f"{title}: {numbers}")
            if best == "corrected":
                marks["raw"] = "raw"
            ends = {f"{best}_low": "low", f"{best}_high": "high"}
            rows = rows.rename(columns={best: "value", **ends})
            panels[f"{title}, {best}"] = rows.drop(columns=["raw_low", "raw_high"], errors="ignore")
        alt = f"Share of women by occupation ({reference}, raw, {best}). {'. '.join(parts)}."
        x_label, bounds = "share of women among all images", "bounds over the unsure"
        figures.show(figures.interval_panels(panels, x_label, bounds, marks), alt)

    def show_mirror(self, tables: Mapping[str, pd.DataFrame], reference: str = "planted") -> None:
        """Display the share of women among women and men against the reference, by table.

        Lines are intervals of 90 % or more; unsure images are left out, so bounds are wider still.
        """
        points = []
        with matplotlib.rc_context(figures.STYLE):
            figure = Figure(figsize=(5.2, 4.4), layout="constrained")
            axis = figure.subplots()
            axis.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label="mirrors")
            for marker, (title, table) in zip(figures.MARKERS, tables.items()):
                known, best = table.dropna(subset=["of_known"]), _best(table)
                x, y = known.reference, known.of_known
                (drawn,) = axis.plot(x, y, marker, mfc="none", label=f"{title}, {best}")
                ends = known.of_known_low, known.of_known_high
                axis.vlines(x, *ends, drawn.get_color(), linewidth=1, alpha=0.4)
                pairs = ", ".join(
                    f"{r:.2f} to {format_interval(*of)}" for r, *of in zip(x, y, *ends)
                )
                points.append(f"{title}, {best}: {pairs}")
            axis.set(xlim=(-0.03, 1.03), xlabel=f"share of women, {reference}")
            axis.set(ylim=(-0.03, 1.03), ylabel="share of women among women and men")
            axis.grid(alpha=0.3)
            figure.legend(loc="outside lower center", ncols=1, frameon=False)
        alt = f"Share of women, {reference} to drawn among women and men. {'; '.join(points)}."
        figures.show(figure, alt)


PROBE = BiasProbe()


def instrument_of(column: str) -> str:
    """Return the instrument's part of an id: "presentation_clip" -> "clip"."""
    return base.identifier(column.split("_", 1)[1])


def _headline(images: pd.DataFrame, reference: estimate.Reference) -> base.Rows:
    """Yield what a report shows, at the highest guidance: shares of images, as they are read."""
    for column in (*estimate.readings(images), *estimate.read_tones(images)):
        name, question = instrument_of(column), estimate.question_of(column)
        kind = column.split("_")[0]
        for answer in question.classes:
            hits = images.assign(hit=[a == answer for a in question.classed(images[column])])
            label = f"{WHAT[question.name]} {answer}, by {name}"
            yield from base.share_rows(hits, "hit", f"bias.{name}.{kind}.{answer}", label)
        if kind == "tone":
            yield _even(question, f"bias.{name}.tone", len(images))
        elif images.occupation.nunique() > 2:
            label = f"further from even than the reference, by {name}"
            value = estimate.amplification(images, column, reference)
            yield _row(f"bias.{name}.over_reference", label, value, OCCUPATIONS)


def _even(question: estimate.Question, id: str, n: int) -> base.Record:
    """Return what a share of the darkest tones is compared with."""
    label = f"{question.classes[0]} of {len(question.scale)} skin tones, were all drawn alike"
    return _number(
        f"{id}.even", label, question.even, n, "a convention, no share of any population"
    )


def _row(id: str, label: str, value: stats.Estimate, method: str) -> base.Record:
    return stats.estimate_row(id, label, value, method=method)


def _number(id: str, label: str, value: float | None, n: int, method: str) -> base.Record:
    value = np.nan if value is None else float(value)
    return _row(id, label, stats.Estimate(value, np.nan, np.nan, n), method)


def _subjects(
    images: pd.DataFrame, part: str, references: estimate.References, label_table: base.OptTable
) -> base.Rows:
    """Yield shares by occupation, or another subject, by every instrument."""
    for column in (*estimate.readings(images), *estimate.read_tones(images, label_table)):
        is_tone = column.startswith("tone")
        id = f"bias.{instrument_of(column)}.{part}{'.tone' * is_tone}"
        yield from _neutral(images, column, id, [{}] if is_tone else references, label_table)


def _neutral(
    images: pd.DataFrame,
    column: str,
    id: str,
    references: estimate.References,
    label_table: base.OptTable,
) -> base.Rows:
    question = estimate.question_of(column)
    group, *_ = question.classes
    shares = estimate.by_occupation(images, column, references[0], label_table)
    for row in shares.to_dict("records"):
        place = f"{id}.occupation.{base.identifier(row['occupation'])}"
        label = f"{WHO[group]} among images of “{row['occupation']}”, {{}}"
        for kind, method in METHODS.items():
            value = stats.Estimate(row[kind], row[f"{kind}_low"], row[f"{kind}_high"], row["n"])
            if value.value == value.value:
                what = label.format(kind)
                n = row["prompts"]
                yield stats.estimate_row(f"{place}.{kind}", what, value, method=method, clusters=n)
        for kind, method in SINGLE.items():
            what = label.format(kind.replace("_", " "))
            yield _number(f"{place}.{kind}", what, row[kind], row["n"], method)
    (overall,) = estimate.samples([images], column, label_table)
    # What changes where these prompts are all that is asked of, and no sample of others.
    label, place = f"{WHO[group]} not even, these prompts alone", f"{id}.these_prompts"
    claimed = (shares.p_these_prompts <= estimate.LEVEL).mean()
    yield _number(f"{place}.claims", f"occupations with {label}", claimed, len(shares), SINGLE["p"])
    (fixed,) = double_sampling.double_sampled_shares([overall], group, fixed_prompts=True)
    yield _row(f"{place}.{group}", f"{WHO[group]}, these prompts alone", fixed, INDEPENDENT)
    for answer in question.classes if overall.labels is not None else ():
        (value,) = double_sampling.double_sampled_shares([overall], answer)
        label = f"{WHAT[question.name]} {answer}, corrected"
        yield base.row(images, f"{id}.corrected.{answer}", label, value, METHODS["corrected"])
    if question.name != "presentation" and overall.labels is not None:
        yield _even(question, f"{id}.corrected", len(images))
    if len(shares.dropna(subset=["reference", "of_known"])) > 2:
        state = "as read" if overall.labels is None else "corrected"
        slope = estimate.slope(shares)
        method = "least squares over occupations, HC3"
        yield _row(f"{id}.slope", f"slope of the share on the reference, {state}", slope, method)
        for name, series in zip(("reference", "other_reference"), references):
            value = estimate.amplification(images, column, series, label_table=label_table)
            label = f"further from even than the {name.replace('_', ' ')}, {state}"
            yield _row(f"{id}.over_{name}", label, value, OCCUPATIONS)


def _contrasts(
    table: pd.DataFrame,
    column: str,
    reference: estimate.Reference,
    label_table: base.OptTable,
    teacher: base.OptTable,
) -> base.Rows:
    """Yield paired contrasts over occupations, in shares: towards the skewed side is positive."""
    id, name = f"bias.{instrument_of(column)}.contrast", instrument_of(column)
    guidances = sorted(table[table.part == "neutral"].guidance.unique())
    images = [estimate.neutral(table, guidance) for guidance in guidances]
    if len(images) == 2 and images[0].occupation.nunique() > 2:
        label = f"guidance {guidances[1]:g} less {guidances[0]:g}, by {name}"
        value = estimate.amplification(images[1], column, reference, images[0], label_table)
        yield _row(f"{id}.guidance", label, value, OCCUPATIONS)
    if teacher is not None and column in teacher:
        student, teacher = (each[each.part == "unspecified"] for each in (table, teacher))
        if len(student) and len(teacher):
            value = estimate.amplification(student, column, reference, teacher)
            yield _row(f"{id}.teacher", f"student less teacher, by {name}", value, OCCUPATIONS)
    naming = estimate.intervention(table, column)
    if naming is not None:
        label = f"naming woman and man in turn, less naming neither, by {name}"
        yield _row(f"{id}.naming", label, naming, OCCUPATIONS)


def _society(table: pd.DataFrame, label_table: base.OptTable) -> base.Rows:
    """Yield shares by subject beyond work, and each less plain "a person", as read; p by Holm."""
    images = table[table.part == "society"]
    if images.empty:
        return
    yield from _subjects(images, "society", [{}], label_table)
    for column in (*estimate.readings(images), *estimate.read_tones(images)):
        name, is_tone = instrument_of(column), column.startswith("tone")
        what, wanted = ("darkest", estimate.DARKEST) if is_tone else ("women", ("woman",))
        gaps = estimate.beside_baseline(images, images[column].isin(wanted))
        adjusted = stats.adjust_pvalues([p for _, p in gaps.values()])
        for (subject, (value, _)), p in zip(gaps.items(), adjusted):
            label = f"{what} among “{subject}” less “{estimate.BASELINE}”, as read by {name}"
            place = f"bias.{name}.society.{what}.{base.identifier(subject)}"
            yield _row(f"{place}.difference", label, value, "Student's t over templates")
            yield _number(f"{place}.p", f"{label}: p", p, value.n, "signs flipped; Holm")


def _as_named(table: pd.DataFrame) -> base.Rows:
    """Yield how often a named presentation, and tone, is read, by what was named."""
    of_pairs = table.part.isin(("counterfactual", "intersectional"))
    named = table[of_pairs & table.presentation.notna()]
    toned = named[named.tone.notna()]
    questions = [(column, "presentation", named) for column in estimate.readings(named)]
    named_tones = [c for c in estimate.read_tones(toned) if estimate.question_of(c).name == "tone"]
    questions += [(column, "tone", toned) for column in named_tones]
    for column, question, images in questions:
        name, tones = instrument_of(column), images.tone.fillna("not named")
        hits = images.assign(hit=images[column] == images[question], tone=tones)
        for (who, tone), group in hits.groupby(["presentation", "tone"], sort=False):
            id = f"bias.{name}.named.{question}.{base.identifier(who)}.{base.identifier(tone)}"
            label = f"{who}, {tone}: {question} read as named, by {name}"
            yield from base.share_rows(group, "hit", id, label)


def _descriptors(table: pd.DataFrame) -> base.Rows:
    """Yield how descriptors move the share of women, and p by Benjamini and Hochberg."""
    effects = {
        (instrument_of(column), name): effect
        for column in estimate.readings(table)
        for name, effect in estimate.descriptor_effects(table, column).items()
    }
    adjusted = stats.adjust_pvalues([p for _, p in effects.values()], "fdr_bh")
    for ((name, descriptor), (value, _)), p in zip(effects.items(), adjusted):
        id = f"bias.{name}.descriptor.{base.identifier(descriptor)}"
        label = f"share of women with “{descriptor}” less without, by {name}"
        yield _row(f"{id}.difference", label, value, OCCUPATIONS)
        method = "signs flipped; Benjamini and Hochberg over descriptors and instruments"
        yield _number(f"{id}.p", f"{label}: p", p, value.n, method)


def _best(table: pd.DataFrame) -> str:
    return "raw" if table.corrected.isna().all() else "corrected"
