"""Loading: names, folders and repositories; a weight that a file lacks is named.

The libraries would put random ones in its place.
"""

import copy
import json
import shutil
import threading
import warnings

import pytest
import torch
from hub_layout import COMMIT, REPOSITORY, write_hub_layout
from safetensors.torch import load_file, save_file
from transformers import AutoModel, CLIPModel

from koala_nb import load
from koala_nb.core import devices, files
from koala_nb.core.catalog import data_folder
from koala_nb.models import hub
from koala_nb.models import load as pipelines
from koala_nb.models.load import WeightsMissing


@pytest.fixture
def folder(snapshot, tmp_path):
    """A copy of the tiny KOALA that a test may damage."""
    return shutil.copytree(snapshot, tmp_path / "tiny")


def weights(folder, part):
    return next((folder / part).glob("*.safetensors"))


def without_variant(folder, *parts):
    for part in parts:
        file = weights(folder, part)
        file.rename(file.with_name(file.name.replace(".fp16", "")))


def change(folder, part, how):
    """Rewrite a part's only safetensors file; return what `how` made of its tensors."""
    tensors = how(load_file(file := weights(folder, part)))
    save_file(tensors, file, metadata={"format": "pt"})
    return tensors


def without(name):
    return lambda tensors: {k: v for k, v in tensors.items() if not k.endswith(name)}


ALL = ("unet", "vae", "text_encoder", "text_encoder_2")

LOAD = """
import json, sys
import koala_nb
pipe = koala_nb.load("koala-lightning-700m")
info = pipe.model_info
run = koala_nb.generate(pipe, info.recipe.prompt, height=64, width=64, steps=2)
print(json.dumps([info.name, info.revision, info.variant, info.dtype, info.notes,
                  pipe.scheduler.config.timestep_spacing, type(pipe).__name__,
                  run.images[0].size, run.records.revision[0]]))
print(sys.stderr.isatty(), file=sys.stdout)
"""


def test_the_released_layout_loads_offline_in_a_fresh_process(python_offline):
    done = python_offline(LOAD)
    assert done.returncode == 0, done.stderr
    name, revision, variant, dtype, notes, spacing, cls, size, recorded = json.loads(
        done.stdout.splitlines()[0]
    )
    assert (name, revision, variant, recorded) == ("koala-lightning-700m", COMMIT, "fp16", COMMIT)
    assert (spacing, cls, size) == ("trailing", "StableDiffusionXLPipeline", [64, 64])
    assert (dtype, notes) == ("float32", [])
    assert done.stderr == ""  # nothing that would spoil a notebook


def test_a_hub_id_and_a_pinned_revision(hub_cache):
    info = load(REPOSITORY, revision=COMMIT, local_files_only=True, device="cpu").model_info
    assert (info.system.name, info.source) == ("koala-lightning-700m", REPOSITORY)
    assert info.revision == COMMIT
    with pytest.raises(WeightsMissing, match="at revision 1111111"):
        load("koala-lightning-700m", revision="1" * 40, local_files_only=True, device="cpu")


@pytest.mark.parametrize(("lacking", "variant"), [(["unet"], "fp16"), (ALL, None)])
def test_an_older_revision_without_half_precision_says_so(tmp_path, monkeypatch, lacking, variant):
    without_variant(write_hub_layout(tmp_path), *lacking)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    info = load("koala-lightning-700m", local_files_only=True, device="cpu").model_info
    (note,) = info.notes
    assert info.variant == variant and note.endswith(": full precision loaded")
    assert all(part in note for part in lacking)


@pytest.fixture
def sdxl_lightning(snapshot, tmp_path, monkeypatch):
    """The U-Net's file: the real layout has it in one repository, other parts in SDXL-Base's."""
    cache = tmp_path / "hub"
    for repository in ("stabilityai--stable-diffusion-xl-base-1.0", "ByteDance--SDXL-Lightning"):
        place = cache / f"models--{repository}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(COMMIT)
        shutil.copytree(snapshot, place / "snapshots" / COMMIT)
    there = cache / "models--ByteDance--SDXL-Lightning" / "snapshots" / COMMIT
    base = cache / "models--stabilityai--stable-diffusion-xl-base-1.0" / "snapshots" / COMMIT
    file = there / "sdxl_lightning_4step_unet.safetensors"
    weights(there, "unet").rename(file)
    weights(base, "unet").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return file


def test_sdxl_lightning_takes_its_unet_from_a_file(sdxl_lightning):
    file = sdxl_lightning
    pipe = load("sdxl-lightning", local_files_only=True, device="cpu")
    key = "conv_in.weight"
    assert torch.equal(pipe.unet.state_dict()[key], load_file(file)[key].float())
    info = pipe.model_info
    assert (info.source, info.revision) == ("ByteDance/SDXL-Lightning", COMMIT)
    file.unlink()
    with pytest.raises(WeightsMissing, match="hf download ByteDance/SDXL-Lightning sdxl_light"):
        load("sdxl-lightning", local_files_only=True, device="cpu")


