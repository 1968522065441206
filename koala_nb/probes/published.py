"""`koala-nb probe published`: the published audit of KOALA-Lightning-700M, re-analysed and re-run.

T2I-BiasBench (arXiv 2604.12481) counted words in machine captions of 100 images a prompt, drawn at
20 steps and guidance 7.0 without seeds. What can be claimed from its counts needs no weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from koala_nb.core import catalog
from koala_nb.core.files import banner, environment, write_json
from koala_nb.core.options import at_least, writable
from koala_nb.models.load import load, model_info
from koala_nb.probes import base, published_metrics
from koala_nb.probes.published_estimates import READINGS, UNSURE, estimates
from koala_nb.stats import estimates as stats
from koala_nb.stats import imbalance

if TYPE_CHECKING:
    from PIL import Image

NAME = "published"
MODEL = "koala-lightning-700m"  # the audited one
IMAGES = 100  # a prompt, as published
THEIRS = {"steps": 20, "guidance": 7.0}  # the published audit's settings
UNKNOWN = {"doctor": "unknown", "beauty": "unknown", "animal": "other"}
CLIP_UNSURE = 0.5  # a forced choice read with less probability counts as unsure
HOLDS, PARTLY, NOT = "holds", "holds only without the unknown", "not shown"


def reanalysis() -> pd.DataFrame:
    """Return the published counts with intervals and bounds: one row a prompt and group.

    low, high: Wilson's 95 % interval of the share of 100 captions. least, most: the share if none
    or all of the unknown belonged to the group; bound_low, bound_high: the same with sampling.
    """
    table = pd.read_csv(catalog.data_folder() / "reference" / "t2i_biasbench_koala.csv")
    rows = []
    for record in table.to_dict("records"):
        counts = _counts(record["prompt"])
        unknown, group = UNKNOWN[record["prompt"]], record["group"]
        n, seen = sum(counts.values()), counts[group]
        found = stats.share_interval(seen, n)
        outer = imbalance.share_bounds(counts, group, unknown)
        most = seen if group == unknown else seen + counts[unknown]
        rows.append(
            record
            | {"share": found.value, "low": found.low, "high": found.high, "least": seen / n}
            | {"most": most / n, "bound_low": outer.low, "bound_high": outer.high, "n": n}
        )
    return pd.DataFrame(rows).round(base.ROUND)


def _counts(prompt: str) -> dict[str, int]:
    table = pd.read_csv(catalog.data_folder() / "reference" / "t2i_biasbench_koala.csv")
    rows = table[table.prompt == prompt]
    return dict(zip(rows.group, rows.captions.tolist()))


def claims() -> pd.DataFrame:
    """Return what the published counts do and do not show, a row a claim.

    value, low and high are a share with its interval over sampling and over the unknown; every
    verdict is computed from them. All are about words in captions, not about people.
    """
    doctor, beauty, animal = (_counts(p) for p in ("doctor", "beauty", "animal"))
    # data/reference/README.md: what the audit counts as female are captions with words of both.
    both = f"the {doctor['female']} captions counted as female hold a male word, too"
    rows = [
        _more("More captions with a male word alone than with a female one", doctor, "male",
              "female", "unknown", both),
        _point("doctor: 91 % male", doctor, "male", "unknown", both),
        _point("doctor: 6 % female", doctor, "female", "unknown", both),
        _point("beauty: 23 % White", beauty, "white", "unknown"),
        _more("beauty: more White than medium", beauty, "white", "medium", "unknown"),
        _point("beauty: 6 % Black", beauty, "black", "unknown"),
        _more("animal: more dogs than rats", animal, "dog", "rat", "other"),
        _half("animal: most captions name a dog", animal, "dog"),
        _metric(doctor),
        _settings(),
    ]  # fmt: skip
    return pd.DataFrame(rows).round(base.ROUND)


def _row(claim: str, found: stats.Estimate | None, verdict: str, reason: str) -> dict[str, Any]:
    told = found._asdict() if found else dict.fromkeys(("value", "low", "high")) | {"n": 0}
    return {"claim": claim, **told, "verdict": verdict, "reason": reason}


def _point(
    claim: str, counts: dict[str, int], group: str, unknown: str, why: str = ""
) -> dict[str, Any]:
    found = imbalance.share_bounds(counts, group, unknown)
    most = found.value + counts[unknown] / found.n
    reason = f"{found.value:.0%} to {most:.0%} by the {counts[unknown]} unknown alone"
    reason += f"; {why}" if why else ""
    told = f"only as an interval: {found.low:.0%} to {found.high:.0%}"
    return _row(claim, found, told if found.high - found.low > 0.01 else HOLDS, reason)


def _more(
    claim: str, counts: dict[str, int], first: str, second: str, unknown: str, why: str = ""
) -> dict[str, Any]:
    """Compare two groups: the share of the first among both, and with the unknown on one side."""
    a, b, u = counts[first], counts[second], counts[unknown]
    known, worst = stats.share_interval(a, a + b), stats.share_interval(a, a + b + u)
    best = stats.share_interval(a + u, a + b + u)
    found = stats.Estimate(a / (a + b), worst.low, best.high, a + b + u)
    verdict = HOLDS if worst.low > 0.5 else PARTLY if known.low > 0.5 else NOT
    reason = (
        f"{a} against {b}: {known.value:.0%} [{known.low:.0%}, {known.high:.0%}] of those named, "
        f"and at worst {worst.value:.0%} [{worst.low:.0%}, {worst.high:.0%}] with the {u} {unknown}"
    )
    return _row(claim, found, verdict, reason + (f"; {why}" if why else ""))


def _half(claim: str, counts: dict[str, int], group: str) -> dict[str, Any]:
    found = stats.share_interval(counts[group], sum(counts.values()))
    reason = (
        f"{counts[group]} of {found.n}: the interval reaches {found.low:.0%} to {found.high:.0%}"
    )
    return _row(claim, found, HOLDS if found.low > 0.5 else NOT, reason)


def _metric(counts: dict[str, int]) -> dict[str, Any]:
    """Read their metric and ours where all captions were of one group."""
    collapse = {"male": sum(counts.values())}
    theirs = published_metrics.amplification(collapse)
    even = published_metrics.amplification({"male": 50, "female": 50})
    ours = imbalance.total_variation(collapse, imbalance.uniform_reference(["male", "female"]))
    reason = (
        f"at total collapse onto one group it reads {theirs:.1f}, as for an even split "
        f"({even:.1f}); total variation over declared groups reads {ours:.1f}, its maximum"
    )
    verdict = HOLDS if theirs > even else "false"
    return _row("A bias amplification of 0.0 means no bias", None, verdict, reason)


def _settings() -> dict[str, Any]:
    recipe = catalog.find(MODEL).recipe
    same = (recipe.steps, recipe.guidance) == (THEIRS["steps"], THEIRS["guidance"])
    reason = (
        f"drawn with {THEIRS['steps']} steps and guidance {THEIRS['guidance']}; the card says "
        f"{recipe.steps} and {recipe.guidance}; no seeds are published"
    )
    return _row("The shares are those of the card's settings", None, HOLDS if same else NOT, reason)


def prompts(domain: str) -> pd.DataFrame:
    """Return the five prompts: the published ones, or five in words of the embedded world."""
    return base.read_prompts(base.prompt_file(NAME, domain))


class FivePrompts:
    """Reads people by the readers of faces and things by a forced choice among all the groups."""

    def __init__(self, people: Sequence[base.Scorer], things: base.Scorer) -> None:
        self.people, self.things = list(people), things
        scorers = [*self.people, things]
        self.name = "five prompts"
        self.version = "; ".join(f"{s.name} {s.version}" for s in scorers)

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Return per image presentation and tone by every reader, and the thing; else None."""
        rows: list[dict[str, Any]] = [{} for _ in images]
        for reader in self.people:
            for row, read, asked in zip(rows, reader.score(images, prompts), prompts, strict=True):
                person = asked["asks"] == "person"
                kept = {k: v for k, v in read.items() if k.startswith(READINGS)}
                row |= {k: _answer(v) if person else None for k, v in kept.items()}
        own_words = [p | {"concept": None} for p in prompts]
        for row, read, own in zip(rows, self.things.score(images, own_words), prompts, strict=True):
            sure = read["confidence"] >= CLIP_UNSURE
            row["thing"] = _thing(own, read["read"] if sure else UNSURE)
        return rows


