"""The probe of complex prompts: how much of several objects and attributes an image holds.

`koala-nb probe composition` runs it at full size; notebook 07 shows it. The rules of what is right
are in `atoms`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from koala_nb.core import catalog
from koala_nb.models.load import model_info
from koala_nb.probes import base
from koala_nb.probes.atoms import ATOMS, TASKS, queries_of, score_atoms
from koala_nb.probes.prompts import pair_images
from koala_nb.scorers import registry
from koala_nb.scorers.clip import CLIPScore
from koala_nb.scorers.detection import MOST_ITEMS, Detector, items_of
from koala_nb.stats import estimates as stats
from koala_nb.stats import trends

if TYPE_CHECKING:
    from koala_nb.models.load import Pipeline

SEVERAL = 3  # atoms: from here on a prompt is complex
OUTSIDE = "never in a caption"  # value of `seen` for forms that no training caption has
KINDS = {  # kind of atom -> its columns
    "object": ATOMS[:MOST_ITEMS],
    "colour": ATOMS[MOST_ITEMS : 2 * MOST_ITEMS],
    **{atom.removesuffix("_right"): (atom,) for atom in ATOMS[2 * MOST_ITEMS :]},
}
GAPS = {  # id -> label, tasks whose held-out compositions are compared with seen ones
    "pairs": ("pairs of objects", ("two_object", "position")),
    "coloured_shape": ("a coloured shape", ("colors",)),
    "coloured_shapes": ("two coloured shapes", ("color_attr",)),
}
COMPARED = {  # column -> label, of two models on the same prompts and seeds
    "all_right": "everything right",
    "correct": "right by GenEval's rule",
    "missing": "missing per image",
    "extra": "extra per image",
    "quality": "fit of image and prompt",
}
PROMPTS = "Student's t over prompts"
# The rule of all probes: labels correct. Errors on scenes give `supposed` rows, of what they cover.
AS_READ = f"{base.SHARE}; not corrected: only labels of these images could, and the detector's "
AS_READ += "error on scenes is known of single objects alone"


class CompositionScorer:
    """Reads the atoms of a prompt with a detector, and the image's fit with `quality`."""

    def __init__(self, detector: Detector, quality: CLIPScore | None = None) -> None:
        self.detector, self.quality = detector, quality
        self.name = detector.name
        self.version = detector.version
        self.version += f", {quality.name} {quality.version}" if quality else ""

    def score(self, images: base.Images, prompts: Sequence[base.Record]) -> list[base.Record]:
        """Return one row per image: see `score_atoms`; `quality` is None without such a scorer.

        ValueError where a prompt asks for a background and the detector does not read it.
        """
        detections = self.detector.detect(images, [queries_of(p) for p in prompts])
        behind = self.detector.background(images)
        for prompt, color in zip(prompts, behind):
            if prompt.get("background") and color is None and self.name != Detector.name:
                raise ValueError(
                    f"{prompt['id']} asks for a background, which {self.name} does not read."
                )
        values = self.quality.score(images, prompts) if self.quality else [None] * len(images)
        return [
            score_atoms(p, f, b) | {"quality": None if v is None else round(v, base.ROUND)}
            for p, f, b, v in zip(prompts, detections, behind, values)
        ]


