"""What lets somebody else stand by a report: hashes of all evidence, a crosswalk, a sign-off."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from koala_nb.core import files
from koala_nb.core.catalog import data_folder
from koala_nb.display.tables import show_table
from koala_nb.report.page import fill_template

if TYPE_CHECKING:
    from koala_nb.report.audit import Audit

MANIFEST = "MANIFEST.sha256"
NOT_EVIDENCE = ("index.html", "status.json", MANIFEST)  # written after it, or of the run itself
SIGN_OFF = (
    "Audited by (name, organisation)",
    "Conflicts of interest",
    "Decision: accept, accept with conditions, or reject",
    "Conditions, and who owns each open risk",
    "Date; to be reviewed on",
)


def write_manifest(folder: Path, stored: list[Path]) -> Path:
    """Write the SHA-256 of all files of a run, and of stored results, as `sha256sum -c` reads them.

    The executed notebook and the page are written after it and stand in no line.
    """
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and _is_evidence(p)]
    lines = [f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths]
    lines += [f"# {_sha256(path)}  data/results/{path.name}\n" for path in stored]
    return files.write_atomic(folder / MANIFEST, "".join(lines).encode())


def _is_evidence(path: Path) -> bool:
    return path.name not in NOT_EVIDENCE and path.suffix != ".ipynb" and path.name[0] != "."


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stored_files(audit: Audit) -> list[Path]:
    """Return the stored results, and their tables, that a report rests on."""
    results = data_folder() / "results"
    names = [s.name for s in audit.sections.values() if len(s.stored)]
    patterns = [f"probe-{name}-{audit.info.name}.*" for name in names]
    patterns += [f"{name}-{audit.info.name}.json" for name in names]
    return sorted(path for pattern in patterns for path in results.glob(pattern))


def show_evidence(audit: Audit) -> None:
    """Write the report's files and their manifest, and display how to check them."""
    audit.save()
    lines = (audit.folder / MANIFEST).read_text("utf-8").splitlines()
    rows = {
        "files with a hash": len(lines),
        "hash of the rules, from before anything was drawn": audit.rules_hash[:16],
        "check them": f"sha256sum -c {MANIFEST}, in this folder",
    }
    caption = f"Evidence: {MANIFEST} lists the SHA-256 of every file that this page rests on"
    show_table(rows, caption)


def show_crosswalk(audit: Audit) -> None:
    """Display what this report fills of three frameworks, and what only the provider can."""
    frame = files.read_csv(files.REFERENCE / "crosswalk.csv", dtype=str)
    frame = frame.replace("", "-").rename(columns={"here": "filled here"})
    frame = frame.rename(columns={"provider": "only the provider can fill"})
    show_table(frame, "What this report fills, and what it cannot. It is no legal advice")


def show_sign_off(audit: Audit) -> None:
    """Display the lines that a person fills in by hand."""
    from IPython.display import display

    text = "; ".join(SIGN_OFF)
    page = fill_template("sign_off.html.j2", lines=SIGN_OFF)
    display({"text/html": page, "text/plain": f"To be filled in: {text}."}, raw=True)
