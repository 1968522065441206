"""What a user can get wrong: each is answered by one clear sentence before any long work."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from functools import wraps

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

import koala_nb as kn
from koala_nb import cli, generate, load
from koala_nb.models.given import GivenImages
from koala_nb.probes.prompts import prompt_seeds
from koala_nb.report import run as reports

MORE = "generate tiny 'a koala' --size 64"
TYPED = [
    # Names.
    ("generate koala-lightnin-700m x", "Did you mean 'koala-lightning-700m'?"),
    ("generate '' x", "Unknown system ''"),
    ("generate no/such/folder x", "There is no folder 'no/such/folder'"),
    ("generate ./tinny x", "There is no folder './tinny'"),
    ("generate notes.txt x", "Unknown system 'notes.txt'"),
    ("generate 'some one/else' x", "must use alphanumeric chars"),
    ("generate koala-turbo-700m x", "KOALA-Turbo-700M cannot be loaded"),
    (f"generate {'k' * 5000} x", "Unknown system 'kkkk"),
    ("report 12", "No notebook '12'"),
    ("report notes.txt", "No notebook 'notes.txt'"),
    ("report broken.ipynb", "broken.ipynb is not a notebook"),
    ("report 11 -p modle=x", "has no parameter 'modle'. Did you mean 'model'?"),
    ("report 11 -p model=nano-koalla", "Did you mean 'nano-koala'?"),
    ("refresh 12", "No notebook '12'"),
    ("probe tone", "choose one of text, composition"),
    ("probe text --model koala-800m", "Did you mean 'koala-700m'?"),
    ("benchmark speed", "No such command 'speed'"),
    ("benchmark", "Missing command. See `koala-nb benchmark --help`."),
    ("benchmark latency --systems koala-800m", "Did you mean 'koala-700m'?"),
    ("evaluate --model koala-800m", "Did you mean 'koala-700m'?"),
    ("evaluate --model tiny", "Unknown system 'tiny'"),
    ("evaluate --model sdxl-base", "sdxl-base is no trained embedded model: give one of those"),
    ("benchmark latency --name a/b", "--name a/b: give the name of a file, without a folder"),
    ("train --config huge", "Unknown configuration 'huge'. Known: small"),
    ("paint", "No such command 'paint'"),
    ("report --modle x", "--modle"),
    # Types.
    (f"{MORE} --seeds two", "'--seeds': 'two': give a whole number of 1 or more"),
    (f"{MORE} --steps 2.5", "'--steps': '2.5': give a whole number"),
    (f"{MORE} --guidance much", "'--guidance': 'much': give a number"),
    ("report 11 -p n", "-p 'n': write NAME=VALUE"),
    ("report 11 -p n=many", "parameter 'n' is 'many': give a value of type int"),
    ("report 11 -p n=1.5", "parameter 'n' is '1.5': give a value of type int"),
    ("report 10 -p show_images=perhaps", "give a value of type bool"),
    # Sizes and numbers.
    (f"{MORE} --seeds 0", "'--seeds': '0': give a whole number of 1 or more"),
    (f"{MORE} --seeds 100000000", "One run holds at most 5,000,000 images"),
    (f"{MORE} --seed -1", "'--seed': '-1': give a whole number of 0 or more"),
    (f"{MORE} --seed {2**63}", f"whole number from 0 to {2**63 - 1}"),
    (f"{MORE} --steps 0", "'--steps': '0': give a whole number of 1 or more"),
    (f"{MORE} --steps 1001", "steps is 1001: give a whole number from 1 to 1000"),
    (f"{MORE} --guidance -1", "guidance is -1.0: give a number from 0 to 1000"),
    (f"{MORE} --guidance nan", "guidance is nan: give a number from 0 to 1000"),
    (f"{MORE} --guidance 1e9", "guidance is 1000000000.0: give a number from 0 to 1000"),
    (f"{MORE} --size 63", "must be a multiple of 8, not 63: try 64"),
    (f"{MORE} --size 100000", "is 100000: give a whole number from 8 to 4096"),
    (f"{MORE} --workers -1", "'--workers': '-1': give a whole number of 0 or more"),
    ("report 11 -p guidance=inf", "parameter 'guidance' is 'inf'"),
    ("probe text --images 0", "'--images': '0': give a whole number of 1 or more"),
    ("probe published --images 1", "'--images': '1': give a whole number of 2 or more"),
    ("probe safety --prompts -1", "'--prompts': '-1': give a whole number of 0 or more"),
    ("benchmark generation --repeats 1", "'--repeats': '1': give a whole number of 2 or more"),
    ("benchmark latency --batches 0", "'--batches': '0': give a whole number of 1 or more"),
    ("benchmark latency --limit-gb 0", "'--limit-gb': '0': give a number above 0"),
    ("evaluate --n 0", "'--n': '0': give a whole number of 1 or more"),
    ("plan --images 0", "--images 0: give a number above 0"),
    (f"plan --images {'9' * 400}", "give a number above 0 and below 1e+15"),
    ("plan --images -1", "--images -1: give a number above 0"),
    ("plan --rate 0", "--rate 0.0: give a number above 0"),
    ("plan --rate nan", "--rate nan: give a number above 0"),
    ("plan --gpus 2 0", "--gpus 0: give whole numbers of at least 1"),
    # Missing, truncated and foreign files.
    ("generate cut x", "model.fp16.safetensors is damaged or incomplete"),
    ("generate foreign x", "of the weights of UNet2DConditionModel, such as conv_in"),
    ("generate pickled x", "a pickle, which is never loaded"),
    ("generate no-tokenizer x", "lacks the part tokenizer_2: copy or download"),
    ("generate broken-index x", "model_index.json is not readable JSON"),
    ("generate broken-words x", "vocab.json is not readable JSON"),
    ("generate list-for-object x", "config.json is not a JSON object"),
    ("generate other-width x", "configurations and weights do not belong together"),
    ("generate other-kind x", "is a 'FluxPipeline': this is no SDXL-type"),
    ("generate empty x", "holds no model_index.json"),
    ("probe composition --model cut", "model.fp16.safetensors is damaged or incomplete"),
    ("report 11 --sweep nowhere.yaml", "No sweep file nowhere.yaml"),
    ("report 11 --sweep bad.yaml", "bad.yaml, line 1, is not YAML"),
    ("report 11 --sweep latin.yaml", "latin.yaml is not YAML: 'utf-8' codec"),
    ("report 11 --sweep empty", "No sweep file empty"),
    ("receipt check nowhere.json", "nowhere.json cannot be read (No such file or directory)"),
    ("receipt check bad.json", "bad.json is not readable JSON"),
    ("receipt check list.json", "list.json is not a JSON object"),
    ("receipt add empty", "empty cannot be read (Is a directory)"),
    ("plan --run empty", "empty holds no images"),
    ("plan --benchmark notes.txt", "notes.txt is not a result of `koala-nb benchmark`"),
    ("plan --benchmark nowhere.json", "There is no file nowhere.json"),
    # Absent weights.
    ("generate koala-1b x", "run `hf download etri-vilab/koala-1b"),
    ("generate koala-lightning-1b x", "` (about 4.1 GB), or load an embedded model"),
    ("generate someone/else x", "run `hf download someone/else"),
    ("generate koala-700m x --device gpu", "Unknown device 'gpu'"),
    ("generate koala-700m x --dtype int8", "Unknown dtype 'int8'"),
    ("generate koala-700m x --offload disk", "Unknown offload 'disk'"),
    ("generate nano-koala-large x", "train it with `koala-nb train`"),
    ("benchmark generation --model koala-1b", "run `hf download etri-vilab/koala-1b"),
    # Folders that cannot hold what is made.
    (f"{MORE} --out notes.txt", "'--out': 'notes.txt': notes.txt is a file: give a folder"),
    (f"{MORE} --out notes.txt/run", "notes.txt is a file: give a folder"),
    (f"{MORE} --out thesis", "thesis holds other files (such as thesis.txt) and no run"),
    (f"{MORE} --out {'x' * 300}", "File name too long: give another folder"),
    ("report 11 --out notes.txt", "notes.txt is a file: give a folder"),
    ("probe text --out notes.txt", "notes.txt is a file: give a folder"),
    ("train --folder notes.txt", "notes.txt is a file: give a folder"),
]


def weights(folder, part):
    return next((folder / part).glob("*.safetensors"))


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture(scope="module")
def place(snapshot, tmp_path_factory):
    """A folder with a tiny model, the same damaged in many ways, and files of other kinds."""
    place = tmp_path_factory.mktemp("place")

    def copy(name):
        return shutil.copytree(snapshot, place / name)

    copy("tiny")
    file = weights(copy("cut"), "unet")
    file.write_bytes(file.read_bytes()[:-100])
    foreign = copy("foreign")
    shutil.copy(weights(foreign, "vae"), weights(foreign, "unet"))
    pickled = copy("pickled") / "vae"
    weights(pickled.parent, "vae").rename(pickled / "diffusion_pytorch_model.bin")
    shutil.rmtree(copy("no-tokenizer") / "tokenizer_2")
    (copy("broken-index") / "model_index.json").write_text("{")
    (copy("broken-words") / "tokenizer" / "vocab.json").write_text("words")
    (copy("list-for-object") / "unet" / "config.json").write_text("[]")
    change(copy("other-width") / "unet" / "config.json", block_out_channels=[8, 16, 32])
    change(copy("other-kind") / "model_index.json", _class_name="FluxPipeline")
    (place / "empty").mkdir()
    (place / "thesis").mkdir()
    texts = {"thesis/thesis.txt": "precious", "notes.txt": "notes", "broken.ipynb": "{"}
    texts |= {"bad.yaml": "grid: [", "bad.json": "{", "list.json": "[]"}
    for name, text in texts.items():
        (place / name).write_text(text)
    (place / "latin.yaml").write_bytes("grid: {prompt: [é]}".encode("latin-1"))
    return place


@pytest.fixture
def idle(monkeypatch, hub_cache):
    """Whoever begins long work fails: drawing, a notebook's kernel, another process."""

    @wraps(StableDiffusionXLPipeline.__call__)  # its defaults are asked for
    def begun(*arguments, **more):
        pytest.fail("long work was begun")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(StableDiffusionXLPipeline, "__call__", begun)
    monkeypatch.setattr("papermill.execute_notebook", begun)
    monkeypatch.setattr("subprocess.Popen", begun)


