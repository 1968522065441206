"""Probe: how much of a prompt of several objects and attributes an image holds.

`koala-nb probe composition` draws `data/prompts/composition_<domain>.csv`. The rules are in
`atoms`, the detectors in `detectors`, the estimates in `composition_estimates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from koala_nb.core import catalog
from koala_nb.models.load import model_info
from koala_nb.probes import base
from koala_nb.probes.atoms import judge, queries_of
from koala_nb.probes.composition_estimates import estimates
from koala_nb.scorers.clip import CLIPScore, Quality
from koala_nb.scorers.detection import Detector, NullDetector, OpenVocabulary

if TYPE_CHECKING:
    from PIL import Image

    from koala_nb.models.load import Pipeline

IMAGES = 4  # a prompt


class Composition:
    """Reads the atoms of a prompt with a detector, and the image's fit with `quality`."""

    def __init__(self, detector: Detector, quality: Quality | None = None) -> None:
        self.detector, self.quality = detector, quality
        self.name = detector.name
        also = f", {quality.name} {quality.version}" if quality else ""
        self.version = detector.version + also

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Return one row an image: see `atoms.judge`; `quality` is None without such a scorer.

        ValueError where a prompt asks for a background and the detector does not read it.
        """
        found = self.detector.detect(images, [queries_of(p) for p in prompts])
        behind = self.detector.background(images)
        for prompt, color in zip(prompts, behind):
            if (
                prompt.get("background")
                and color is None
                and self.detector.name != NullDetector.name
            ):
                raise ValueError(
                    f"{prompt['id']} asks for a background, which {self.name} does not read."
                )
        values = self.quality.score(images, prompts) if self.quality else [None] * len(images)
        return [
            judge(p, f, b) | {"quality": None if v is None else round(v, base.ROUND)}
            for p, f, b, v in zip(prompts, found, behind, values)
        ]


def read_prompts(domain: str, file: str = "") -> pd.DataFrame:
    """Return the probe's prompts for a domain, or those of a file of the same columns."""
    return base.read_prompts(file or base.prompt_file("composition", domain))


def scorer(pipe: Pipeline, detector: str = "", quality: bool = True) -> Composition:
    """Return the scorer of a model's domain; `detector` names another one of transformers.

    ValueError or FileNotFoundError where its weights are not on this machine.
    """
    about = model_info(pipe)
    if about.domain == "emoji-world" and not detector:
        from koala_nb.nano.detector_card import instruments

        found, fit = instruments(about.name)
        return Composition(found, fit if quality else None)
    return Composition(OpenVocabulary(detector), CLIPScore() if quality else None)


def scorer_or_unread(pipe: Pipeline, detector: str = "") -> tuple[Composition, str | None]:
    """Return the scorer, or one that finds nothing and the sentence that says what is missing."""
    try:
        return scorer(pipe, detector), None
    except (ValueError, FileNotFoundError) as error:
        return Composition(NullDetector()), str(error)


def like(
    pipe: Pipeline, table: pd.DataFrame, prompts: pd.DataFrame, by: Composition, **more: Any
) -> pd.DataFrame:
    """Draw and score the prompts and seeds of another model's table: the comparison is paired.

    `more` goes to `generate`. ValueError where the table's prompts are not in the set.
    """
    from koala_nb.generation.generate import generate

    wanted = table.groupby("id", sort=False).seed.apply(list)
    if missing := set(wanted.index) - set(prompts.id):
        raise ValueError(f"The prompt set has no {sorted(missing)[0]!r}, which the table holds.")
    chosen = prompts.set_index("id", drop=False).loc[wanted.index]
    rows = chosen.to_dict("records")
    run = generate(pipe, chosen.prompt.tolist(), wanted.tolist(), **more)
    asked = [rows[i] for i in run.records.prompt_index]
    read = by.score(list(run.images), asked)
    parts = [pd.DataFrame(asked), run.records[["seed"]], pd.DataFrame(read)]
    return pd.concat(parts, axis=1).round(base.ROUND)


def comparable(name: str, domain: str) -> bool:
    """Return whether a second model is named, and is not catalogued in another domain."""
    try:
        return bool(name) and catalog.find(name).domain == domain
    except ValueError:  # a folder or a hub id: loading it tells
        return True


PROBE = base.LegacyProbe("composition", read_prompts, scorer, estimates, IMAGES)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the probe at its full size; an embedded model's results hold the instruments' card."""
    card: dict[str, Any] = {}

    def with_card(pipe: Pipeline) -> Composition:
        if model_info(pipe).domain == "emoji-world":
            from koala_nb.nano.detector_card import instruments, measure_card

            card.update(measure_card(*instruments(model_info(pipe).name), pipe.vae.float()))
        return scorer(pipe)

    probe = replace(PROBE, scorer=with_card, estimates=lambda t: estimates(t, card or None))
    return base.legacy_main(probe, argv)
