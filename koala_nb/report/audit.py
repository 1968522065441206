"""One model's audit in one object: images, probes, verdicts, a summary and files."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from koala_nb import probes
from koala_nb.core import catalog, files
from koala_nb.core.files import Record, read_csv
from koala_nb.generation.generate import generate
from koala_nb.models.given import GivenImages
from koala_nb.models.session import Session, generation_settings
from koala_nb.models.unet import card_comparison
from koala_nb.probes import base, labels
from koala_nb.report import claims, findings, handover, measures, render
from koala_nb.report import results as records
from koala_nb.report import run as reports
from koala_nb.report.measures import Section
from koala_nb.report.sweep import IMAGES

if TYPE_CHECKING:
    from koala_nb.generation.run_folder import Run
    from koala_nb.probes.base import Probe


def read_prompts(domain: str, file: str = "") -> pd.DataFrame:
    """Return the prompts of a report's images: the domain's sixteen, or a CSV of one's own.

    Columns `id`, `prompt`, `factors`; in a file of one's own only `prompt` must be there.
    ValueError where it is not, where there are no prompts or one is empty.
    """
    path = Path(file) if file else catalog.data_file(f"prompts/first_look_{domain}.csv")
    frame = read_csv(path, ("prompt",), dtype=str)
    empty = frame.index[frame["prompt"].str.strip() == ""]
    if frame.empty or len(empty):
        where = f"line {empty[0] + 2}" if len(empty) else "the file"
        raise ValueError(f"{path}: {where} holds no prompt: write one.")
    return frame


def reported_probes() -> dict[str, Probe]:
    """Return the probes, also those of one's own, that name headline estimates for a report."""
    every = map(probes.get, (*probes.MODULES, *probes.REGISTERED))
    return {probe.name: probe for probe in every if probe.headline}


