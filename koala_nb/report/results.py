"""`results.json` of an audit report: its fields, their check, and receipts of other machines.

The classes are the schema: a file is read and written through `Results`. A receipt is the
`results.json` of a report on a catalogued photographic model, drawn on somebody else's machine.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from koala_nb.core import catalog, files
from koala_nb.core.files import Record, read_json
from koala_nb.generation import plan
from koala_nb.models import hub

if TYPE_CHECKING:
    import pandas as pd

VERSION = 2  # of the schema
FEWEST = 100  # images per probe of a receipt; verdicts need about twice as many
NAMED = ("koala_nb", "python", "torch", "diffusers", "platform", "device")
RECEIPT_COLUMNS = ("system", "device", "section", "id", "label", "value", "low", "high", "n")
_ROOTS = "home|root|Users|mnt|tmp|work|data|var|opt|srv|scratch|content|workspace|nfs|storage|gpfs"
_ROOTS += "|lustre|media|run|Volumes|kaggle"
HOST = re.compile(rf"(?<![\w.])(?:[A-Z]:[\\/]|\\\\|~/|/(?:{_ROOTS})/)", re.I)
COMMIT = re.compile(r"[0-9a-f]{40}")

Finite = float | None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class KeyFigure(_Strict):
    """A figure that is compared between runs: drawn in this run. Ends are null where unknown."""

    label: str = Field("", description="What it is, for people.")
    value: Finite
    low: Finite
    high: Finite
    n: int = Field(ge=1, description="Units measured: images, prompts, repeats; see `method`.")


class EstimateRecord(KeyFigure):
    """An estimate, as `stats.estimates.estimate_row` has it. Shares are 0 to 1."""

    id: str = Field(description="For programs; the same in every run, such as text.long.exact.")
    clusters: int | None = Field(None, ge=1, description="Clusters of the interval: prompts.")
    scorer: str = Field("", description="What read the images, with its version.")
    method: str = Field("", description="How value and interval were computed.")


class ModelRecord(_Strict):
    """What drew the images."""

    system: str = Field(description="Catalogued name, or the folder's or hub id.")
    source: str = Field(description="Hub repository or folder that the weights came from.")
    revision: str | None = Field(description="Commit, or a hash of a folder's weights.")
    variant: str | None = Field(description="Variant of the weight files, such as fp16.")
    dtype: str = Field(description="Precision, such as float16.")
    device: str = Field(description="Kind of device: cpu, cuda, mps.")
    domain: Literal["photographic", "emoji-world"]
    notes: list[str] = Field(description="What happened at loading that a reader should know.")


class SettingsRecord(_Strict):
    """What the report was to draw; a name that is absent or null has the recipe's value."""

    seeds: list[int] = Field(min_length=1, description="Seeds of the images at first sight.")
    n: int = Field(ge=1, description="About how many images each probe was to draw.")
    steps: int | None = Field(None, ge=1)
    guidance: float | None = Field(None, ge=0)
    negative_prompt: str | None = None
    batch_size: int | None = Field(None, ge=1, description="Images drawn together.")
    height: int | None = Field(None, ge=8, description="Pixels.")
    width: int | None = Field(None, ge=8, description="Pixels.")


class PromptRecord(BaseModel):
    """A prompt of the images at first sight, with any factors."""

    model_config = ConfigDict(extra="allow", strict=True)
    prompt: str = Field(min_length=1)


class SectionRecord(_Strict):
    """One section's estimates: of this run, and of a stored one of the same weights."""

    state: Literal["measured", "stored", "not tested"]
    n: int = Field(ge=0, description="Images of this run in the section.")
    why: str = Field("", description="What is missing, where something is.")
    estimates: list[EstimateRecord]
    stored: list[EstimateRecord] = []
    details: list[EstimateRecord] = Field([], description="What findings rest on, and by group.")
    file: str | None = Field(description="Table of this run's images, or the stored results.")


class Verdict(_Strict):
    """A published statement, the rule that decides it, and what the results say."""

    id: str = ""
    claim: str = Field(description="The statement, in our words.")
    source: str = Field(description="Who states it.")
    rule: str = Field(description="When it holds.")
    model: str | None = Field(None, description="Whose images decide; null where no image does.")
    verdict: Literal["holds", "does not hold", "undecided", "not tested"]
    value: Finite
    low: Finite
    high: Finite
    n: int | None = Field(ge=1)
    why: str = Field("", description="What the figures are, or what is missing.")


