"""The command line: the calls of the module, one subcommand each, all options declared here.

Each command imports what it needs when it is called, so that help and refusals are quick.
"""

import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Context, Option
from typer.models import OptionInfo

from koala_nb.core.options import at_least, positive, writable
from koala_nb.probes import MODULES

REPORT = "11_write_the_audit_report"
MEMORY = (
    "memory ran out: give a smaller --size or fewer --workers, or load the model with another "
    "dtype or with offload."
)
LISTS = ("--systems", "--sizes", "--batches", "--gpus", "--threads")  # as in `--gpus 1 2 4`
UsageError: Any = typer.BadParameter.__base__  # of every refusal of what was typed
_typed: list[str] = []  # the arguments of the command that runs
REST: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}
REST["help_option_names"] = []


def checked(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """The type of an option: what `read` makes of the text, its refusal as the command line's."""

    def parse(text: str) -> Any:
        try:
            return read(text)
        except (ArgumentTypeError, ValueError) as error:
            raise typer.BadParameter(str(error)) from None

    return parse


def whole(low: int, about: str | None = None) -> OptionInfo:
    """An option that is a whole number of at least `low`."""
    return Option(parser=checked(at_least(low)), help=about)


def choice(*choices: str) -> OptionInfo:
    """An option that is one of the choices."""

    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r}: choose one of {', '.join(choices)}")
        return text

    return Option(parser=checked(read), metavar="|".join(choices))


def flag(name: str, about: str) -> OptionInfo:
    """An option without a value."""
    return Option(name, help=about)


def real(about: str, read: Callable[[str], float] = float) -> OptionInfo:
    """An option that is a number."""
    return Option(parser=checked(read), help=about)


def group(about: str) -> typer.Typer:
    """A command with subcommands."""
    return typer.Typer(
        help=about, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
    )


app = group("Generate, inspect and audit the KOALA text-to-image models.")
benchmark = group("Measure speed on this machine: generation | latency.")
app.add_typer(benchmark, name="benchmark")

