"""The command line: the calls of the module, one subcommand each, all options declared here.

Each command imports what it needs when it is called, so that help and refusals are quick.
"""

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

import typer
from typer import Argument, Context, Option
from typer.core import TyperCommand, TyperGroup

from koala_nb import __version__
from koala_nb.options import folder_option, real, whole
from koala_nb.probes import MODULES

if TYPE_CHECKING:
    from koala_nb.core.files import Record
    from koala_nb.probes.base import Probe

MEMORY = "memory ran out: give a smaller --size or --batch-size, fewer --workers, or an --offload."
LISTS = ("--systems", "--sizes", "--batches", "--gpus", "--threads")  # as in `--gpus 1 2 4`
_typed: list[str] = []  # the arguments of the command that runs

T = TypeVar("T")
Model = Annotated[str, Option(help="a catalogued name, a folder or a hub id")]
Seed = Annotated[int, whole(0, "the first seed")]
Size = Annotated[int | None, whole(1, "pixels per side (default: the model's)")]
Results = Annotated[Path | None, folder_option("default: data/results")]
Repeats = Annotated[int, whole(2, "rounds")]
Device = Annotated[str | None, Option(help="default: the best available")]
Dtype = Annotated[str | None, Option(help="default: float16 on a GPU, else float32")]
Revision = Annotated[str | None, Option(help="commit, branch or tag on the hub")]
Offload = Annotated[str | None, Option(help="none, model or sequential (default: by memory)")]
BatchSize = Annotated[int | None, whole(1, "images drawn together (default: by memory)")]
NegativePrompt = Annotated[str | None, Option(help="default: the recipe's")]
LOADING = {"revision": (Revision, None), "device": (Device, None), "dtype": (Dtype, None)}
LOADING |= {"offload": (Offload, None)}
DRAWING = {"negative_prompt": (NegativePrompt, None), "batch_size": (BatchSize, None), **LOADING}
Anyway = Annotated[bool, Option("--anyway", help="draw also what can give no verdict")]
ImagesFrom = Annotated[str, Option(help="folder with metadata.csv and images to probe instead")]
Preset = Annotated[str, Option(help="a configuration: small, family or full")]
Checkpoints = Annotated[Path, folder_option("checkpoints and logs")]
TrainingDevice = Annotated[Literal["cpu", "cuda"] | None, Option()]
Minutes = Annotated[float | None, real("stop then; call again to go on", positive=True)]
ResultsFile = Annotated[Path, Argument(help="a results.json of `koala-nb report`")]


def with_options(
    options: Mapping[str, tuple[object, object]],
) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Declare keyword options, name -> (annotation, default), of a command that takes `**more`."""

    def declare(command: Callable[..., T]) -> Callable[..., T]:
        parameters = [*signature(command).parameters.values()][:-1]  # without **more
        for name, (annotation, default) in options.items():
            keyword = Parameter.KEYWORD_ONLY
            parameters.append(Parameter(name, keyword, annotation=annotation, default=default))
        command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        return command

    return declare


class ProbeCommands(TyperGroup):
    """A command a probe, of the project or of a Python file, made when it is called."""

    def list_commands(self, ctx: object) -> list[str]:
        """Return the names of the project's probes."""
        return list(MODULES)

    def get_command(self, ctx: object, cmd_name: str) -> TyperCommand:
        """Return a probe's command; ValueError for another name."""
        from koala_nb import probes

        return probe_command(probes.get(cmd_name))


