"""The audit report for people: sentences, tables and figures, and a section of a model card."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING
from urllib.parse import quote

import pandas as pd

from koala_nb.core import card, files
from koala_nb.core.files import Record
from koala_nb.display import figures
from koala_nb.display.tables import format_interval, format_number, show_table
from koala_nb.generation.run_folder import open_run
from koala_nb.probes import base
from koala_nb.report import findings, handover, measures, results
from koala_nb.report import run as reports
from koala_nb.report.claims import HOLDS, NOT, UNDECIDED, UNTESTED
from koala_nb.report.page import fill_template, show_html
from koala_nb.stats.estimates import estimates_frame

if TYPE_CHECKING:
    from koala_nb.report.audit import Audit
    from koala_nb.report.measures import Section

TITLES = {
    "architecture": "Architecture",
    "text": "Text rendering",
    "composition": "Complex prompts",
    "frequency": "Dataset dependence",
    "demographics": "Bias",
    "safety": "Safety",
    "latency": "Latency and memory",
    "quality": "Measured quality",
}
RISKS = ("demographics", "safety")  # of the model card's last part
RECORD_COLUMNS = ("prompt", "seed", "steps", "guidance", "width", "height", "file")
COMPARISON = "The card's table against configurations; latencies are quoted"
SAMPLES = 6  # images of a probe that the page shows
HEROES = 8  # images on the first screen
MACHINE = ("architecture", "latency", "quality")  # sections that no probe measures
WORDS = 5  # of a prompt, whose maps are shown
BARS = ("small_must", "full_must", "full_goal")  # of quality, set before training
FEW = 100  # images, or occupations


VERBS = {  # of one statement, of several
    HOLDS: ("holds", "hold"),
    NOT: ("does not hold", "do not hold"),
    UNDECIDED: ("is undecided", "are undecided"),
    UNTESTED: ("was not tested", "were not tested"),
}


def section_title(name: str) -> str:
    """Return the heading of a section, for a probe of one's own its name."""
    return TITLES.get(name, name.capitalize())


def summary_sentences(audit: Audit) -> list[str]:
    """Return the executive summary: the findings, what they rest on, what was not tested."""
    sections, name = audit.sections, audit.info.label
    drawn = len(audit.run.images) + sum(section.n for section in sections.values())
    sentences = [f"{name} drew {drawn:,} images for this report: {drawing(audit)}."]
    if audit.is_given:
        sentences = [f"{drawn:,} images of {name} are read as given: {drawing(audit)}."]
    elif any(len(section.stored) for section in sections.values()):
        sentences[0] += " An earlier, larger run of these weights decides where it says stored run."
    untested = {f["section"] for f in audit.findings if f["state"] == UNTESTED}
    sentences += [_counted(audit)] if audit.findings else []
    sentences += [f["sentence"] for f in audit.findings if f["state"] != UNTESTED]
    sentences += [
        f"Not tested: {section_title(s.name).lower()}. {s.why.rstrip('.')}."
        for s in sections.values()
        if (s.state == UNTESTED or s.name in untested) and s.why and s.name not in MACHINE
    ]
    if audit.compared:
        sentences.append(handover.comparison_sentence(audit.compared))
    return sentences + _verdict_sentences(name, audit.verdicts)


def drawing(audit: Audit) -> str:
    """Return with which steps, guidance and size the images at first sight were drawn."""
    first = audit.run.records.iloc[0]
    size = f"{first.width} x {first.height} pixels"
    return size if audit.is_given else f"{first.steps} steps, guidance {first.guidance:g}, {size}"


def _verdict_sentences(name: str, claims: Sequence[Record]) -> list[str]:
    sentences = []
    limits = [c for c in claims if c["id"].startswith("limitation.")]
    others = [c for c in claims if c not in limits]
    for part, what in (
        (
            others,
            "published statements on the models themselves (sizes and depths: from configurations)",
        ),
        (limits, f"limitations on the card, judged on images of {name} only"),
    ):
        counts = [(v, sum(c["verdict"] == v for c in part)) for v in VERBS]
        counted = ", ".join(f"{n} {_verb(v, n)}" for v, n in counts if n)
        sentences += [f"Of {len(part)} {what}, {counted}."] if part else []
    for verdict in VERBS:
        texts = [
            c["claim"] if verdict == NOT or c in limits else c["claim"].partition(":")[0]
            for c in claims
            if c["verdict"] == verdict
        ]
        label = verdict if verdict in (UNDECIDED, UNTESTED) else _verb(verdict, len(texts))
        sentences += [f"{label.capitalize()}: {'; '.join(texts)}."] if texts else []
    return sentences


