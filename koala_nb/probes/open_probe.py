"""The probe of open questions: what goes with a subject that no prompt names, and nobody asked of?

Open-set audits (OpenBias, arXiv 2404.07990; TIBET, arXiv 2312.01261) have a language model propose
the axes. Here they are what the domain's scorers read, and, for photographs, the entries of
`data/reference/open_axes.yaml` of which a prompt holds no word. Each subject is compared with all
others of its kind. `koala-nb probe open` runs it. In 200 simulated emoji worlds, 100 images per
subject, read by a scorer that is right in 90 %, it claims every planted background and style (1,200
of 1,200 each), 97 % of the presentations (n = 2,000; 97 to 98) and 94 % of the tones (1,200; 92 to
95); at half the planted strength 100, 84, 30 and 29 %; in balanced worlds anything at all in 2 %
(200; 1 to 5): `data/results/simulated-open.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats as distributions

from koala_nb.models.load import model_info, native_size
from koala_nb.probes import base
from koala_nb.scorers import registry
from koala_nb.scorers.clip import AxesReader
from koala_nb.stats import estimates as stats
from koala_nb.stats import trends
from koala_nb.stats.misclassification import UNSURE

if TYPE_CHECKING:
    from PIL import Image

    from koala_nb.models.load import Pipeline

AXES = ("painted", "style_read", "presentation_", "tone_", "axis_")  # how columns of axes begin
LEVEL = 0.05
TESTS = 10  # values per subject, about, that a plan corrects for
METHOD = "Fisher's exact test against all other subjects, Holm over subjects, axes and values"


class OpenReader:
    """What the domain's scorers read in things and people, as one scorer."""

    def __init__(self, readers: dict[str, Sequence[registry.Scorer]]) -> None:
        self.readers = readers  # kind of subject -> scorers
        scorers = list(dict.fromkeys(s for several in readers.values() for s in several))
        self.name = " and ".join(s.name for s in scorers)
        self.version = "; ".join(f"{s.name} {s.version}" for s in scorers)

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[base.Record]
    ) -> list[base.Record]:
        """Return the same columns for each image, None where an axis is not of its kind."""
        rows: list[base.Record] = [{} for _ in images]
        for kind, scorers in self.readers.items():
            index = [i for i, prompt in enumerate(prompts) if prompt["kind"] == kind]
            blank = [{**prompts[i], "concept": None} for i in index]
            for scorer in scorers if index else ():
                read = scorer.score([images[i] for i in index], blank)
                for i, row in zip(index, read, strict=True):
                    rows[i] |= {k: v for k, v in row.items() if k.startswith(AXES)}
        names = dict.fromkeys(name for row in rows for name in row)
        return [{name: row.get(name) for name in names} for row in rows]


class OpenProbe(base.Probe):
    """Subjects in words that name nothing else, and everything that is read in their images."""

    name = "open"
    images = 100
    stratify = "kind"
    options = {"scorer": ("", "a CLIP by name or folder")}
    corrected = ("open.claims", "open.claims.*.*.*")

    def scorer(
        self, pipe: Pipeline, prompts: pd.DataFrame | None = None, **options: Any
    ) -> OpenReader:
        """Return the domain's scorers of backgrounds, styles and people, and `AxesReader`."""
        domain, source = model_info(pipe).domain, options.get("scorer", "")
        prompts = self.prompts(domain) if prompts is None else prompts
        given = {"source": source, "image_size": native_size(pipe), "read_text": False}
        concepts = prompts.subject[prompts.kind == "thing"].tolist()
        things = registry.scorer("concepts", domain, concepts=concepts, **given)
        people = registry.scorer("people", domain, **given)
        if domain != registry.GENERAL:
            return OpenReader({"thing": [things], "person": [people]})
        open_axes = AxesReader(source)
        return OpenReader({"thing": [things, open_axes], "person": [people, things, open_axes]})

    def detectable(self, prompts: int, images: float) -> float:
        """Return the smallest difference from one half found in one subject after Bonferroni."""
        level = 1 - LEVEL / max(1, prompts * TESTS)
        return trends.detectable_difference(1, images, correlation=0, confidence=level)

    def plan(self, pipe: Pipeline, prompts: int, images: float) -> str:
        """Return what a subject's images can find, beside all others."""
        gap = self.detectable(prompts, images)
        return (
            f"{prompts} subjects x {images:g} images = {prompts * images:.0f} images. Those of one "
            f"subject tell {base.finds(gap)} with 80 % power, after correction for all subjects "
            "and axes."
        )

    def rows(self, table: pd.DataFrame, instrument: base.Record) -> base.Rows:
        """Yield shares by subject, axis and value with p, and those that are claimed once more.

        A share is claimed where it is above that of all other subjects of the kind, p at most .05.
        """
        tests = comparisons(table)
        claimed = tests[tests.p <= LEVEL]
        if len(tests):
            share = stats.Estimate(len(claimed) / len(tests), np.nan, np.nan, len(tests))
            label = f"{len(claimed)} shares above those of other subjects; n counts tests"
            yield stats.estimate_row("open.claims", label, share, method=METHOD)
        for prefix, rows in (("open.claims", claimed), ("open.share", tests)):
            for row in rows.itertuples():
                parts = (row.axis, row.subject, row.value)
                id = ".".join([prefix, *map(base.identifier, parts)])
                label = f"“{row.subject}”: {row.axis} {row.value} (others {row.others:.0%})"
                estimate = stats.share_interval(row.hits, row.n)
                yield stats.estimate_row(id, label, estimate, method="Wilson, images of one prompt")
                if prefix == "open.share":
                    p = stats.Estimate(row.p, np.nan, np.nan, row.n)
                    yield stats.estimate_row(f"{id}.p", f"{label}: p", p, method=METHOD)


def comparisons(table: pd.DataFrame) -> pd.DataFrame:
    """Return each subject's share of each value of each axis, beside the other subjects' share.

    axis, subject, value, hits, n, others and p, one-sided, by Holm over all rows. Images that are
    unsure count as images, and "unsure" as no value.
    """
    parts = []
    for kind, images in table.groupby("kind", sort=False):
        for column in [c for c in images if str(c).startswith(AXES) and images[c].notna().any()]:
            read = images[images[column].notna()]
            counts = pd.crosstab(read.subject, read[column])
            sizes, counts = counts.sum(1), counts.drop(columns=UNSURE, errors="ignore")
            if len(counts) < 2:
                continue
            rest = sizes.sum() - sizes.to_numpy()[:, None]
            hits, n = counts.to_numpy(), sizes.to_numpy()[:, None]
            p = distributions.hypergeom.sf(hits - 1, n + rest, hits.sum(0), n)
            others = (hits.sum(0) - hits) / rest
            long = counts.melt(ignore_index=False, value_name="hits", var_name="value")
            long = long.reset_index().assign(
                axis=f"{kind} {column}", n=np.tile(n[:, 0], p.shape[1])
            )
            parts.append(long.assign(p=p.T.ravel(), others=others.T.ravel()))
    columns = ["axis", "subject", "value", "hits", "n", "others", "p"]
    rows = pd.concat(parts)[columns] if parts else pd.DataFrame(columns=columns)
    return rows.assign(p=stats.adjust_pvalues(rows.p.to_numpy(float)))


PROBE = OpenProbe()