app = typer.Typer(
    help="Generate, inspect and audit the KOALA text-to-image models.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
train, evaluate, benchmark, receipt = (typer.Typer() for _ in range(4))
app.add_typer(train, name="train")
app.add_typer(evaluate, name="evaluate")
app.add_typer(benchmark, name="benchmark", help="Measure speed: generation | latency.")
app.add_typer(
    receipt, name="receipt", help="Results from elsewhere: check | add; readers: measure."
)
about_probes = f"Run one probe at full size: {' | '.join(MODULES)}, or a Python file."
app.add_typer(typer.Typer(), name="probe", cls=ProbeCommands, help=about_probes)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"koala-nb {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, Option("--version", callback=_show_version, is_eager=True, help="print it and stop")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand: 0 done, 1 a notebook failed, 2 a user's error (one line), 3 out of time."""
    _typed[:] = sys.argv[1:] if arguments is None else arguments
    try:
        return app(_spread(_typed), prog_name="koala-nb", standalone_mode=False) or 0
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "koala-nb"
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
    """Return the command that runs, for the results that it writes."""
    words = [Path(word).name if os.path.isabs(word) else word for word in _typed]
    return shlex.join(["koala-nb", *words])  # a path tells whose machine it is


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
        elif option and spread[-1] != option:
            spread.append(option)
        spread.append(argument)
    return spread


@app.command()
def systems() -> None:
    """Print what is known of each catalogued model."""
    from koala_nb.core import catalog

    print(catalog.systems().to_string(index=False, na_rep="-"))


@app.command()
@with_options(DRAWING)
def generate(
    model: Annotated[str, Argument(help="a catalogued name, a folder or a hub id")],
    prompt: Annotated[list[str], Argument(help="one or more prompts, each in quotes")],
    seeds: Annotated[int, whole(1, "images per prompt")] = 4,
    seed: Seed = 0,
    steps: Annotated[int | None, whole(1, "default: the recipe's")] = None,
    guidance: Annotated[float | None, real("guidance scale (default: the recipe's)")] = None,
    size: Size = None,
    out: Annotated[Path, folder_option("images and records")] = Path("runs/generate"),
    workers: Annotated[int, whole(0, "processes (0: this one)")] = 0,
    **drawing: object,
) -> None:
    """Draw images of a prompt into a folder; the same call goes on after an interruption."""
    from koala_nb.generation import cluster
    from koala_nb.generation.generate import generate as draw
    from koala_nb.models.load import load

    drawn, numbers = len(prompt) * seeds, range(seed, seed + seeds)
    settings: Record = {"steps": steps, "guidance": guidance, "height": size, "width": size}
    loading: Record = {name: drawing.pop(name) for name in LOADING}
    settings |= {"out": out, **{k: v for k, v in drawing.items() if v is not None}}
    if workers:
        cluster.refuse_given(model)  # before a worker starts
        with cluster.local(workers) as client:
            folder = cluster.generate(model, prompt, numbers, client=client, **loading, **settings)
    else:
        run = draw(load(model, **loading), prompt, numbers, **settings)
        folder, drawn = run.folder or out, len(run.images)
    print(f"{drawn} images in {folder}")


@app.command()
@with_options(DRAWING)
def report(
    notebook: Annotated[
        str, Argument(help="a notebook's path, name or number")
    ] = "11_write_the_audit_report",
    parameters: Annotated[list[str], Option("-p", metavar="NAME=VALUE")] = [],
    out: Annotated[Path, folder_option("the pages")] = Path("reports"),
    sweep: Annotated[str | None, Option(help="a YAML file: one run a combination")] = None,
    keep_done: Annotated[bool, Option(help="leave a finished run as it is")] = False,
    **drawing: object,
) -> int:
    """Run a notebook and write its HTML page."""
    from koala_nb.report import run
    from koala_nb.report.sweep import run_sweep

    given = {}
    for pair in parameters:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"-p {pair!r}: write NAME=VALUE, such as -p model=nano-koala.")
        given[name] = value
    given |= {name: str(value) for name, value in drawing.items() if value is not None}
    try:
        if sweep:
            page, failed = run_sweep(notebook, sweep, given, out=out)
            print(page)
            if failed:
                raise run.ReportFailed(f"{failed} of the sweep's runs failed: see {page}")
        else:
            print(run.run_report(notebook, given, out=out, text=True, keep_done=keep_done))
    except run.ReportFailed as error:
        _refuse(error)
        return 1
    return 0


@app.command()
def refresh(notebook: Annotated[list[str], Argument(help="names (default: all)")] = []) -> None:
    """Execute the committed notebooks in place."""
    from koala_nb.report import run

    run.refresh(notebook)


@train.callback(invoke_without_command=True)
def train_embedded(
    context: Context,
    config: Preset = "small",
    stage: Annotated[list[str], Option(help="default: all, in order")] = [],
    minutes: Minutes = None,
    folder: Checkpoints = Path("runs"),
    device: TrainingDevice = None,
    processes: Annotated[int | None, whole(1, "default: one per CPU core or GPU")] = None,
) -> int:
    """Train the embedded models, stage by stage; resumable."""
    if context.invoked_subcommand:
        return 0
    training = import_module("koala_nb.nano.training")
    return training.train(config, stage, minutes, folder, device, processes)


@train.command("study")
def train_study(
    config: Preset = "small",
    folder: Checkpoints = Path("runs"),
    workers: Annotated[int | None, whole(1, "runs at a time (default: one per CPU core)")] = None,
    first: Annotated[int | None, whole(1, "only so many runs of the list")] = None,
    run: Annotated[str, Option(hidden=True)] = "",  # of a worker
) -> int:
    """Distil students of the embedded teacher that differ in one choice, at equal budgets."""
    return import_module("koala_nb.nano.study").run_study(config, folder, workers, first, run)