def _verb(verdict: str, count: int) -> str:
    return VERBS[verdict][count != 1]


def show_summary(audit: Audit) -> None:
    """Display the findings with their severity, and what the published statements come to."""
    titles = {section.name: section_title(section.name) for section in audit.sections.values()}
    places = {name: title.lower().replace(" ", "-") for name, title in titles.items()}
    values: Record = {"titles": titles, "places": places, "rules": findings.rules()}
    shown = {f["sentence"] for f in audit.findings}
    drawn, *others = [sentence for sentence in audit.sentences if sentence not in shown]
    lead, others = (others[0], others[1:]) if audit.findings else ("", others)
    values |= {"drawn": drawn, "lead": lead, "others": others}
    has_ours = any(values["rules"]["labeller"] in f["sentence"] for f in audit.findings)
    values["labels"] = values["rules"]["labels"] if has_ours else ""
    page = fill_template("findings.html.j2", findings=audit.findings, **values)
    show_html(page, "\n".join(audit.sentences))


def _counted(audit: Audit) -> str:
    """Return, in a sentence, how many questions were found to be what."""
    states = [
        f"{f['severity']} severity" if f["state"] == findings.OVER else f["state"]
        for f in audit.findings
    ]
    parts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    return f"{len(states)} questions: {', '.join(parts)}."


def show_section(audit: Audit, section: Section) -> None:
    """Display a section's images and its estimates of both runs, or what is missing."""
    _show_samples(audit, section)
    if section.state == UNTESTED:
        return show_html(f"<p><strong>Not tested.</strong> {escape(section.why)}</p>")
    if section.why:
        show_html(f"<p>{escape(section.why)}</p>")
    frame, title = beside(section), section_title(section.name)
    run, groups = "stored run" if len(section.stored) else "this run", findings.groups(section)
    if len(deciding := findings.deciding(section)):
        show_table(deciding, f"{title}, what decides a finding, {run}")
    is_tone = groups.id.str.contains(".tone.", regex=False)
    for part in (groups[~is_tone], groups[is_tone]):
        _show_groups(section, part, run)
    coded = findings.is_coded(frame)
    if deciding.id.str.contains(".corrected.", regex=False).any():
        title = f"{title}, readings that no labels correct"
    if not coded.all():
        show_table(frame[~coded], f"{title}, measured" if coded.any() else title)
    if coded.any():
        columns = [name for name in frame if name in ("id", "label") or "run" in name]
        rows = frame.loc[coded, columns]
        caption = f"{title}, works as coded: prompts compared with a list, nothing is measured"
        show_table(rows.dropna(axis="columns", how="all"), caption)


def _show_groups(section: Section, rows: pd.DataFrame, run: str) -> None:
    """Display estimates by group beside what an even share would be, where there is one."""
    if rows.empty:
        return
    even, title, drawn = None, f"{section_title(section.name)}, by group, {run}", rows
    if section.name == "demographics":
        known = section.details[section.details.id.str.endswith(".even")].value
        even = next(iter(known), None) if ".tone." in rows.id.iloc[0] else 0.5
        parts = rows.label.str.split("[“”]")  # women among images of, an occupation, corrected
        title, drawn = f"{title}: {parts.iloc[0][0]}each", rows.assign(label=parts.str[1])
    figures.show_intervals(drawn, title, "share of images, 95 % interval", even)
    ends = {f"bounds_{end}": f"{figures.BOUNDS}_{end}" for end in ("low", "high")}
    show_table(rows.drop(columns="claimed", errors="ignore").rename(columns=ends), title)