class Finding(_Strict):
    """What a report found: one question, answered by one estimate, and how severe it is."""

    id: str
    section: str
    state: Literal["found", "within tolerance", "undecided", "not tested"]
    sentence: str = Field(description="What was found, what it means, and what to do.")
    evidence: str = Field("", description="Intervals, n, reader, labels and run, as in it.")
    affected: str = Field(description="Whom a failure harms.")
    harm: int = Field(ge=1, le=3, description="Of a failure, by the rules.")
    likelihood: int | None = Field(ge=1, le=3, description="Grade of the share of failures.")
    graded: str = Field("", description="What the likelihood grades, such as 15 % of groups.")
    score: int | None = Field(description="Harm times likelihood.")
    severity: Literal["low", "medium", "high"] | None
    value: Finite
    low: Finite
    high: Finite
    n: int | None = Field(ge=1)


class Change(_Strict):
    """A key figure beside that of another report; `change` is this one less the other, paired."""

    label: str
    value: Finite
    low: Finite
    high: Finite
    other: Finite
    other_low: Finite
    other_high: Finite
    change: Finite = Field(description="Over images of one prompt and seed in both; else null.")
    change_low: Finite
    change_high: Finite
    n: int = Field(ge=0, description="Pairs of images.")
    p: Finite = Field(description="Of a sign flip test over prompts, by Holm over all figures.")


class Comparison(_Strict):
    """This report beside another: of another model, or an earlier one of this model."""

    model: ModelRecord
    settings: SettingsRecord
    rules: str = Field("", description="SHA-256 of that report's rules.")
    changes: dict[str, Change] = Field(description="By the id of the estimate.")


class Results(_Strict):
    """results.json: all that an audit report measured. Intervals are of 95 %."""

    schema_version: Literal[2]
    model: ModelRecord
    banner: str | None = Field(description="Warning over all results of an embedded model.")
    settings: SettingsRecord
    environment: dict[str, str | int | None]
    prompts: list[PromptRecord]
    images: int = Field(ge=0, description="Number of images at first sight.")
    seconds_per_image: float | None = Field(gt=0, description="null: they were there already.")
    files: dict[str, str] = Field(description="Files of the report, relative to results.json.")
    sections: dict[str, SectionRecord]
    key_figures: dict[str, KeyFigure] = Field(description="By the id of their estimate.")
    rules: str = Field("", description="SHA-256 of the rules, known before this report drew.")
    findings: list[Finding] = []
    compared: Comparison | None = None
    claims: list[Verdict]
    summary: list[str] = Field(description="The executive summary, a sentence each.")

    def to_json(self) -> Record:
        """Return plain values for JSON, without settings that are the recipe's."""
        plain = self.model_dump()
        plain["settings"] = self.settings.model_dump(exclude_none=True)
        return plain


def check(results: Mapping[str, object]) -> Results:
    """Return results as checked records; ValueError, naming the first field that is wrong."""
    try:
        return Results.model_validate(results)
    except ValidationError as error:
        raise ValueError(f"results.json, {_problems(error)[0]}") from None


def write(results: Results, folder: Path) -> Path:
    """Write `results.json` of a run, whole or not at all; returns its path."""
    return files.write_json(folder / "results.json", results.to_json())


def read(file: str | Path) -> Results:
    """Read a results.json. ValueError or OSError for one that is damaged."""
    return check(read_json(Path(file)))


def _problems(error: ValidationError) -> list[str]:
    return [
        f"$.{'.'.join(map(str, one['loc']))}: {one['msg']}, not {str(one['input'])[:60]!r}."
        for one in error.errors()
    ]


def receipts_folder() -> Path:
    """Return the folder of the submitted receipts."""
    return catalog.data_folder() / "results" / "real"


def receipt_problems(file: str | Path) -> list[str]:
    """Return all that keeps a results.json from being a receipt, a sentence each; [] for none.

    What its fields hold is looked at once they are all there and of the right types. OSError or
    ValueError for a file that cannot be read or is no JSON object.
    """
    try:
        results = Results.model_validate(read_json(Path(file)))
    except ValidationError as error:
        return _problems(error)
    return [
        *_model_problems(results),
        *_estimate_problems(results),
        *_machine_problems(results.environment),
        *(
            f"{place} holds a path of your machine ({text[:60]!r}): remove it."
            for place, text in _texts(results.to_json())
            if HOST.search(text)
        ),
    ]


