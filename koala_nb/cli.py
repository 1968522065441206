"""The command line: the calls of the module, one subcommand each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from koala_nb.core.options import at_least, writable

REPORT = "11_write_the_audit_report"
DELEGATES = ("train", "evaluate", "benchmark", "probe", "plan")
MEMORY = (
    "memory ran out: give a smaller --size or fewer --workers, or load the model with another "
    "dtype or with offload."
)
BENCHMARKS = {"generation": "speed.throughput", "latency": "speed.latency"}
PROBES = ("text", "composition", "frequency", "demographics", "published", "safety")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code.

    0 when done, 1 where a report's notebook failed, 2 for a user's error (one line on stderr).
    """
    options, rest = _parser().parse_known_args(arguments)
    if rest and options.command not in DELEGATES:
        _parser().error(f"unrecognised arguments: {' '.join(rest)}")
    options.rest = rest
    try:
        options.call(options)
    except (ValueError, OSError) as error:
        print(f"koala-nb: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if type(error).__name__ == "ReportFailed":
            print(f"koala-nb: {error}", file=sys.stderr)
            return 1
        from koala_nb.core.devices import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        print(f"koala-nb: {MEMORY}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("koala-nb: interrupted; call it again to go on.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="koala-nb", description="Generate, inspect and audit the KOALA text-to-image models."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    systems = commands.add_parser("systems", help="print what is known of each catalogued model")
    systems.set_defaults(call=_systems)

    generate = commands.add_parser("generate", help="draw images of a prompt into a folder")
    generate.add_argument("model", help="a catalogued name, a folder or a hub id")
    generate.add_argument("prompt", nargs="+", help="one or more prompts, each in quotes")
    generate.add_argument(
        "--seeds", type=at_least(1), default=4, help="images a prompt (default 4)"
    )
    generate.add_argument("--seed", type=at_least(0), default=0, help="the first seed (default 0)")
    generate.add_argument(
        "--steps", type=at_least(1), help="denoising steps (default: the recipe's)"
    )
    generate.add_argument("--guidance", type=float, help="guidance scale (default: the recipe's)")
    generate.add_argument("--size", type=at_least(1), help="pixels a side (default: the recipe's)")
    generate.add_argument(
        "--out", type=writable, default="runs/generate", help="folder (default runs/generate)"
    )
    generate.add_argument(
        "--workers", type=at_least(0), default=0, help="processes (default: this one)"
    )
    generate.set_defaults(call=_generate)

    report = commands.add_parser("report", help="run a notebook and write its HTML page")
    report.add_argument("notebook", nargs="?", default=REPORT, help=f"default {REPORT}")
    report.add_argument("-p", action="append", default=[], metavar="NAME=VALUE", dest="parameters")
    report.add_argument("--out", type=writable, default="reports", help="folder (default reports)")
    report.add_argument("--sweep", metavar="FILE", help="a YAML file: one run a combination")
    report.add_argument(
        "--keep-done", action="store_true", help="leave a finished run as it is (default: afresh)"
    )
    report.set_defaults(call=_report)

    refresh = commands.add_parser("refresh", help="execute the committed notebooks in place")
    refresh.add_argument("notebook", nargs="*", help="names (default: all)")
    refresh.set_defaults(call=_refresh)

    receipt = commands.add_parser("receipt", help="check results measured elsewhere, or keep them")
    receipt.add_argument("action", choices=("check", "add"))
    receipt.add_argument("file", metavar="FILE", help="a results.json of `koala-nb report`")
    receipt.set_defaults(call=_receipt)

    delegates = (
        ("train", "nano.training", "train the embedded models; train student | study: distil"),
        ("evaluate", "nano.evaluation", "measure the embedded models; attention: word maps"),
        ("benchmark", "speed", "measure speed: " + " | ".join(BENCHMARKS)),
        ("probe", "probes", "run one probe at full size: " + " | ".join(PROBES)),
        ("plan", "speed.cost", "hours, money and disk that an audit of many images takes"),
    )
    for name, module, what in delegates:
        delegate = commands.add_parser(name, help=what, add_help=False)
        delegate.set_defaults(call=_delegate, module=module)
    return parser


def _systems(_: argparse.Namespace) -> None:
    from koala_nb.core import catalog

    print(catalog.systems().to_string(index=False, na_rep="-"))


def _generate(options: argparse.Namespace) -> None:
    from koala_nb.generation import generate as generation
    from koala_nb.models import load

    given = {"steps": options.steps, "guidance": options.guidance}
    given |= {"height": options.size, "width": options.size}
    seeds = range(options.seed, options.seed + options.seeds)
    recipe = {name: value for name, value in given.items() if value is not None}
    if options.workers:
        from koala_nb.generation import cluster

        with cluster.local(options.workers) as client:
            folder = cluster.generate(
                options.model, options.prompt, seeds, out=options.out, client=client, **recipe
            )
        print(f"{len(options.prompt) * options.seeds} images in {folder}")
        return
    pipe = load.load(options.model)
    run = generation.generate(pipe, options.prompt, seeds, out=options.out, **recipe)
    print(f"{len(run.images)} images in {run.folder}")


def _report(options: argparse.Namespace) -> None:
    from koala_nb.report import run as reports

    given = {}
    for pair in options.parameters:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"-p {pair!r}: write NAME=VALUE, such as -p model=nano-koala.")
        given[name] = value
    if options.sweep:
        from koala_nb.report import sweep

        page, failed = sweep.run_sweep(options.notebook, options.sweep, given, out=options.out)
        print(page)
        if failed:
            raise reports.ReportFailed(f"{failed} of the sweep's runs failed: see {page}")
        return
    keep = options.keep_done
    print(reports.run_report(options.notebook, given, out=options.out, text=True, keep_done=keep))


def _refresh(options: argparse.Namespace) -> None:
    from koala_nb.report import run

    run.refresh(options.notebook)


def _receipt(options: argparse.Namespace) -> None:
    from koala_nb.report import results

    if options.action == "add":
        print(results.add_receipt(options.file))
        return
    problems = results.receipt_problems(options.file)
    print("\n".join(problems) or f"{options.file}: a valid receipt.")
    if problems:
        raise SystemExit(1)


def _delegate(options: argparse.Namespace) -> None:
    from importlib import import_module

    name, rest = options.module, options.rest
    own = {
        ("train", "student"): "distillation.train",
        ("train", "study"): "nano.study",
        ("evaluate", "attention"): "nano.attention_truth",
        **{("benchmark", name): module for name, module in BENCHMARKS.items()},
    }
    if options.command == "probe":
        from koala_nb import probes

        code = probes.get(rest[0] if rest else "").main(rest[1:])
        if code:
            raise SystemExit(code)
        return
    if rest and (options.command, rest[0]) in own:
        name, rest = own[options.command, rest[0]], rest[1:]
    elif options.command == "benchmark":
        raise ValueError(f"benchmark: choose one of {', '.join(BENCHMARKS)}.")
    code = import_module(f"koala_nb.{name}").main(rest)
    if code:
        raise SystemExit(code)