def beside(section: Section) -> pd.DataFrame:
    """Return a section's estimates, one row per id: this run's beside the stored one's."""
    runs = {"this run": section.estimates, "stored run": section.stored}
    runs = {run: frame for run, frame in runs.items() if len(frame)}
    ends = [[run, f"{run}_low", f"{run}_high", f"n, {run}"] for run in runs]
    rows: dict[str, Record] = {}
    for columns, frame in zip(ends, runs.values()):
        for e in frame.to_dict("records"):
            row = rows.setdefault(e["id"], {k: e[k] for k in ("id", "label", "method", "scorer")})
            row |= dict(zip(columns, (e[k] for k in ("value", "low", "high", "n"))))
    order = ["id", "label", *(name for columns in ends for name in columns), "method", "scorer"]
    return pd.DataFrame(rows.values(), columns=order)


def _show_samples(audit: Audit, section: Section) -> None:
    """Display images of a section, those that fail beside the others, and where all of them are."""
    folder = audit.folder / section.name
    if section.images is None or section.images.empty or not (folder / "images").is_dir():
        return
    decides = "".join(".".join(id.split(".")[:2]) for id in section.details.id.head(1))
    known = section.images.measure.unique().tolist()
    measure = next((name for name in known if decides and name.startswith(decides)), known[0])
    rows = section.images[section.images.measure == measure]
    read = {(r.prompt, int(r.seed)): r.value for r in rows.itertuples()}
    label = section.estimates.set_index("id").label.get(measure, measure)
    run = open_run(folder)
    keys = zip(run.records.prompt, run.records.seed.astype(int))
    values = [read.get(key) for key in keys]
    yes, no = ([i for i, v in enumerate(values) if v == answer] for answer in (1, 0))
    half = SAMPLES // 2
    chosen = _spread(yes, max(half, SAMPLES - len(no))) + _spread(no, max(half, SAMPLES - len(yes)))
    files_of = [f"{section.name}/{run.records.file.iloc[i]}" for i in chosen]
    prompts = [figures.printable(run.records.prompt.iloc[i]) for i in chosen]
    captions = [f"{'yes' if values[i] == 1 else 'no'}: {p}" for i, p in zip(chosen, prompts)]
    title = f"{section_title(section.name)}, this run, {label}"
    title += f": yes in {len(yes)} of {len(yes) + len(no)}"
    images = [run.images[i].convert("RGB") for i in chosen]
    show_html(f'<p class="note">{escape(title)}.</p>', f"{title}.")
    figures.show_images(images, captions, columns=[""] * SAMPLES, title=title)
    if reports.in_report():
        named = zip(files_of, captions)
        links = ", ".join(f'<a href="{quote(f)}">{escape(c)}</a>' for f, c in named)
        every = f'<a href="{quote(section.name)}/images/">all {len(values)} images</a>'
        show_html(f'<p class="note">At full size: {links}; {every}.</p>')


