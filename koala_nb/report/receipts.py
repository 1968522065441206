"""Receipts: results measured on other machines, checked, kept and shown beside the embedded ones.

A receipt is the `results.json` of a report on a catalogued photographic model.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from sys import float_info
from typing import TYPE_CHECKING, Any

from koala_nb.core import catalog, files
from koala_nb.generation import plan
from koala_nb.models.hub import read_json

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import HTML

SCHEMA = Path(__file__).resolve().parent / "templates" / "results.schema.json"
COLUMNS = ("system", "device", "section", "name", "value", "low", "high", "n", "receipt")
NAMED = ("koala_nb", "python", "torch", "diffusers", "platform", "device")
HOST = re.compile(
    r"(?<![\w.])(?:[A-Z]:\\|~/|/(?:home|root|Users|mnt|tmp|work|data|var|opt|srv|scratch|content|workspace)/)",
    re.I,
)
COMMIT = re.compile(r"[0-9a-f]{40}")
HOW = (
    "No measurement of this section was submitted yet. To submit one: draw the report on your "
    "machine with `koala-nb report -p model=koala-lightning-700m`, then run "
    "`koala-nb receipt add reports/<run>/results.json`; data/results/real/README.md says more."
)


def folder() -> Path:
    """The folder of the submitted receipts."""
    return catalog.data_folder() / "results" / "real"


def problems(file: str | Path, against: str | Path | None = None) -> list[str]:
    """All that keeps a results.json from being a receipt, a sentence each; empty where it is one.

    `against`: a JSON Schema, by default that of this version. Raises OSError or ValueError for a
    file that cannot be read or is no JSON object.
    """
    found = read_json(Path(file))
    schema = Path(against or SCHEMA)
    wrong = _against_schema(found, read_json(schema))
    return [*wrong, *_model(found), *_measured(found), *_machine(found)]


def _against_schema(found: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    import jsonschema

    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"The schema is not valid: {error.message}.") from None
    errors = jsonschema.Draft202012Validator(schema).iter_errors(found)
    return [f"{error.json_path}: {error.message[:300]}" for error in errors]


def _part(value: Any, name: str) -> Mapping[str, Any]:
    # A part of the wrong type is the schema's to name; here it holds nothing.
    part = value.get(name) if isinstance(value, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def _model(found: dict[str, Any]) -> Iterator[str]:
    model = _part(found, "model")
    name, revision = model.get("system"), model.get("revision")
    system = next((s for s in catalog.SYSTEMS if s.name == name), None)
    if system is None:
        yield f"model.system is {name!r}: measure a system that `koala-nb systems` lists."
    elif system.embedded:
        yield f"model.system is {name}: an embedded model is measured in the project itself."
    elif model.get("source") != system.repository:
        yield f"model.source is {model.get('source')!r}: load {name} from {system.repository}."
    if not isinstance(revision, str) or not COMMIT.fullmatch(revision):
        yield f"model.revision is {revision!r}: load from the hub, so that it is a commit."
    if found.get("banner"):
        yield "banner is set: it stands only over results of embedded models."


def estimates(found: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The measurements of a results.json: (section, name, its value, low, high and n)."""
    for section, content in _part(found, "sections").items():
        listed = content.get("estimates") if isinstance(content, Mapping) else None
        for one in listed if isinstance(listed, list) else ():
            if isinstance(one, Mapping):
                yield section, str(one.get("name")), one
    for name, one in _part(found, "key_figures").items():
        if isinstance(one, Mapping):
            yield "key_figures", name, one


def _measured(found: dict[str, Any]) -> Iterator[str]:
    counts: dict[str, Any] = {}
    measured = list(estimates(found))
    if not measured:
        yield "sections hold no estimate: there is nothing measured to submit."
    for section, name, one in measured:
        where = f"{section}, {name}"
        ends: list[Any] = [one.get(key) for key in ("value", "low", "high")]
        (value, low, high), n = ends, one.get("n")
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            yield f"{where}: n is {n!r}: give the number of images, at least 1."
        if not all(v is None or _finite(v) for v in (value, low, high)):
            yield f"{where}: value, low and high must be finite numbers."
        elif None not in ends and not low <= value <= high:
            yield f"{where}: the interval {low} to {high} does not hold its value {value}."
        if counts.setdefault(name, n) != n:
            yield f"{where}: n is {n}, elsewhere {counts[name]}: one estimate, one n."