class CompositionProbe(base.Probe):
    """Prompts of one to many atoms, read by an object detector."""

    name = "composition"
    images = 10  # ten of sixty simple prompts tell a tenth from nothing in four of five runs
    stratify = "task"
    options = {"detector": ("", "a detector of transformers, hub id or folder")}
    headline = (
        "composition.all_right",
        "composition.atoms.1.all_right",
        "composition.complex.all_right",
        "composition.complex.difference",
        "composition.complex.expected",
    )
    report_options = {"quality": False}
    image_values = {"composition.all_right": "all_right"}

    def scorer(
        self, pipe: Pipeline, prompts: base.OptTable = None, **options: Any
    ) -> CompositionScorer:
        """Return the scorer of a model's domain.

        `detector`: the name or folder of another detector of transformers; `quality=False`: without
        the fit of image and prompt. ValueError where weights are not on this machine.
        """
        info, name = model_info(pipe), options.get("detector", "")
        domain = registry.GENERAL if name else info.domain
        detector = registry.scorer("objects", domain, name=name, system=info.name)
        fit = registry.scorer("prompt fit", domain) if options.get("quality", True) else None
        return CompositionScorer(detector, fit)

    def calibrate(
        self, pipe: Pipeline, scorer: CompositionScorer, prompts: base.OptTable = None
    ) -> base.Record:
        """Return the detector's errors on rendered scenes; {} where a domain renders none."""
        card = registry.calibration(scorer.detector)
        return tidy_card(card(scorer.detector, scorer.quality, pipe.vae.float())) if card else {}

    def rows(self, table: pd.DataFrame, instrument: base.Record) -> base.Rows:
        """Yield shares by task, kind and number of atoms, independence, gaps, missing and extra."""
        id, label = "composition.all_right", "everything right"
        yield from base.share_rows(table, "all_right", id, label, method=AS_READ)
        id = "composition.task.{}"
        labels = {"all_right": "{}: everything right", "correct": "{}: right by GenEval's rule"}
        for column, label in labels.items():
            yield from base.share_rows(table, column, f"{id}.{column}", label, "task", AS_READ)
        yield from _geneval(table)
        yield from _by_atoms(table[table.seen != OUTSIDE])
        for kind, columns in KINDS.items():
            atoms = table.melt("id", [c for c in columns if c in table], value_name="holds")
            yield from base.share_rows(
                atoms, "holds", f"composition.kind.{kind}", f"{kind} right; n counts atoms"
            )
        yield from _independence(table)
        yield from _relation_given_both(table)
        yield from _gaps(table)
        yield from _miscounted(table)
        yield from base.share_rows(table, "leak", "composition.leak", "colours leak")
        right = table.assign(verdict=np.where(table.all_right.astype(bool), "right", "wrong"))
        label = "fit of image and prompt, image {}"
        yield from base.mean_rows(right, "quality", "composition.quality.{}", label, "verdict")
        if instrument:
            yield _single_supposed(table, instrument["errors"])

    def scorer_or_null(
        self, pipe: Pipeline, detector: str = ""
    ) -> tuple[CompositionScorer, str | None]:
        """Return the scorer, or one that finds nothing and a sentence on what is missing."""
        try:
            return self.scorer(pipe, detector=detector), None
        except (FileNotFoundError, ValueError) as error:
            return CompositionScorer(Detector()), str(error)

    def comparable(self, name: str, domain: str) -> bool:
        """Return whether a second model is named, and is not catalogued in another domain."""
        try:
            return bool(name) and catalog.find(name).domain == domain
        except ValueError:  # a folder or a hub id: its info is known once it is loaded
            return True

    def measure_paired(
        self,
        pipe: Pipeline,
        table: pd.DataFrame,
        prompts: pd.DataFrame,
        scorer: CompositionScorer,
        **settings: Any,
    ) -> pd.DataFrame:
        """Draw and score the prompts and seeds of another model's table: for `compare`.

        `settings` as of `measure`. ValueError where the table's prompts are not in the set.
        """
        seeds = table.groupby("id", sort=False).seed.apply(list)
        if missing := set(seeds.index) - set(prompts.id):
            first = sorted(missing)[0]
            raise ValueError(f"The prompt set has no {first!r}, which the table holds.")
        chosen = prompts.set_index("id", drop=False).loc[seeds.index].reset_index(drop=True)
        return base.measure(pipe, chosen, scorer, seeds=seeds.tolist(), **settings)

    def compare(self, first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
        """Return first less second for images of the same prompt and seed, as tidy estimates.

        By measure: both means, their difference and its p, adjusted by Holm over the measures. Only
        prompts and seeds that both tables hold are compared; the prompt is the pair.
        """
        both = pair_images(first, second, ["id", "seed"], ("_first", "_second"))
        rows, ps = [], {}
        for column, label in COMPARED.items():
            sides = [f"{column}_{side}" for side in ("first", "second")]
            pairs = both[["id", *sides]].dropna().astype(dict.fromkeys(sides, float))
            means = pairs.groupby("id").mean()
            if len(means) < 2:
                continue
            id = f"composition.compare.{column}"
            for side in sides:
                place = f"{id}.{side.removeprefix(f'{column}_')}"
                rows.append(base.point_row(pairs, place, label, float(means[side].mean())))
            gap = (means[sides[0]] - means[sides[1]]).to_numpy()
            ps[column] = stats.paired_test(gap), pairs
            limits = base.DIFFERENCE if column in ("all_right", "correct") else None
            value = stats.mean_interval(gap, limits)._replace(n=len(pairs))
            what = f"{label}: first less second"
            rows.append(base.row(pairs, f"{id}.difference", what, value, PROMPTS))
        adjusted = stats.adjust_pvalues([p for p, _ in ps.values()])
        for (column, (_, pairs)), p in zip(ps.items(), adjusted):
            id, label = (
                f"composition.compare.{column}.p",
                f"{COMPARED[column]}: p of the difference",
            )
            rows.append(base.point_row(pairs, id, label, float(p), "sign flips over prompts, Holm"))
        return stats.estimates_frame(rows).round(base.ROUND)


PROBE = CompositionProbe()


def _miscounted(table: pd.DataFrame) -> base.Rows:
    """Yield, by task, how many objects are missing (as many as a prompt asks for) and extra."""
    for column in ("missing", "extra"):
        for _, images in table.groupby("task", sort=False):
            objects = max(sum(item.number for item in items_of(asks)) for asks in images.asks)
            limits = (0, objects if column == "missing" else np.inf)
            id, label = f"composition.task.{{}}.{column}", f"{{}}: {column} per image"
            yield from base.mean_rows(images, column, id, label, "task", limits)


def _geneval(table: pd.DataFrame) -> base.Rows:
    """Yield the mean of the tasks' shares, its prompts resampled within tasks (500 draws)."""
    rated = table[table.correct.notna()]
    tasks = [t for t in TASKS if t in set(rated.task)]
    means = [rated[rated.task == t].groupby("id").correct.mean().astype(float) for t in tasks]
    if not means:
        return
    estimate = stats.stratified_mean(means)._replace(n=len(rated))
    label, method = "GenEval's score, the mean of tasks", "bootstrap of prompts within tasks"
    yield base.row(rated, "composition.geneval", label, estimate, method)


def _by_atoms(known: pd.DataFrame) -> base.Rows:
    """Yield the share with all atoms right by their number, of forms that captions have; trend."""
    for number, group in known.groupby(known.atoms.astype(int)):
        id = f"composition.atoms.{number}.all_right"
        label = f"everything right, {number} atom{'s' * (number > 1)}"
        yield from base.share_rows(group, "all_right", id, label, method=AS_READ)
    curve = trends.logistic_trend(known.atoms, known.all_right, known.id)
    yield from base.trend_rows(curve, "composition.trend", "everything right, by atoms")
    one, many = known[known.atoms == 1], known[known.atoms >= SEVERAL]
    label = f"everything right, {SEVERAL} or more atoms"
    id = "composition.complex.all_right"
    yield from base.share_rows(many, "all_right", id, label, method=AS_READ)
    if one.empty or many.empty:
        return
    label = "complex prompts less simple ones"
    yield base.difference_row(many, one, "all_right", "composition.complex.difference", label)
    alone = float(one.all_right.mean())
    value = float((alone**many.atoms).mean()) - alone
    method = "none: a single atom's share to the power of each prompt's atoms"
    id = "composition.complex.expected"
    yield base.point_row(many, id, f"{label}, expected of independent atoms", value, method)


def items_right(table: pd.DataFrame) -> pd.DataFrame:
    """Return whether each item of a prompt is there in its own colour, one column per item."""
    columns = {}
    for i in range(1, MOST_ITEMS + 1):
        item, color = table[f"item_{i}"], table[f"color_{i}"]
        right = item.astype(float) * color.astype(float).fillna(1.0)
        columns[f"item_{i}"] = right.where(item.notna())
    return pd.DataFrame(columns).astype(float)


def _independence(table: pd.DataFrame) -> base.Rows:
    """Yield, by task, the joint success of a prompt's items beside the product of single ones.

    `expected` multiplies within a prompt, on *different* images, so that neither easy prompts nor
    a shared image look dependent; `pooled` the task's rates. `dependence` is joint less expected:
    below 0 items crowd each other out. It has no ends where all prompts differ alike.
    """
    for task, group in table.groupby("task", sort=False):
        single = items_right(group).dropna(axis=1, how="all").dropna()  # prompts that ask for all k
        k, group = single.shape[1], group.loc[single.index]
        by_prompt = [rows.to_numpy() for _, rows in single.groupby(group.id, sort=False)]
        pairs = [_joint_and_product(rows) for rows in by_prompt if len(rows) >= k]
        if k < 2 or len(pairs) < 2:
            continue
        joint, product = np.array(pairs).T
        estimate = stats.mean_interval(joint - product)._replace(n=len(group))
        values = {
            "joint": (float(joint.mean()), f"{k} items right together"),
            "expected": (float(product.mean()), f"{k} items right together if independent"),
            "pooled": (float(single.mean().prod()), f"product of {k} items' shares"),
        }
        id = f"composition.task.{base.identifier(task)}"
        for name, (value, label) in values.items():
            yield base.point_row(group, f"{id}.{name}", f"{task}: {label}", value)
        label = f"{task}: joint less expected"
        yield base.row(group, f"{id}.dependence", label, estimate, PROMPTS)


def _joint_and_product(right: np.ndarray) -> tuple[float, float]:
    """Return the mean product within images, and over all choices of different images."""
    n, k = right.shape
    orders = np.array(list(permutations(range(n), k)))
    return float(right.prod(1).mean()), float(right[orders, np.arange(k)].prod(1).mean())


def _relation_given_both(table: pd.DataFrame) -> base.Rows:
    """Yield the share in the right relation where both items are there: one half by chance."""
    both = (items_right(table)[["item_1", "item_2"]] == 1).all(axis=1)
    id, label = "composition.relation_given_both", "right relation, where both are there"
    yield from base.share_rows(table[both], "relation_right", id, label)


def _gaps(table: pd.DataFrame) -> base.Rows:
    """Yield success on seen and held-out compositions, and the difference.

    Welch's interval over prompts' means has no ends where no image of either kind differs.
    """
    for key, (label, tasks) in GAPS.items():
        group = table[table.task.isin(tasks)]
        right = items_right(group).min(axis=1)
        sides = [right[group.seen == s].groupby(group.id).mean().to_numpy() for s in ("yes", "no")]
        if min(map(len, sides)) < 2:
            continue
        for name, value, side in zip(("seen", "held_out"), ("yes", "no"), sides):
            text = f"{label}: {name.replace('_', ' ')} compositions right"
            id, part = f"composition.gap.{key}.{name}", group[group.seen == value]
            yield base.point_row(part, id, text, float(side.mean()))
        id, compared = f"composition.gap.{key}.difference", group[group.seen.isin(("yes", "no"))]
        gap = stats.welch_interval(*sides)._replace(n=len(group))
        yield base.row(compared, id, f"{label}: seen less held out", gap, "Welch's t over prompts")


def _single_supposed(table: pd.DataFrame, errors: base.Record) -> base.Record:
    """Return the single-object share, supposing that the detector errs as on rendered scenes."""
    group = table[table.task == "single_object"]
    rates = errors["sensitivity"], errors["specificity"]
    share = base.corrected(group.correct, group.id, rates)
    id = "composition.task.single_object.supposed"
    label = "single_object: right, if read as rendered scenes are; n is effective"
    return base.row(group, id, label, share, base.SUPPOSED)


def tidy_card(card: base.Record) -> base.Record:
    """Return a detector's measured card with its shares as tidy estimates, beside error counts."""
    shares = {}
    for row in card["ceiling"]:
        place = stats.estimate_id("detector", row["scenes"], row["images"], row["measure"])
        label = f"{row['measure']}, {row['scenes']} scenes, {row['images']}"
        shares[place] = label, {key: row[key] for key in stats.Estimate._fields}
    shares["detector.floor"] = "object found in broken images", card["floor"]
    for name, fit in card.get("quality", {}).items():
        shares[f"fit.{base.identifier(name)}"] = f"fit: {name}", fit
    rows = []
    for place, (label, value) in shares.items():
        share = stats.Estimate(**value) if isinstance(value, dict) else value
        rows.append(stats.estimate_row(f"composition.{place}", label, share))
    frame, errors = stats.estimates_frame(rows), dict(card["single object"])
    return {"detector": card["detector"], "estimates": frame, "errors": errors}