def test_a_folder_is_identified_by_its_weights(folder):
    assert load(folder, device="cpu").model_info.variant == "fp16"  # it holds no others
    without_variant(folder, *ALL)
    first = load(folder, device="cpu").model_info
    assert (first.system, first.domain, first.source) == (None, "photographic", str(folder))
    assert load(folder, device="cpu").model_info.revision == first.revision
    data = bytearray(weights(folder, "unet").read_bytes())
    data[-1] ^= 1
    weights(folder, "unet").write_bytes(data)
    assert load(folder, device="cpu").model_info.revision != first.revision


def test_an_embedded_model_is_found_and_told_by_its_json(folder, monkeypatch, tmp_path):
    without_variant(folder, *ALL)
    (folder / "koala_nb.json").write_text('{"name": "nano-koala", "domain": "emoji-world"}')
    by_path = load(folder, device="cpu").model_info
    assert (by_path.name, by_path.domain, by_path.recipe.steps) == ("nano-koala", "emoji-world", 10)
    shutil.copytree(folder, tmp_path / "data" / "models" / "nano-koala")
    monkeypatch.setenv("KOALA_NB_DATA", str(tmp_path / "data"))
    pipe = load("nano-koala", device="cpu")
    assert pipe.model_info.revision == by_path.revision
    assert (pipe.model_info.source, by_path.source) == ("data/models/nano-koala", str(folder))
    assert pipe.scheduler.config.timestep_spacing == "trailing"
    with pytest.raises(ValueError, match="revision='main' is for hub repositories"):
        load("nano-koala", revision="main")
    monkeypatch.setenv("KOALA_NB_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(WeightsMissing, match="work in a checkout of the project"):
        load("nano-koala")


@pytest.mark.parametrize("lender", [".", "../other"])
def test_a_folder_that_borrows_lends_nothing(folder, tmp_path, lender):
    (folder / "koala_nb.json").write_text(json.dumps({"parts_from": lender}))
    other = shutil.copytree(folder, folder.parent / "other")
    (other / "koala_nb.json").write_text(json.dumps({"parts_from": f"../{folder.name}"}))
    with pytest.raises(WeightsMissing, match="borrows parts itself: name the folder that holds"):
        hub.from_folder(folder)


def test_parts_may_stand_once_in_another_folder(folder, tmp_path):
    without_variant(folder, *ALL)
    student = shutil.copytree(folder, tmp_path / "student")
    for part in ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        shutil.rmtree(student / part)
    (student / "koala_nb.json").write_text('{"domain": "emoji-world", "parts_from": "../tiny"}')
    pipe, whole = load(student, device="cpu"), load(folder, device="cpu")
    assert torch.equal(
        pipe.vae.state_dict()["decoder.conv_in.weight"],
        whole.vae.state_dict()["decoder.conv_in.weight"],
    )
    assert pipe.tokenizer("a koala").input_ids == whole.tokenizer("a koala").input_ids
    assert pipe.model_info.revision != whole.model_info.revision
    change(folder, "vae", without("decoder.conv_out.weight"))
    with pytest.raises(WeightsMissing, match="vae/.* lacks 1 of the weights of AutoencoderKL"):
        load(student, device="cpu")
    for place, part in ((student, "unet"), (folder, "vae")):
        shutil.rmtree(place / part)
        with pytest.raises(WeightsMissing, match=f"lacks the part {part}"):
            load(student, device="cpu")


def cut_short(file):
    file.write_bytes(file.read_bytes()[:-100])


def test_an_interrupted_download_is_told_how_to_go_on(tmp_path, monkeypatch):
    weights(write_hub_layout(tmp_path), "unet").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(WeightsMissing, match=f"weights in unet/: run `hf download {REPOSITORY}`"):
        load("koala-lightning-700m", local_files_only=True, device="cpu")


def test_a_device_that_is_not_there():
    absent = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(ValueError, match=f"Device '{absent}' is not available to torch"):
        load("koala-700m", device=absent)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("bf16", "bfloat16"), (torch.bfloat16, "bfloat16"), ("half", "float16"), (None, "float32")],
)
def test_every_part_has_the_precision(snapshot, dtype, name):
    pipe = load(snapshot, device="cpu", dtype=dtype)
    parts = (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
    assert {p.dtype for p in parts} == {getattr(torch, name)} and pipe.model_info.dtype == name
    assert devices.pick_dtype(None, torch.device("cuda")) == torch.float16


def test_memory_plan_with_the_sizes_of_koala_700m():
    sizes = [1.57, 0.17, 0.25, 1.39]  # GB: U-Net, VAE, two text encoders in half precision
    assert devices.plan_memory(sizes, 22, 1) == (False, "none")
    assert devices.plan_memory(sizes, 6, 1) == (True, "none")
    assert devices.plan_memory(sizes, 4, 1) == (True, "model")
    assert devices.plan_memory(sizes, 2, 1) == (True, "sequential")
    assert devices.plan_memory(sizes, 6, 0.25) == (False, "none")  # 512 x 512


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built for CUDA")
def test_a_gpu_beside_a_cpu_only_torch_gets_one_warning(monkeypatch):
    monkeypatch.setattr(devices.shutil, "which", lambda name: f"/usr/bin/{name}")
    devices._warn_cpu_only_torch.cache_clear()
    with pytest.warns(UserWarning, match="built for CPUs only") as caught:
        devices.pick_device()
        devices.pick_device()
    assert len(caught) == 1
    devices._warn_cpu_only_torch.cache_clear()
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    monkeypatch.setattr(devices.Path, "exists", lambda path: False)
    devices._warn_cpu_only_torch.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        devices._warn_cpu_only_torch()
    devices._warn_cpu_only_torch.cache_clear()


def test_memory_that_torch_only_keeps_counts_as_free(snapshot, monkeypatch):
    pipe, order = load(snapshot, device="cpu"), []
    monkeypatch.setattr(devices, "empty_cache", lambda: order.append("give back"))
    monkeypatch.setattr(pipe, "to", lambda device: order.append("place"))
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda device: (order.append("plan"), (8e10, 8e10))[1]
    )
    pipelines._place(pipe, torch.device("cuda"), None)
    assert order == ["give back", "plan", "place"]


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"),
        ("vae", "decoder.conv_out.weight"),
        ("text_encoder", "layers.0.mlp.fc1.weight"),
        ("text_encoder_2", "text_projection.weight"),
    ],
)
def test_one_weight_that_a_file_lacks(folder, part, name):
    change(folder, part, without(name))
    with pytest.raises(WeightsMissing, match=f"{part}/.* lacks 1 of the weights of .*{name}"):
        load(folder, device="cpu")