class Audit:
    """An audit of a session's model: images, probes, verdicts, a summary and files.

    n: about how many images each probe draws; prompts_file: a CSV with `prompt`, for the images at
    first sight; labels_file: labels of the stored run's images, or of this one's; compare: folder
    of another report, of another model or an earlier one; folder: where all files go, by default
    the run's folder of a report. A section is measured when it is first
    needed, and an interrupted one goes on where it stopped. ValueError for n below 1, a bad file of
    prompts or of labels, a folder without a report.

    >>> audit = Audit(kn.start("nano-koala"), n=100)  # doctest: +SKIP
    >>> audit.summary(); audit.claims(); audit.save()  # doctest: +SKIP
    """

    def __init__(
        self,
        session: Session,
        n: int = 100,
        *,
        prompts_file: str = "",
        labels_file: str = "",
        compare: str | Path = "",
        folder: str | Path | None = None,
    ) -> None:
        if not isinstance(session, Session):
            raise ValueError(f"{files.short(session)} is no session: give kn.start's or kn.wrap's.")
        generation_settings(seeds=1, n=n)  # refuses an odd n
        self.session, self.n, self.info = session, n, session.info
        self.folder = Path(folder) if folder else reports.run_folder()
        if self.folder.is_file():
            raise ValueError(f"{folder} is a file: name a folder for the audit.")
        if isinstance(session.loaded, GivenImages) and not prompts_file:
            self.prompts = session.loaded.prompts()
        else:
            self.prompts = read_prompts(session.domain, prompts_file)
        self.compare = compare
        if compare:
            handover.read_other(compare)  # refused before anything is drawn
        self.labels: pd.DataFrame | None = None
        if labels_file:
            people = probes.get("demographics").prompts(session.domain)
            self.labels = labels.read_for(labels_file, people)
        self._sections: dict[str, Section] = {}

    @property
    def is_given(self) -> bool:
        """Whether the images are another tool's, and nothing is drawn."""
        return isinstance(self.session.loaded, GivenImages)

    @cached_property
    def run(self) -> Run:
        """The images at first sight: each prompt with each of the session's seeds."""
        return generate(
            self.session.pipe,
            list(self.prompts.prompt),
            self.session.seeds,
            out=self.folder / "generated",
            progress=False,
            **self.session.settings,
        )

    @property
    def size(self) -> int:
        """Pixels a side of the images."""
        return int(self.run.records.width.iloc[0])

    @property
    def sections(self) -> dict[str, Section]:
        """All sections by name, measured where they are not yet."""
        names = ("architecture", *reported_probes(), "latency", "quality")
        return {name: self.section(name) for name in dict.fromkeys((*names, *self._sections))}

    def section(self, name: str) -> Section:
        """Return a section, measured once: "architecture", "latency", "quality", or a probe's.

        ValueError for another name.
        """
        if name not in self._sections:
            pipe = self.session.pipe
            if name == "architecture":
                section = measures.architecture(pipe)
            elif name == "latency":
                section = measures.latency(pipe, self.info, self.size, self.run.batches)
            elif name == "quality":
                section = measures.quality(self.info)
            else:
                probe = probes.get(name)
                known = self.labels if name == "demographics" else None
                section = measures.measured_section(probe, self.session, self.n, self.folder, known)
            self._sections[name] = section
        return self._sections[name]

    def measure(self) -> None:
        """Measure all sections, and print a line on each."""
        print(f"images at first sight: {len(self.run.images)}")
        for name, section in self.sections.items():
            counts = f"{section.n} images now, {len(section.stored)} stored estimates"
            print(f"{name}: {section.state}, {counts}")

    @cached_property
    def comparison(self) -> pd.DataFrame:
        """The card's table of U-Nets beside the one computed from configurations."""
        return card_comparison()

    @cached_property
    def verdicts(self) -> list[Record]:
        """Each published statement with its verdict, as `results.json` holds them."""
        device, settings = files.device_name(self.info.device), self.session.settings
        facts = self.sections, self.comparison, self.info, self.size
        return claims.decide(claims.Evidence(*facts, device, settings))

    @property
    def rules_hash(self) -> str:
        """The SHA-256 of the rules of findings and verdicts, known before this report draws."""
        return findings.rules_hash()

    @cached_property
    def findings(self) -> list[Record]:
        """What was found, the most severe first, as `results.json` holds it."""
        return findings.decide(self.sections, self.info.label)

    @cached_property
    def images(self) -> pd.DataFrame:
        """What was read on each image: section, measure, prompt, seed, value."""
        frames = [s.images for s in self.sections.values() if s.images is not None]
        return pd.concat(frames) if frames else pd.DataFrame(columns=measures.IMAGE_COLUMNS)

    @property
    def key_figures(self) -> Record:
        """The figures of this run that another run may be compared by, by id."""
        drawn = [s for s in self.sections.values() if s.images is not None or s.name == "latency"]
        keys = ("label", "value", "low", "high", "n")
        estimates = [e for section in drawn for e in base.to_jsonable(section.estimates)]
        return {e["id"]: {key: e[key] for key in keys} for e in estimates}

    @cached_property
    def compared(self) -> records.Comparison | None:
        """This report beside the one of `compare`; None where none is named."""
        if not self.compare:
            return None
        return handover.compare(self.key_figures, self.images, self.compare)

    @cached_property
    def sentences(self) -> list[str]:
        """The executive summary: the findings, what they rest on, what was not tested."""
        return render.summary_sentences(self)

    @cached_property
    def results(self) -> records.Results:
        """All that a program may want, checked. ValueError, naming the field, where it is wrong."""
        info, session = self.info, self.session
        names = ("revision", "variant", "dtype", "device", "domain")
        sections = self.sections.values()
        model = {name: getattr(info, name) for name in names} | {"notes": list(info.notes)}
        return records.check(
            {
                "schema_version": records.VERSION,
                "model": {"system": info.label, "source": info.origin, **model},
                "banner": files.banner(info.domain),
                "settings": {**session.settings, "seeds": list(session.seeds), "n": self.n},
                "environment": files.environment(),
                "prompts": self.prompts.to_dict("records"),
                "images": len(self.run.images),
                "seconds_per_image": self.run.seconds_per_image,
                "files": {
                    "page": "index.html",
                    "images": "generated/images",
                    "records": "generated/records.jsonl",
                    "key_images": IMAGES,
                    "model_card": "model_card.md",
                    "manifest": handover.MANIFEST,
                },
                "sections": {section.name: section.to_dict() for section in sections},
                "key_figures": self.key_figures,
                "rules": self.rules_hash,
                "findings": self.findings,
                "compared": self.compared and self.compared.model_dump(),
                "claims": self.verdicts,
                "summary": self.sentences,
            }
        )

    def save(self) -> list[Path]:
        """Write `results.json`, `key_images.csv`, `model_card.md`, their manifest; return paths.

        ValueError, naming the field, where the results are wrong: nothing is written then.
        """
        results = self.results
        card = render.model_card(results).encode()
        paths = [
            records.write(results, self.folder),
            files.save_table(self.images, self.folder / IMAGES),
            files.write_atomic(self.folder / "model_card.md", card),
        ]
        if self.labels is not None:
            paths.append(files.save_table(self.labels, self.folder / "labels.csv"))
        return [*paths, handover.write_manifest(self.folder, handover.stored_files(self))]

    def summary(self) -> None:
        """Display the executive summary, and the headline estimates with their intervals."""
        render.show_summary(self)

    def claims(self) -> None:
        """Display each published statement, its verdict, and what decided it."""
        render.show_claims(self.verdicts)

    def show(self, part: str) -> None:
        """Display a part of the page: a section's name, or one of `render.PARTS`."""
        if part in render.PARTS:
            return render.PARTS[part](self)
        render.show_section(self, self.section(part))