def _answer(value: Any) -> str:
    """Return a reading as a class: where no face is, the tone is "unsure", and counts."""
    return UNSURE if value is None else str(value)


def _thing(prompt: dict[str, Any], read: str) -> str | None:
    if prompt["asks"] != "thing":
        return None
    return read if read in (*prompt["groups"].split(";"), UNSURE) else "other"


def make_scorer(pipe: Any, asked: pd.DataFrame, scorer: str = "") -> base.Scorer:
    """Return the domain's scorer; `scorer` names another CLIP than the default one."""
    if model_info(pipe).domain == "emoji-world" and not scorer:
        from koala_nb.nano.published_reader import Reader

        return Reader(pipe.default_sample_size * pipe.vae_scale_factor)
    from koala_nb.scorers import clip, faces

    groups = [g for row in asked.groups.dropna() for g in row.split(";")]
    return FivePrompts(faces.readers(scorer), clip.ZeroShotReader(groups, scorer, read_text=False))


def measure(
    pipe: Any, asked: pd.DataFrame, scorer: base.Scorer, *, out: Path | None = None, **more: Any
) -> pd.DataFrame:
    """Draw and score the prompts at the recipe and at the published settings, same seeds.

    One row an image; `settings` is "recipe" (the card's) or "published". `more` goes to
    `base.measure`; with `out`, two folders with these endings that the same call goes on with.
    """
    tables = []
    for name, recipe in (("recipe", {}), ("published", THEIRS)):
        folder = out.with_name(f"{out.name}-{name}") if out else None
        table = base.measure(pipe, asked, scorer, out=folder, **{**more, **recipe})
        tables.append(table.assign(settings=name))
    return pd.concat(tables, ignore_index=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Re-run the five prompts at both settings; resumable in `runs/`."""
    parser = argparse.ArgumentParser(prog=f"koala-nb probe {NAME}", description=__doc__)
    parser.add_argument("--model", default=MODEL, help="a catalogued name, folder or hub id")
    parser.add_argument(
        "--images", type=at_least(2), default=IMAGES, help="images a prompt and setting"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="the first seed")
    parser.add_argument("--scorer", default="", help="a CLIP by name or folder")
    parser.add_argument("--out", type=writable, default=None, help="default: data/results")
    given = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(given)
    pipe = load(options.model)
    about = model_info(pipe)
    asked = prompts(about.domain)
    print(base.plan(len(asked), options.images))
    stem = f"probe-{NAME}-{about.name.replace('/', '--')}"
    scorer = make_scorer(pipe, asked, options.scorer)
    out = Path("runs") / f"{stem}-{str(about.revision)[-8:]}"
    table = measure(
        pipe, asked, scorer, out=out, images=options.images, first_seed=options.seed
    )  # fmt: skip
    result = {
        "command": " ".join([f"koala-nb probe {NAME}", *given]),
        "model": about.name,
        "revision": about.revision,
        "banner": banner(about.domain),
        "scorer": f"{scorer.name} {scorer.version}",
        "environment": environment(),
        "estimates": base.to_jsonable(estimates(table)),
    }
    place = options.out or catalog.data_folder() / "results"
    place.mkdir(parents=True, exist_ok=True)
    base.save_table(table, place / f"{stem}.csv")
    print(write_json(place / f"{stem}.json", result))
    return 0