def held(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


def test_there_are_enough_of_them():
    assert len({command for command, _ in TYPED}) == len(TYPED) >= 50


@pytest.mark.parametrize(("command", "said"), TYPED, ids=lambda value: value[:50])
def test_what_is_typed_wrong(place, idle, monkeypatch, capsys, command, said):
    monkeypatch.chdir(place)
    before = held(place)
    assert cli.main(shlex.split(command)) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert said in sentence and sentence.startswith("koala-nb")
    assert held(place) == before, "nothing half-written stays"


@pytest.mark.parametrize("revision", ["v9", "f" * 40])
def test_a_revision_that_is_not_there(idle, revision):
    with pytest.raises(OSError, match=f"at revision {revision} are not in the hub's cache"):
        load("koala-lightning-700m", revision=revision)


def test_a_revision_of_another_type(idle):
    with pytest.raises(ValueError, match="revision must be a text such as 'main', not 7"):
        load("koala-lightning-700m", revision=7)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompts_file": "empty.csv"}, "empty.csv"),
        ({"revision": "main"}, "revision='main' is for hub repositories"),
    ],
)
def test_what_only_the_notebook_can_know(place, tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.csv").write_text("prompt\n")
    with pytest.raises(reports.ReportFailed) as error:
        reports.run_report("11", {"model": str(place / "tiny"), "size": 64, **given}, out=tmp_path)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.png")), "nothing was drawn"


PARAMETERS = [
    ("11", "dtype=float99", "Unknown dtype 'float99'"),
    ("11", "device=tpu", "Unknown device 'tpu'"),
    ("11", "offload=disk", "Unknown offload 'disk'"),
    ("11", "n=0", "n is 0: give a whole number of 1 or more"),
    ("11", "seeds=0", "seeds (images per prompt) is 0: give a whole number from 1 to"),
    ("11", "seed=-1", "seed is -1: give a whole number from 0"),
    ("11", "steps=1001", "steps is 1001: give a whole number from 0 to 1000"),
    ("11", "size=63", "size is 63: give a multiple of 8"),
    ("11", "guidance=2000", "guidance is 2000.0: give a number from 0 to 1000"),
    ("11", "batch_size=-2", "batch_size is -2"),
    ("11", "prompts_file=nowhere.csv", "There is no file nowhere.csv"),
    ("11", "prompts_file=texts.csv", "texts.csv has no column 'prompt': it has 'text'"),
    ("11", "seeds=99999999999", "is 99999999999: give a whole number from 1 to 5000000"),
    ("11", "model=", "Unknown system ''"),
    ("06", "prompts_file=prompts.csv", "prompts.csv has no column 'id'"),
    ("08", "frequencies=texts.csv", "has no column 'concept'"),
    ("04", "steps=-1", "steps is -1: give a whole number of 0 or more"),
    ("04", "feature=looks", "Unknown feature 'looks'"),
    ("04", "teacher=nano-sdlx", "Did you mean 'nano-sdxl'?"),
    ("05", "repeats=0", "repeats is 0: give a whole number of 1 or more"),
    ("06", "reader=tesserakt", "Unknown reader 'tesserakt'. Did you mean 'tesseract'?"),
    ("06", "prompts=-3", "prompts is -3: give a whole number of 0 or more"),
    ("07", "compare=nano-sdlx", "Did you mean 'nano-sdxl'?"),
    ("10", "threshold=1.5", "threshold is 1.5: give a number from 0 to 1"),
]


@pytest.mark.parametrize(("notebook", "pair", "said"), PARAMETERS)
def test_a_bad_parameter_of_a_report_starts_no_kernel(
    tmp_path, monkeypatch, notebook, pair, said, capsys
):
    monkeypatch.setattr(reports, "_run", lambda *_: pytest.fail("a kernel would start"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.csv").write_text("text\nkoala\n")
    (tmp_path / "prompts.csv").write_text("prompt\na koala\n")
    assert cli.main(["report", notebook, "-p", pair]) == 2
    assert said in capsys.readouterr().err and len(list(tmp_path.iterdir())) == 2


def test_odd_prompts_are_drawn_and_what_is_not_read_is_said(loaded):
    odd = ["", " ", "コアラ 🐨", "كوالا", "a\tb\r\nc", "é" * 3, "<script>", "%s {0} $x$", "-"]
    small = {"height": 64, "width": 64, "steps": 1, "progress": False}
    run = generate(loaded, odd, **small)
    assert run.records.prompt.tolist() == odd and len(run.images) == len(odd)
    with pytest.warns(UserWarning, match="Longer than the text encoder's 77 tokens") as heard:
        run = generate(loaded, "koala " * 20_000, **small)
    (said,) = [str(w.message) for w in heard if w.category is UserWarning]
    assert len(said) < 300
    assert run.records.prompt_unread[0].startswith("koala")


# --- a disk that is full, or that nothing can be written to --------------------------------------

DISK = """
set -u
mount -t tmpfs -o size=320k tmpfs "$1"
shift
"$@" --seeds 200; echo "code $?"
"$@" --seeds 40; echo "code $?"
mount -o remount,size=8m "$OUT"
"$@" --seeds 40; echo "code $?"
mount -o remount,ro "$OUT"
"$@" --seeds 40; echo "code $?"
"""


def test_a_disk_that_is_full_or_read_only(place, tmp_path):
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"]).returncode:
        pytest.skip("mounting a disk needs Linux and the right to a mount namespace")
    drawing = [sys.executable, "-m", "koala_nb", "generate", "tiny", "a koala"]
    drawing += ["--size", "64", "--steps", "1", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*unshare, "sh", "-c", DISK, "sh", str(tmp_path), *drawing],
        env={**os.environ, "OUT": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
        cwd=place,
        capture_output=True,
        text=True,
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("code")] == [
        "code 2", "code 2", "code 0", "code 2",
    ], done.stdout + done.stderr  # fmt: skip
    said = [line for line in done.stderr.splitlines() if line.startswith("koala-nb")]
    assert "200 images need at least 0.819: free some space" in said[0]
    assert "No space left on device" in said[1] and "free some space" in said[1]
    assert "cannot be written to: give another folder" in said[2]
    assert "Traceback" not in done.stderr


IN_PYTHON = [
    (lambda pipe: kn.generate(pipe, {"a", "b"}), "must be a text or a list of texts"),
    (lambda pipe: kn.generate(pipe, "a", out="x" * 300), "out must be the path of a folder, not"),
    (lambda pipe: kn.generate(pipe.scheduler, "a"), "is no pipeline of diffusers"),
    (lambda pipe: kn.model_info(None), "None is no pipeline of diffusers"),
    (lambda pipe: kn.capture_attention("tiny").__enter__(), "'tiny' is no pipeline of diffusers"),
    (lambda pipe: kn.load_lora(5, {}), "5 is no pipeline of diffusers"),
    (lambda pipe: kn.list_steps(None, 4), "None is no pipeline of diffusers"),
    (lambda pipe: kn.wrap(torch.nn.Linear(1, 1)), "is no pipeline of diffusers"),
    (lambda pipe: kn.list_steps(pipe, 0), "steps is 0: give a whole number from 1 to 1000"),
    (lambda pipe: kn.list_steps(pipe, 1.5), "steps is 1.5"),
    (
        lambda pipe: kn.load_lora(pipe, {"unet.x.lora_A.weight": torch.ones(2, 2)}),
        "lacks one of the two matrices of unet.x",
    ),
    (lambda pipe: kn.open_run(None), "A run is the path of its folder, not None"),
    (lambda pipe: kn.build_unet(5), "Give a system's name or a folder, not 5"),
    (lambda pipe: kn.run_cost(images=-1), "images is -1: give a number above 0"),
    (lambda pipe: kn.run_cost(images="x"), "images is 'x'"),
    (lambda pipe: kn.run_cost(images=1, rate=float("nan")), "rate is nan"),
    (lambda pipe: kn.run_report(None), "Give a notebook's path, name or number, not None"),
    (lambda pipe: kn.run_report("11", 5), "parameters are 5: give values by their names"),
    (lambda pipe: kn.Audit(pipe), "is no session: give kn.start's or kn.wrap's"),
    (lambda pipe: kn.Audit(kn.wrap(pipe), n="x"), "n (images per probe) is 'x': give a whole"),
    (lambda pipe: kn.show_images(None), "show_images: a NoneType: give a run"),
    (lambda pipe: kn.show_table(5), "show_table: a int is no table"),
    (lambda pipe: kn.probes.get(None), "give a name, or the path of a Python file, not None"),
    (lambda pipe: kn.check(1, "nothing"), "There is no exercise 'nothing'"),
    (lambda pipe: GivenImages("nowhere"), "nowhere holds no metadata.csv or metadata.jsonl"),
    (lambda pipe: prompt_seeds(2, "x"), "images is 'x': give a whole number"),
]


@pytest.mark.parametrize(("call", "said"), IN_PYTHON, ids=[said for _, said in IN_PYTHON])
def test_what_is_wrong_in_python_is_one_sentence(loaded, call, said):
    with pytest.raises(ValueError) as error:
        call(loaded)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_probes_file_that_fails_is_named_with_its_reason(tmp_path, capsys):
    for text, why in (("1/0", "ZeroDivisionError"), ("def", "SyntaxError")):
        file = tmp_path / "mine.py"
        file.write_text(text)
        assert cli.main(["probe", str(file)]) == 2
        assert f"mine.py cannot be imported ({why}: " in capsys.readouterr().err


def test_a_sweep_that_is_too_deep_and_records_without_files_are_refused(tmp_path, loaded, capsys):
    deep = tmp_path / "deep.yaml"
    deep.write_text("[" * 3000)
    assert cli.main(["report", "11", "--sweep", str(deep)]) == 2
    assert "deep.yaml is not YAML: maximum recursion" in capsys.readouterr().err
    small = {"height": 64, "width": 64, "steps": 1, "progress": False}
    kn.generate(loaded, "a", out=tmp_path / "run", **small)
    (tmp_path / "run" / "records.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match="its records name no file: call the same `generate`"):
        kn.open_run(tmp_path / "run")