@train.command("student")
def train_student(
    teacher: Annotated[str, Option(help="a catalogued name or a folder")],
    student: Annotated[str, Option(help="the catalogued system whose U-Net is trained")],
    data: Annotated[str, Option(help="a folder of pictures with captions, or a dataset's hub id")],
    out: Annotated[Path, folder_option("checkpoints and the student")] = Path("runs/student"),
    size: Size = None,
    samples: Annotated[int, whole(1, "pictures seen")] = 100_000,
    batch: Annotated[int, whole(1, "pictures per step in all")] = 8,
    accumulation: Annotated[int, whole(1, "parts of a batch")] = 1,
    rate: Annotated[float, real("learning rate (default: BK-SDM's)", positive=True)] = 5e-5,
    limit: Annotated[int | None, whole(1, "read so many pictures only")] = None,
    feature: Annotated[str, Option(help="what is imitated")] = "self-attention",
    stage: Annotated[list[str], Option(help="imitate in these stages only")] = [],
    weight_task: Annotated[float, real("weight of L_task")] = 1.0,
    weight_out: Annotated[float, real("weight of L_out")] = 1.0,
    weight_feat: Annotated[float, real("weight of L_feat")] = 1.0,
    random_start: Annotated[bool, Option(help="not from the teacher's weights")] = False,
    checkpointing: Annotated[bool, Option(help="less memory, more time")] = False,
    precision: Annotated[Literal["no", "bf16", "fp16"] | None, Option()] = None,
    device: TrainingDevice = None,
    minutes: Minutes = None,
    cost: Annotated[bool, Option(help="print what a step needs, and stop")] = False,
    tflops: Annotated[float | None, real("your GPU's TFLOP/s, for --cost", positive=True)] = None,
    prompt: Annotated[list[str], Option(help="drawn at each checkpoint")] = [],
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


@evaluate.callback(invoke_without_command=True)
def evaluate_embedded(
    context: Context,
    model: Model = "nano-koala",
    n: Annotated[int, whole(1, "prompts per kind")] = 500,
    per_occupation: Annotated[int, whole(1, "images per occupation")] = 50,
    out: Results = None,
) -> None:
    """Measure how well an embedded model draws what its prompts name."""
    if not context.invoked_subcommand:
        import_module("koala_nb.nano.evaluation").write_quality(model, n, per_occupation, out)


@evaluate.command("attention")
def evaluate_attention(
    scenes: Annotated[int, whole(1, "scenes that are scored")] = 400,
    tuning: Annotated[int, whole(1, "other scenes, on which heads are chosen")] = 100,
    out: Results = None,
) -> None:
    """Measure how well the embedded models' word maps cover the named things."""
    print(import_module("koala_nb.nano.attention_truth").write_truth(scenes, tuning, out))


def measured(probe: "Probe", results: Path, model: str) -> str:
    """Return a probe's headline estimates, one per line, where they stand and what comes next."""
    from koala_nb.core.catalog import data_folder
    from koala_nb.core.files import read_json
    from koala_nb.display.tables import format_interval
    from koala_nb.probes.base import select
    from koala_nb.stats.estimates import estimates_frame

    frame = estimates_frame(read_json(results)["estimates"])
    best = select(frame, *probe.corrected) if len(frame) else frame
    rows = best if len(best) or frame.empty else select(frame, *probe.headline)
    lines = [
        f"{r.label}: {format_interval(r.value, r.low, r.high)}, n {r.n:,}"
        for r in rows.itertuples()
    ]
    lines.append(f"All {len(frame)} estimates: {results}")
    if results.parent == data_folder() / "results":
        lines.append(f"Next: `koala-nb report -p model={model}` decides by them.")
    return "\n".join(lines)


def probe_command(probe: "Probe") -> TyperCommand:
    """Return a probe's command: the options that all probes have, and its own."""
    from koala_nb.models.given import checked_folder

    help_images = "images per prompt" + ("" if probe.fewest else " (0: each run's own)")
    options: dict[str, tuple[object, object]] = {
        "model": (Model, "nano-koala"),
        "images_from": (ImagesFrom, ""),
        "images": (Annotated[int, whole(probe.fewest, help_images)], probe.fewest and probe.images),
        "prompts": (Annotated[int, whole(0, "about so many prompts (0: all)")], 0),
        "seed": (Seed, 0),
        "out": (Results, None),
        "batch_size": (BatchSize, None),
        "anyway": (Anyway, False),
        **LOADING,
    }
    for name, (default, about) in probe.options.items():
        options[name] = (Annotated[type(default), Option(help=about)], default)

    drawing = ("model", "images", "seed", "batch_size", *LOADING)

    @with_options(options)
    def run(**settings: Any) -> None:
        if folder := settings.pop("images_from"):
            changed = [name for name in drawing if settings[name] != options[name][1]]
            settings["model"] = checked_folder(folder, changed)
        loading = {name: settings.pop(name) for name in LOADING}
        results = probe.run(command=typed(), loading=loading, **settings)
        print(measured(probe, results, settings["model"]))

    command = typer.Typer(add_completion=False, rich_markup_mode=None)
    command.command(help=type(probe).__doc__)(run)
    return cast(TyperCommand, typer.main.get_command(command))


@app.command()
def label(
    folder: Annotated[list[Path], Argument(help="of images that `koala-nb probe bias` has drawn")],
    each: Annotated[int, whole(1, "images per occupation and folder")] = 50,
    out: Annotated[Path, Option(help="the label file")] = Path("labels.csv"),
    questions: Annotated[str, Option(help="some of presentation,tone,monk")] = "presentation",
    labeller: Annotated[int, whole(1, "who labels: 1, or 2 for a second person")] = 1,
    seed: Seed = 0,
    widget: Annotated[bool, Option(help="open it in JupyterLab, blind to the prompt")] = False,
) -> None:
    """Label a planned random sample of a large run: in a widget, or in a sheet to fill in."""
    from koala_nb.probes.labels import label_run

    print(label_run(folder, each, out, questions.split(","), labeller, seed, widget))


@benchmark.command("generation")
def benchmark_generation(
    model: Model = "nano-koala",
    device: Device = None,
    dtype: Dtype = None,
    images: Annotated[int, whole(1, "images a variant and round")] = 32,
    size: Size = None,
    repeats: Repeats = 7,
    threads: Annotated[list[int], whole(1, "default: torch's own")] = [],
    out: Results = None,
) -> None:
    """Compare `kn.generate` with diffusers' plain loop: images per second."""
    from koala_nb.speed import throughput

    sizes = {"images": images, "size": size, "repeats": repeats, "threads": threads}
    print(throughput.write_benchmark(model, out, typed(), device=device, dtype=dtype, **sizes))


@benchmark.command("latency")
def benchmark_latency(
    systems: Annotated[list[str], Option()] = ["nano-sdxl", "nano-koala"],
    sizes: Annotated[list[int], whole(1, "pixels per side")] = [64],
    batches: Annotated[list[int], whole(1)] = [1],
    device: Device = None,
    dtype: Dtype = None,
    repeats: Repeats = 9,
    limit_gb: Annotated[float | None, real("would it run in so much?", positive=True)] = None,
    name: Annotated[str | None, Option(help="of the file (default: the first system)")] = None,
    out: Results = None,
) -> None:
    """Measure seconds and memory of an image's parts, and how near they come to the roofline."""
    from koala_nb.speed import latency

    settings = (systems, sizes, batches, device, dtype, repeats, limit_gb, name, out)
    print(latency.write_benchmark(*settings, command=typed()))


@app.command()
def plan(
    images: int = 1_000_000,
    rate: Annotated[float | None, real("images per second that one GPU of yours draws")] = None,
    benchmark: Annotated[Path | None, Option(help="benchmark-generation-*.json: rate")] = None,
    gpus: list[int] = [1, 2, 4, 8, 64],
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


@receipt.command("check")
def receipt_check(file: ResultsFile) -> int:
    """Print what keeps a results.json from being a receipt, a line each."""
    from koala_nb.report import results

    problems = results.receipt_problems(file)
    print("\n".join(problems) or f"{file}: a valid receipt.")
    return 1 if problems else 0


@receipt.command("add")
def receipt_add(file: ResultsFile) -> None:
    """Keep a checked results.json with the project."""
    from koala_nb.report import results

    print(results.add_receipt(file))


@receipt.command("measure")
def receipt_measure(
    name: Annotated[str, Argument(help="an instrument that reads photographs (default: all)")] = "",
    file: Annotated[Path | None, Argument(help="a CSV of file and label beside pictures")] = None,
    group: Annotated[str, Option(help="a column whose rates are told apart")] = "",
    source: Annotated[str, Option(help="another CLIP or detector")] = "",
) -> None:
    """Print instruments' cards; with a file, measure one's error on the pictures it labels."""
    from koala_nb.scorers import instruments

    print(instruments.measure(name, file, group, source) if file else instruments.card(name))