def test_weights_under_names_that_the_class_does_not_know(folder):
    change(folder, "text_encoder", lambda tensors: {f"other.{k}": v for k, v in tensors.items()})
    with pytest.raises(WeightsMissing, match="of the weights of CLIPTextModel, such as"):
        load(folder, device="cpu")


def test_names_may_differ_where_the_library_knows_them(folder):
    def renamed(tensors):  # as checkpoints older and newer than transformers 5 have them
        prefix = "" if any(k.startswith("text_model.") for k in tensors) else "text_model."
        return {prefix + k.removeprefix("text_model."): v for k, v in tensors.items()}

    before = load(folder, device="cpu").text_encoder.state_dict()
    change(folder, "text_encoder", renamed)
    after = load(folder, device="cpu").text_encoder.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.fixture
def nano_clip(tmp_path):
    return shutil.copytree(data_folder() / "models" / "nano-clip", tmp_path / "nano-clip")


def test_a_scorer_that_lacks_a_weight_or_has_one_of_another_shape(nano_clip):
    assert not hub.load_whole(CLIPModel, nano_clip).training
    whole = change(nano_clip.parent, "nano-clip", dict)
    change(nano_clip.parent, "nano-clip", without("visual_projection.weight"))
    for kind in (CLIPModel, AutoModel):
        with pytest.raises(ValueError, match="lacks 1 of the weights of CLIPModel, such as visual"):
            hub.load_whole(kind, nano_clip)
    bad = {"text_projection.weight": torch.ones(3, 3)}
    change(nano_clip.parent, "nano-clip", lambda tensors: {**whole, **bad})
    with pytest.raises((ValueError, RuntimeError), match="text_projection.weight"):
        hub.load_whole(CLIPModel, nano_clip)


def test_a_folder_is_hashed_beside_and_waited_for_when_it_is_asked(folder, monkeypatch):
    expected = load(folder, device="cpu").model_info.revision
    hash_file, may_go = files.sha256, threading.Event()
    monkeypatch.setattr(files, "sha256", lambda path: may_go.wait(60) and hash_file(path))
    pipe = load(folder, device="cpu")  # returns, though no hash is there
    assert callable(pipe.model_info._revision)
    may_go.set()
    assert copy.deepcopy(pipe.model_info).revision == pipe.model_info.revision == expected


def test_the_unet_of_a_file_is_never_made_with_random_weights(sdxl_lightning, monkeypatch):
    made = []
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", lambda t, *a, **k: made.append(t.device))
    file = sdxl_lightning
    load("sdxl-lightning", local_files_only=True, device="cpu")
    assert {str(device) for device in made} == {"meta"}
    tensors = load_file(file)
    tensors.pop("conv_in.weight")
    save_file(tensors, file)
    with pytest.raises(WeightsMissing, match="lacks 1 of the weights of UNet2D.*such as conv_in"):
        load("sdxl-lightning", local_files_only=True, device="cpu")