def _spread(numbers: Sequence[int], count: int) -> list[int]:
    return list(numbers[:: max(1, len(numbers) // count)][:count])


def show_claims(claims: Sequence[Record]) -> None:
    """Display each statement, its verdict, the figures that decide, its rule and its source."""
    text = "\n".join(f"{c['claim'].rstrip('.')}: {c['verdict']}. {_reason(c)}" for c in claims)
    show_html(fill_template("claims.html.j2", claims=claims, reason=_reason), text)


def _reason(claim: Record) -> str:
    if claim["value"] is None:
        return f"{claim['why']}."
    return f"{_interval(claim)}, n {claim['n']:,}: {claim['why']}."


def _interval(estimate: Record) -> str:
    return format_interval(estimate["value"], estimate["low"], estimate["high"])


def _show_title(audit: Audit) -> None:
    text = files.banner(audit.info.domain)
    style = figures.BANNER_STYLE
    banner = f'<p class="banner" role="note" style="{style}">{escape(text or "")}.</p>'
    show_html(f"<h1>Audit report: {escape(audit.info.label)}</h1>{banner if text else ''}")
    heroes = list(audit.run.records.drop_duplicates("prompt").index[:HEROES])
    captions = [audit.run.records.prompt[i] for i in heroes]
    columns = [""] * len(heroes)
    images = [audit.run.images[i].convert("RGB") for i in heroes]
    figures.show_images(images, [figures.printable(c) for c in captions], columns=columns)


def _show_card(audit: Audit) -> None:
    facts = card.CARD
    rows = {
        "What it is": facts.what,
        "Compression": facts.compression,
        "Training": facts.training,
        "Steps": facts.steps_note,
        "Intended uses": "; ".join(facts.uses),
        "Out of scope": facts.out_of_scope,
        "Limitations": "; ".join(facts.limitations),
        "Licence": facts.licence,
        "Citation": facts.citation,
    }
    show_table(rows, f"KOALA-Lightning-700M, in our words. Source: {facts.source}")


def _show_published_latency(audit: Audit) -> None:
    rows = {
        system: ["out of memory" if v is None else f"{v[0]:.2f} s, {v[1]:.1f} GB" for v in values]
        for system, values in card.LATENCY_FIGURE.items()
    }
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=list(card.LATENCY_GPUS))
    source = f"Source: {card.FIGURE_SOURCE}; {card.LATENCY_CONDITIONS}"
    show_table(frame.rename_axis("system"), f"Latency, peak memory. {source}")


def _show_identity(audit: Audit) -> None:
    info, recipe, pipe = audit.info, audit.session.recipe, audit.session.pipe
    changed = ", ".join(f"{k} {v}" for k, v in audit.session.settings.items())
    seeds = audit.session.seeds
    rows = {
        "system": info.system.title if info.system else info.label,
        "source": info.origin,
        "revision": info.revision,
        "licence": info.system.licence if info.system else None,
        "precision": info.dtype,
        "device": files.device_name(info.device),
        "scheduler": type(pipe.scheduler).__name__,
        "timestep spacing": pipe.scheduler.config.get("timestep_spacing"),
        "recipe": f"{recipe.steps} steps, guidance {recipe.guidance}; source: {recipe.source}",
        "changed in this report": changed or "nothing",
        "seeds": f"{seeds[0]} to {seeds[-1]}",
        "notes": "; ".join(info.notes) or "none",
    }
    show_table(rows, "The model of this report and its settings")
    show_table(files.versions(), "Software of this report")


def _show_attention(audit: Audit) -> None:
    """Draw the first prompt again with the attention to its longest words, or say what lacks."""
    from koala_nb.attention import page
    from koala_nb.attention.capture import CannotCapture, capture_attention
    from koala_nb.generation.generate import generate

    pipe, prompt, seed = audit.session.pipe, audit.prompts["prompt"][0], audit.session.seeds[0]
    try:
        with capture_attention(pipe, keep_axes=()) as attention:
            run = generate(pipe, [prompt], [seed], progress=False, **audit.session.settings)
    except CannotCapture as error:
        return print(f"Not shown: {error}")
    image, maps = run.images[0], attention.words(prompt)
    different = [text for text in dict.fromkeys(maps.texts) if text.isalnum()]
    longest = sorted(different, key=len, reverse=True)[:WORDS]
    words = [word for word in different if word in longest]
    top = max(float(maps[word].max()) for word in words)
    shown = [image, *(page.overlay(image, maps[word], top) for word in words)]
    captions = ["the image", *(f"{word}: {page.place(maps[word])}" for word in words)]
    title = f"{prompt}, seed {seed}: where each word's attention is largest"
    figures.show_images(shown, captions, columns=[""] * len(shown), title=title)


def _show_timing(audit: Audit) -> None:
    if not reports.in_report():
        text = "The time an image took is measured where this runs as a report."
    elif not audit.run.batches:
        text = "All images were there from an interrupted run: no time was measured."
    else:
        text = f"One image took {audit.run.seconds_per_image:.2f} s on this machine."
    show_html(f"<p>{text}</p>", text)
    show_section(audit, audit.section("latency"))


def _show_quality(audit: Audit) -> None:
    info, stored = audit.info, measures.stored_quality(audit.info)
    if not stored:
        text = (
            f"Not measured for these weights ({info.label}, revision {info.revision}): the "
            "instruments of this version know the embedded models only. For one of them run "
        )
        return show_html(f"<p>{escape(text)}<code>koala-nb evaluate</code>.</p>")
    columns = ["measure", *BARS, "value", "low", "high", "n", "instrument"]
    frame = pd.DataFrame(stored["rows"])[columns]
    frame.insert(2, f"{BARS[0]} reached", [_reached(row, row[BARS[0]]) for row in stored["rows"]])
    source = f"data/results/quality-{info.name}.json"
    caption = f"Measured quality of {info.name}; n/a: no bar was set. Source: {source}"
    for few, part in frame.groupby(frame.n < FEW):  # two decimals are enough for few
        note = f"; n below {FEW}" if few else ""
        show_table(part.reset_index(drop=True), f"{caption}{note}", digits=2 if few else 3)


def _reached(row: Record, bar: float | None) -> str | None:
    if bar is None:
        return None
    return "yes" if row["low"] >= bar else "no" if row["high"] < bar else "undecided"


def _show_elsewhere(audit: Audit) -> None:
    frame = results.receipts("latency").drop(columns="section")
    if frame.empty:
        return show_html(fill_template("submit.html.j2"))
    show_table(frame, "Submitted measurements of latency")


def _show_records(audit: Audit, first: int = 6) -> None:
    records = audit.run.records
    columns = [name for name in RECORD_COLUMNS if name in records]
    caption = (
        f"The first {min(first, len(records))} of {len(records)} records. All of them, with every "
        "setting, stand in generated/records.jsonl beside this page and inside each PNG"
    )
    show_table(records[columns].head(first), caption)


PARTS: dict[str, Callable[[Audit], None]] = {
    "title": _show_title,
    "card": _show_card,
    "published latency": _show_published_latency,
    "identity": _show_identity,
    "images": lambda audit: figures.show_images(audit.run),
    "comparison": lambda audit: show_table(audit.comparison, COMPARISON),
    "attention": _show_attention,
    "latency": _show_timing,
    "quality": _show_quality,
    "measured elsewhere": _show_elsewhere,
    "records": _show_records,
    "instruments": handover.show_instruments,
    "other report": handover.show_comparison,
    "evidence": handover.show_evidence,
    "crosswalk": lambda audit: handover.show_crosswalk(audit, TITLES),
    "sign-off": handover.show_sign_off,
}


def model_card(results: results.Results) -> str:
    """Return Markdown for a model's page on the hub, from a report's results, without any link."""
    plain = results.to_json()
    titles = {name: section_title(name) for name in plain["sections"]}
    forms: Record = {"escaped": escaped, "interval": _interval, "number": format_number}
    rows = {name: _card_rows(name, section) for name, section in plain["sections"].items()}
    forms |= {"titles": titles, "risks": RISKS, "rows": rows}
    return fill_template("model_card.md.j2", **plain, **forms)


def _card_rows(name: str, plain: Record) -> list[Record]:
    """Return a section's rows of both runs, first those that decide a finding, bounds by group."""
    frames = {key: estimates_frame(plain[key]) for key in ("details", "estimates", "stored")}
    section = measures.Section(name, **frames)
    every = pd.concat([findings.deciding(section), findings.groups(section)], ignore_index=True)
    every = every[~every.id.str.contains(".these_prompts.", regex=False)].copy()
    if "bounds_low" in every:
        known = every.bounds_low.notna()
        p = every.p_holm[known].map(lambda value: format_number(value, 3))
        every.loc[known, "label"] += f", bounds {figures.BOUNDS}, p by Holm " + p
        for end in ("low", "high"):
            every[end] = every[end].where(~known, every[f"bounds_{end}"])
    run = "stored run" if plain["stored"] else "this run"
    parts = [(f"{run}, decides", base.to_jsonable(every)), ("this run", plain["estimates"])]
    parts += [("stored run", plain["stored"])]
    return [row | {"run": which} for which, part in parts for row in part]


def escaped(text: object) -> str:
    """Return a text that Markdown shows as it is: no markup, no link, no second line."""
    plain = " ".join(str(text).split())
    marked = re.sub(r"([\\`*_{}\[\]<>()#|!~$&])", r"\\\1", plain)
    return re.sub(r"(https?):", r"\1\:", marked)
