"""The lesson plan, the glossary and the exercises agree with the notebooks that they name."""

import math
import re

import nbformat
import pytest

from koala_nb.report import run as reports

FOLDER = reports.NOTEBOOKS
PATHS = sorted(FOLDER.glob("*.ipynb"))
EXERCISE = re.compile(r"^(?:### |\*\*Exercise )\d.*?(★{1,3})\D*?(\d+) minutes\)", re.M)
FINDING = re.compile(r"^- (We found .*)$", re.M)
NUMBER = re.compile(r"−?\d[\d,]*(?:\.\d+)?(?:e−\d+)?")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def prose(path):
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def everything(path):
    """All text of a notebook, lower case, with single spaces: prose, code, outputs."""
    found = []
    for cell in nbformat.read(path, as_version=4).cells:
        found.append(cell.source)
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            html = re.sub("<[^>]+>", " ", data.get("text/html", ""))
            found += [output.get("text", ""), data.get("text/plain", ""), html]
    return " ".join(" ".join(found).replace("*", "").split()).casefold()


def headings(path):
    found = re.findall(r"^#+ (.+)$", prose(path), re.M)
    return {re.sub(r"^\d\. | ★.*$", "", line).strip() for line in found}


@pytest.mark.parametrize("path", PATHS[5:10], ids=lambda path: path.stem)
def test_findings_say_what_follows_and_hold_only_numbers_that_are_printed(path):
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    printed = [o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs]
    known = set(NUMBER.findall(" ".join(printed)))
    findings = FINDING.findall(prose(path))
    assert len(findings) >= 4
    for finding in findings:
        assert re.fullmatch(r"We found .*\bn \d.*; it means .*; .*\.", finding), finding
        missing = set(re.findall(r"−?\d+\.\d+(?:e−\d+)?|(?<=\bn )\d[\d,]*\b", finding)) - known
        assert not missing, (finding, missing)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_exercises_have_stars_minutes_a_check_and_a_solution(path):
    cells = nbformat.read(path, as_version=4).cells
    graded = sum("exercise" in cell.metadata.get("tags", ()) for cell in cells)
    assert len(EXERCISE.findall(prose(path))) >= graded >= 2
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert code.count("kn.check(") + code.count("exercises.check(") == graded
    folded = re.findall("<details><summary>(?:Solution|An answer)", prose(path))
    assert len(folded) == len(EXERCISE.findall(prose(path)))


def rows(text):
    return [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|") and not line.startswith("|---")
    ]


def test_the_plan_counts_exercises_and_reading_as_the_notebooks_do():
    table = (FOLDER / "README.md").read_text("utf-8").split("## All notebooks")[1].split("\n## ")[0]
    lines = {LINK.search(row[0])[1]: row for row in rows(table)[1:]}
    assert list(lines) == [path.name for path in PATHS]
    for path in PATHS:
        found = EXERCISE.findall(prose(path))
        stars, minutes = " ".join(s for s, _ in found), sum(int(m) for _, m in found)
        told = f"{len(found)}: {stars}, {minutes} min" if found else "none"
        _, _, run, reading, exercises, *_ = lines[path.name]
        assert exercises == told, path.stem
        assert int(reading) == math.ceil(len(prose(path).split()) / 100), path.stem
        assert 0 < int(run) <= 120


def test_steps_add_up_and_their_sections_exist():
    parts = re.split(r"^##+ ", (FOLDER / "README.md").read_text("utf-8"), flags=re.M)[1:]
    timed = {p.splitlines()[0]: p for p in parts if re.search(r"\d+ minutes", p.splitlines()[0])}
    assert len(timed) == 9
    for heading, part in timed.items():
        steps = rows(part)[1:]
        promised = int(re.search(r"(\d+) minutes", heading)[1])
        assert sum(int(step[-1]) for step in steps) == promised, heading
        for _, where, *_ in steps:
            if link := LINK.search(where):
                missing = set(re.findall(r"\*([^*]+)\*", where)) - headings(FOLDER / link[1])
                assert not missing, (heading, missing)


@pytest.mark.parametrize("name", ["README.md", "GLOSSARY.md"])
def test_links_lead_somewhere(name):
    links = LINK.findall((FOLDER / name).read_text("utf-8"))
    assert len(links) > 20
    assert not [link for link in links if not (FOLDER / link).exists()]


def test_the_glossary_is_in_order_and_its_terms_stand_where_it_says():
    entries = re.split(r"^## ", (FOLDER / "GLOSSARY.md").read_text("utf-8"), flags=re.M)[1:]
    terms = [entry.splitlines()[0] for entry in entries]
    assert len(terms) >= 60
    assert terms == sorted(set(terms), key=str.casefold)
    texts = {path.name: everything(path) for path in PATHS}
    for term, entry in zip(terms, entries):
        named = LINK.findall(entry)
        assert named, term
        for notebook in named:
            assert term.casefold() in texts[notebook], (term, notebook)