def _finite(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= float_info.max


def _machine(found: dict[str, Any]) -> Iterator[str]:
    environment = _part(found, "environment")
    for name in NAMED:
        if not environment.get(name) or not isinstance(environment[name], str):
            yield f"environment.{name} is missing: make the file with `koala-nb report`."
    if not _part(found, "model").get("device"):
        yield "model.device is missing: say on which device it was measured."
    if "host" in environment or "hostname" in environment:
        yield "environment names the host: remove that line."
    for where, value in _leaves(found):
        if isinstance(value, str) and HOST.search(value):
            yield f"{where} holds a path of your machine ({value[:60]!r}): remove it."
        if isinstance(value, float) and not _finite(value):
            yield f"{where} is {value}: give a finite number, or null."


def _leaves(value: Any, where: str = "$") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else ()
    parts = [*items, *(enumerate(value) if isinstance(value, list) else ())]
    if not parts:
        yield where, value
    for key, one in parts:
        yield from _leaves(one, f"{where}.{key}")


def add(file: str | Path, against: str | Path | None = None) -> Path:
    """Copy a checked results.json to the folder of receipts; returns its path.

    Named `<system>-<device>-<date>.json`. ValueError for a file with problems, or one that would
    replace another.
    """
    wrong = problems(file, against)
    if wrong:
        raise ValueError(f"{file} is no receipt yet ({len(wrong)} problems): {wrong[0]}")
    found = read_json(Path(file))
    device = plan.slug(found["environment"]["device"])
    name = f"{found['model']['system']}-{device}-{time.strftime('%Y-%m-%d')}.json"
    path = folder() / name
    if path.exists():
        raise ValueError(f"{path} is there already: remove it first where this one replaces it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return files.write_json(path, found)


def read(system: str | None = None) -> dict[str, dict[str, Any]]:
    """The submitted receipts, of one system or all: file name -> content.

    Raises WeightsMissing (an OSError) naming a file that is damaged.
    """
    found = {path.name: read_json(path) for path in sorted(folder().glob("*.json"))}
    return {
        name: one for name, one in found.items()
        if system is None or _part(one, "model").get("system") == system
    }  # fmt: skip


def rows(measure: str | None = None) -> pd.DataFrame:
    """The submitted measurements, one a row, of one measure or all; empty where there are none."""
    import pandas as pd

    listed = [
        {
            "system": _part(found, "model").get("system"),
            "device": _part(found, "environment").get("device"),
            "section": section,
            "name": name,
            **{key: one.get(key) for key in ("value", "low", "high", "n")},
            "receipt": file,
        }
        for file, found in read().items()
        for section, name, one in estimates(found)
        if section != "key_figures" and measure in (None, name)
    ]
    return pd.DataFrame(listed, columns=list(COLUMNS))


def table(section: str) -> HTML:
    """The submitted measurements of a section of the report, or how to submit the first one."""
    from IPython.display import HTML

    from koala_nb.report import sections

    found = rows()
    found = found[found.section == section].drop(columns="section").astype(object)
    if found.empty:
        how = re.sub("`([^`]*)`", r"<code>\1</code>", HOW.replace("<run>", "&lt;run&gt;"))
        return HTML(f"<p>{how}</p>")
    lines = found.where(found.notna(), None).itertuples(index=False, name=None)
    caption = f"Submitted measurements ({section}), with 95 % intervals where the method gives one"
    return sections.table(tuple(found.columns), lines, caption)


def main(arguments: Sequence[str]) -> int:
    """The command `koala-nb receipt check | add FILE`; 1 where the file has problems."""
    parser = argparse.ArgumentParser(prog="koala-nb receipt")
    parser.add_argument("what", choices=("check", "add"))
    parser.add_argument("file", metavar="FILE", help="a results.json of `koala-nb report`")
    parser.add_argument("--against", metavar="SCHEMA", help="a JSON Schema (default: our own)")
    options = parser.parse_args(arguments)
    if options.what == "add":
        print(add(options.file, options.against))
        return 0
    wrong = problems(options.file, options.against)
    print("\n".join(wrong) or f"{options.file}: a valid receipt.")
    return 1 if wrong else 0