def _model_problems(results: Results) -> Iterator[str]:
    model = results.model
    system = next((s for s in catalog.SYSTEMS if s.name == model.system), None)
    if system is None:
        yield f"model.system is {model.system!r}: measure a system that `koala-nb systems` lists."
    elif system.embedded:
        yield f"model.system is {model.system}: embedded models are measured in the project itself."
    elif model.source != system.repository:
        yield f"model.source is {model.source!r}: load {model.system} from {system.repository}."
    if not COMMIT.fullmatch(model.revision or ""):
        yield f"model.revision is {model.revision!r}: load from the hub, so that it is a commit."
    elif system and system.repository and not system.embedded:
        if why := hub.unconfirmed(system.repository, str(model.revision)):
            yield f"model.revision {model.revision} is not confirmed: {why}."
    if not model.device:
        yield "model.device is missing: say on which device it was measured."
    if results.banner:
        yield "banner is set: it stands only over results of embedded models."


def _estimate_problems(results: Results) -> Iterator[str]:
    estimates: list[tuple[str, str, KeyFigure]] = [
        (name, one.id, one) for name, part in results.sections.items() for one in part.estimates
    ]
    estimates += [("key_figures", id, one) for id, one in results.key_figures.items()]
    if not estimates:
        yield "sections hold no estimate: there is nothing measured to submit."
    if results.settings.n < FEWEST:
        n = results.settings.n
        yield f"settings.n is {n}: measure {FEWEST} or more images per probe (`-p n={FEWEST}`)."
    counts: dict[str, int] = {}
    for section, id, e in estimates:
        if None not in (e.low, e.value, e.high) and not e.low <= e.value <= e.high:  # type: ignore[operator]
            ends = f"{e.low} to {e.high}"
            yield f"{section}, {id}: the interval {ends} does not hold its value {e.value}."
        if counts.setdefault(id, e.n) != e.n:
            yield f"{section}, {id}: n is {e.n}, elsewhere {counts[id]}: one estimate, one n."


def _machine_problems(environment: Mapping[str, str | int | None]) -> Iterator[str]:
    for name in NAMED:
        if not environment.get(name) or not isinstance(environment[name], str):
            yield f"environment.{name} is missing: make the file with `koala-nb report`."
    if "host" in environment or "hostname" in environment:
        yield "environment names the host: remove that line."


def _texts(value: object, place: str = "$") -> Iterator[tuple[str, str]]:
    """Yield every text of a JSON value with its place."""
    if isinstance(value, str):
        yield place, value
    items = value.items() if isinstance(value, dict) else ()
    for key, part in [*items, *(enumerate(value) if isinstance(value, list) else ())]:
        yield from _texts(part, f"{place}.{key}")


def add_receipt(file: str | Path) -> Path:
    """Copy a checked results.json to the receipts as `<system>-<device>-<date>.json`.

    ValueError for a file with problems, or one that would replace another.
    """
    if problems := receipt_problems(file):
        raise ValueError(f"{file} is no receipt yet ({len(problems)} problems): {problems[0]}")
    results = read(file)
    device = plan.slug(str(results.environment["device"]))
    name = f"{results.model.system}-{device}-{time.strftime('%Y-%m-%d')}.json"
    path = receipts_folder() / name
    if path.exists():
        raise ValueError(f"{path} is there already: remove it first where this one replaces it.")
    files.make_folder(path.parent)
    return files.write_json(path, read_json(Path(file)))


def receipts(section: str | None = None) -> pd.DataFrame:
    """Return the submitted estimates, of one section or all, one a row; empty for none.

    ValueError or OSError naming a file that is damaged.
    """
    import pandas as pd

    rows = []
    for path in sorted(receipts_folder().glob("*.json")):
        results = read(path)
        machine = {"system": results.model.system, "device": results.environment["device"]}
        for name, part in results.sections.items():
            if section in (None, name):
                rows += [machine | {"section": name} | e.model_dump() for e in part.estimates]
    return pd.DataFrame(rows, columns=list(RECEIPT_COLUMNS))