Folder = Annotated[Path, Option("--out", parser=checked(writable), metavar="FOLDER")]
Results = Annotated[
    Path | None, Option(parser=checked(writable), metavar="FOLDER", help="default: data/results")
]
Repeats = Annotated[int, whole(2, "rounds")]
Device = Annotated[str | None, Option(help="default: the best available")]
Dtype = Annotated[str | None, Option(help="default: float16 on a GPU, else float32")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code.

    0 when done, 1 where a report's notebook failed, 2 for a user's error (one line on stderr), 3
    where a training's time ran out.
    """
    _typed[:] = sys.argv[1:] if arguments is None else arguments
    try:
        return app(_spread(_typed), prog_name="koala-nb", standalone_mode=False) or 0
    except UsageError as error:
        path = error.ctx.command_path if error.ctx else "koala-nb"
        message = error.format_message()
        end = "" if message.endswith((".", "?")) else "."
        return _refuse(f"{message}{end} See `{path} --help`.")
    except (ValueError, OSError) as error:
        return _refuse(error)
    except (RuntimeError, MemoryError) as error:
        from koala_nb.core.devices import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return _refuse(MEMORY)
    except KeyboardInterrupt:
        _refuse("interrupted; call it again to go on.")
        return 130


def typed() -> str:
    """The command that runs, for the results that it writes."""
    return " ".join(["koala-nb", *_typed])


def _refuse(error: object) -> int:
    print(f"koala-nb: {error}", file=sys.stderr)
    return 2


def _spread(arguments: Sequence[str]) -> list[str]:
    """Repeat an option of LISTS before each of its values: `--gpus 1 2` -> `--gpus 1 --gpus 2`."""
    spread: list[str] = []
    option = ""
    for argument in arguments:
        if argument.startswith("--"):
            option = argument if argument in LISTS else ""
            spread.append(argument)
        elif option and spread[-1] != option:
            spread += [option, argument]
        else:
            spread.append(argument)
    return spread


@app.command()
def systems() -> None:
    """Print what is known of each catalogued model."""
    from koala_nb.core import catalog

    print(catalog.systems().to_string(index=False, na_rep="-"))


@app.command()
def generate(
    model: Annotated[str, Argument(help="a catalogued name, a folder or a hub id")],
    prompt: Annotated[list[str], Argument(help="one or more prompts, each in quotes")],
    seeds: Annotated[int, whole(1, "images per prompt")] = 4,
    seed: Annotated[int, whole(0, "the first seed")] = 0,
    steps: Annotated[int | None, whole(1, "default: the recipe's")] = None,
    guidance: Annotated[float | None, real("guidance scale (default: the recipe's)")] = None,
    size: Annotated[int | None, whole(1, "pixels per side (default: the recipe's)")] = None,
    out: Folder = Path("runs/generate"),
    workers: Annotated[int, whole(0, "processes (0: this one)")] = 0,
) -> None:
    """Draw images of a prompt into a folder; the same call goes on after an interruption."""
    from koala_nb.generation import cluster
    from koala_nb.generation.generate import generate as draw
    from koala_nb.models.load import load

    settings = {"steps": steps, "guidance": guidance, "height": size, "width": size}
    drawing: dict[str, Any] = {"out": out, **settings}
    numbers = range(seed, seed + seeds)
    if workers:
        with cluster.local(workers) as client:
            folder = cluster.generate(model, prompt, numbers, client=client, **drawing)
    else:
        folder = draw(load(model), prompt, numbers, **drawing).folder or out
    print(f"{len(prompt) * seeds} images in {folder}")


@app.command()
def report(
    notebook: Annotated[str, Argument(help="a notebook's path, name or number")] = REPORT,
    parameters: Annotated[list[str], Option("-p", metavar="NAME=VALUE")] = [],  # noqa: B006
    out: Folder = Path("reports"),
    sweep: Annotated[str | None, Option(help="a YAML file: one run a combination")] = None,
    keep_done: Annotated[bool, flag("--keep-done", "leave a finished run as it is")] = False,
) -> int:
    """Run a notebook and write its HTML page."""
    from koala_nb.report import run
    from koala_nb.report import sweep as sweeps

    given = {}
    for pair in parameters:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"-p {pair!r}: write NAME=VALUE, such as -p model=nano-koala.")
        given[name] = value
    try:
        if sweep is None:
            print(run.run_report(notebook, given, out=out, text=True, keep_done=keep_done))
            return 0
        page, failed = sweeps.run_sweep(notebook, sweep, given, out=out)
        print(page)
        if failed:
            raise run.ReportFailed(f"{failed} of the sweep's runs failed: see {page}")
        return 0
    except run.ReportFailed as error:
        _refuse(error)
        return 1


@app.command()
def refresh(
    notebook: Annotated[list[str], Argument(help="names (default: all)")] = [],  # noqa: B006
) -> None:
    """Execute the committed notebooks in place."""
    from koala_nb.report import run

    run.refresh(notebook)


@app.command(
    context_settings=REST, help="Train the embedded models; train student | study: distil."
)
def train(context: Context) -> int:
    """Hand the arguments on to the training that is named first."""
    first, *rest = context.args or [""]
    if first == "student":
        return students(rest, prog_name="koala-nb train student", standalone_mode=False)
    if first == "study":
        return import_module("koala_nb.nano.study").main(rest)
    return import_module("koala_nb.nano.training").main(context.args)


students = group("Distil a KOALA-shaped U-Net from a full-size teacher, on your data.")


@students.command()
def train_student(
    teacher: Annotated[str, Option(help="a catalogued name or a folder")],
    student: Annotated[str, Option(help="the catalogued system whose U-Net is trained")],
    data: Annotated[str, Option(help="a folder of pictures with captions, or a dataset's hub id")],
    out: Folder = Path("runs/student"),
    size: Annotated[int | None, whole(1, "pixels per side (default: the student's)")] = None,
    samples: Annotated[int, whole(1, "pictures seen")] = 100_000,
    batch: Annotated[int, whole(1, "pictures a step in all")] = 8,
    accumulation: Annotated[int, whole(1, "parts of a batch")] = 1,
    rate: Annotated[float, real("learning rate (default: BK-SDM's)", positive)] = 5e-5,
    limit: Annotated[int | None, whole(1, "read so many pictures only")] = None,
    feature: Annotated[str, Option(help="what is imitated")] = "self-attention",
    stage: Annotated[list[str], Option(help="imitate in these stages only")] = [],  # noqa: B006
    weight_task: Annotated[float, real("weight of L_task")] = 1.0,
    weight_out: Annotated[float, real("weight of L_out")] = 1.0,
    weight_feat: Annotated[float, real("weight of L_feat")] = 1.0,
    random_start: Annotated[bool, flag("--random-start", "not from the teacher's weights")] = False,
    checkpointing: Annotated[bool, flag("--checkpointing", "less memory, more time")] = False,
    precision: Annotated[str | None, choice("no", "bf16", "fp16")] = None,
    device: Annotated[str | None, choice("cpu", "cuda")] = None,
    minutes: Annotated[float | None, real("stop then; call again to go on", positive)] = None,
    cost: Annotated[bool, flag("--cost", "print what a step needs, and stop")] = False,
    tflops: Annotated[float | None, real("your GPU's TFLOP/s, for --cost", positive)] = None,
    prompt: Annotated[list[str], Option(help="drawn at each checkpoint")] = [],  # noqa: B006
) -> int:
    """Distil a KOALA-shaped U-Net from a full-size teacher, on your data; resumable.

    Pictures and captions are encoded once. Several GPUs: the same arguments to
    `accelerate launch -m koala_nb train student`.
    """
    from koala_nb.distillation import train as training

    options = training.StudentTraining(
        *(teacher, student, data, out, size, samples, batch, accumulation, rate, limit),
        *(feature, stage, weight_task, weight_out, weight_feat, random_start, checkpointing),
        *(precision, device, minutes, cost, tflops, prompt),
    )
    return training.train_student(options)


@app.command(
    context_settings=REST, help="Measure the embedded models; evaluate attention: word maps."
)
def evaluate(context: Context) -> int:
    """Hand the arguments on to the measurement that is named first."""
    if context.args[:1] == ["attention"]:
        return import_module("koala_nb.nano.attention_truth").main(context.args[1:])
    return import_module("koala_nb.nano.evaluation").main(context.args)


@app.command(context_settings=REST, help=f"Run one probe at full size: {' | '.join(MODULES)}.")
def probe(context: Context) -> int:
    """Hand the arguments on to the probe that is named first."""
    from koala_nb import probes

    first, *rest = context.args or [""]
    return probes.get(first).main(rest)


@benchmark.command("generation")
def benchmark_generation(
    model: Annotated[str, Option(help="a model whose weights are here")] = "nano-koala",
    device: Device = None,
    dtype: Dtype = None,
    images: Annotated[int, whole(1, "images a variant and round")] = 32,
    size: Annotated[int | None, whole(1, "pixels per side")] = None,
    repeats: Repeats = 7,
    threads: Annotated[list[int], whole(1, "default: torch's own")] = [],  # noqa: B006
    out: Results = None,
) -> None:
    """Compare `kn.generate` with diffusers' plain loop: images per second."""
    from koala_nb.speed import throughput

    settings: dict[str, Any] = {"device": device, "dtype": dtype, "images": images, "size": size}
    settings |= {"repeats": repeats, "threads": threads}
    print(throughput.write_benchmark(model, out, typed(), **settings))


@benchmark.command("latency")
def benchmark_latency(
    systems: Annotated[list[str], Option()] = ["nano-sdxl", "nano-koala"],  # noqa: B006
    sizes: Annotated[list[int], whole(1, "pixels per side")] = [64],  # noqa: B006
    batches: Annotated[list[int], whole(1)] = [1],  # noqa: B006
    device: Device = None,
    dtype: Dtype = None,
    repeats: Repeats = 9,
    limit_gb: Annotated[float | None, real("would it run in so much?", positive)] = None,
    name: Annotated[str | None, Option(help="of the file; default: the first system")] = None,
    out: Results = None,
) -> None:
    """Measure seconds and memory of an image's parts, and how near they come to the roofline."""
    from koala_nb.speed import latency

    settings = (systems, sizes, batches, device, dtype, repeats, limit_gb, name, out)
    print(latency.write_benchmark(*settings, command=typed()))


@app.command()
def plan(
    images: Annotated[int, Option()] = 1_000_000,
    rate: Annotated[float | None, real("images per second that one GPU of yours draws")] = None,
    benchmark: Annotated[Path | None, Option(help="benchmark-generation-*.json: rate")] = None,
    gpus: Annotated[list[int], Option()] = [1, 2, 4, 8, 64],  # noqa: B006
    price: Annotated[float | None, real("of a GPU-hour, in any currency")] = None,
    run: Annotated[Path | None, Option(help="a run's folder: its images' mean size counts")] = None,
    size: Annotated[int, Option(help="pixels per side, without --run")] = 1024,
    records: Annotated[Path | None, Option(help="default: benchmark-records.json")] = None,
) -> None:
    """Say what hours, money and disk an audit of many images takes."""
    from koala_nb.speed import cost

    if rate is not None and benchmark:
        raise ValueError("--benchmark is not allowed with --rate: give one of them.")
    cost.print_plan(images, rate, benchmark, gpus, price, run, size, records)


@app.command()
def receipt(
    what: Annotated[str, Argument(metavar="check|add")],
    file: Annotated[str, Argument(help="a results.json of `koala-nb report`")],
) -> int:
    """Check results measured elsewhere, or keep them."""
    from koala_nb.report import results

    if what not in ("check", "add"):
        raise ValueError(f"receipt: choose one of check, add, not {what!r}.")
    if what == "add":
        print(results.add_receipt(file))
        return 0
    problems = results.receipt_problems(file)
    print("\n".join(problems) or f"{file}: a valid receipt.")
    return 1 if problems else 0
