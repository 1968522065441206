"""One file under the names of SDXL's release, written and read again."""

import re

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import CHECKPOINT_KEY_NAMES
from safetensors.torch import load_file, save_file

import koala_nb as kn
from koala_nb.core.catalog import data_folder
from koala_nb.models.fingerprint import fingerprint
from koala_nb.models.hub import RELEASE_UNET
from koala_nb.models.load import WeightsMissing

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
SMALL = {"seeds": [3], "steps": 2, "progress": False}


@pytest.fixture(scope="module")
def file(pipe, tmp_path_factory):
    return kn.save_single_file(pipe, tmp_path_factory.mktemp("one") / "koala.safetensors")


def same_weights(pipe, other, parts=PARTS):
    one, two = fingerprint(pipe), fingerprint(other)
    return all(one[part]["weights"] == two[part]["weights"] for part in parts)


def test_a_whole_checkpoint_is_read_as_it_was_written(pipe, file):
    again = kn.load(file, config="nano-koala", device="cpu")
    assert same_weights(pipe, again) and not any(getattr(again, p).training for p in PARTS)
    info = again.model_info
    expected = ("nano-koala", str(file), pipe.model_info.recipe)
    assert (info.name, info.source, info.recipe) == expected
    assert info.revision.startswith("weights-") and info.revision != pipe.model_info.revision
    one, two = (kn.generate(p, "a koala", **SMALL).images[0] for p in (pipe, again))
    assert abs(np.asarray(one).astype(int) - np.asarray(two)).max() <= 1  # rounding


def test_the_names_are_the_releases(file):
    keys = load_file(file).keys()
    for name in ("clip_sdxl", "open_clip_sdxl"):
        assert CHECKPOINT_KEY_NAMES[name] in keys
    for key in (
        "model.diffusion_model.output_blocks.1.2.conv.weight",
        "model.diffusion_model.input_blocks.2.0.op.bias",
        "model.diffusion_model.label_emb.0.2.weight",
        "first_stage_model.decoder.up.1.upsample.conv.weight",
        "first_stage_model.encoder.mid.block_1.norm1.weight",
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight",
    ):
        assert key in keys


def test_a_vaes_attention_is_of_convolutions_there(loaded, snapshot, tmp_path):
    path = kn.save_single_file(loaded, tmp_path / "tiny.safetensors")
    name = "first_stage_model.encoder.mid.attn_1.q.weight"
    assert load_file(path)[name].shape == (8, 8, 1, 1)
    vae = AutoencoderKL.from_single_file(str(path), config=str(snapshot), subfolder="vae")
    state = vae.state_dict()
    assert all(torch.equal(state[k], v) for k, v in loaded.vae.state_dict().items())


@pytest.mark.parametrize("prefix", ["", RELEASE_UNET, None])
def test_a_unet_alone_takes_the_other_parts_from_its_configuration(pipe, file, tmp_path, prefix):
    if prefix is None:
        tensors = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    else:
        whole = load_file(file)
        keys = [key for key in whole if key.startswith(RELEASE_UNET)]
        tensors = {prefix + key.removeprefix(RELEASE_UNET): whole[key] for key in keys}
    for key in tensors:
        tensors[key] = tensors[key] + 1
    save_file(tensors, tmp_path / "unet.safetensors")
    again = kn.load(tmp_path / "unet.safetensors", config="nano-koala", device="cpu")
    assert same_weights(pipe, again, PARTS[1:]) and not same_weights(pipe, again, PARTS[:1])
    state = pipe.unet.state_dict()
    assert all(torch.equal(v, state[k] + 1) for k, v in again.unet.state_dict().items())
    assert again.model_info.notes[0].startswith("all but the U-Net from nano-koala at weights-")


def test_sdxls_mid_block_is_written_too(tmp_path):
    teacher = kn.load("nano-sdxl", device="cpu")
    path = kn.save_single_file(teacher, tmp_path / "sdxl.safetensors")
    assert same_weights(teacher, kn.load(path, config="nano-sdxl", device="cpu"))
    with pytest.raises(WeightsMissing, match="configurations and weights do not belong together"):
        kn.load(path, config="nano-koala", device="cpu")


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({"conv_in.weight": 0, "down_blocks.0.x": 0}, None, "one file: say whose configuration"),
        ({"unet.x.lora_A.weight": 0}, "nano-koala", "is a LoRA: load its model, then kn.load_lora"),
        ({"something": 0}, "nano-koala", "holds no U-Net and no checkpoint of the SDXL type"),
        ({"conv_in.weight": 0, "down_blocks.0.x": 0}, "nano-koala", "of the weights of UNet2DCond"),
    ],
)
def test_what_one_file_cannot_be_is_one_sentence(tmp_path, tensors, config, message):
    save_file({key: torch.zeros(1) for key in tensors}, tmp_path / "one.safetensors")
    with pytest.raises((ValueError, WeightsMissing), match=re.escape(message)):
        kn.load(tmp_path / "one.safetensors", config=config, device="cpu")


def test_no_file_a_damaged_one_and_a_folder(tmp_path):
    with pytest.raises(ValueError, match="There is no file nowhere.safetensors"):
        kn.load("nowhere.safetensors", config="nano-koala")
    (tmp_path / "cut.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="is no readable safetensors file"):
        kn.load(tmp_path / "cut.safetensors", config="nano-koala")
    with pytest.raises(ValueError, match="config= is for one"):
        kn.load(data_folder() / "models" / "nano-koala", config="nano-koala")


@pytest.mark.parametrize("path", [None, 5, "koala.bin", "koala"])
def test_a_place_that_cannot_be_loaded_again_is_refused(pipe, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"is no place for it: .* \.safetensors"):
        kn.save_single_file(pipe, path)
    assert not list(tmp_path.iterdir())


def test_the_revision_of_a_single_file_is_that_of_its_configuration(pipe, file, tmp_path):
    with pytest.raises(ValueError, match="revision='main' is for hub repositories"):
        kn.load(file, config="nano-koala", revision="main", device="cpu")
    with pytest.raises(WeightsMissing, match="someone/else at revision v9"):
        kn.load(file, config="someone/else", revision="v9", local_files_only=True)
    pipe.save_pretrained(tmp_path / "mine")
    (note,) = kn.load(file, config=str(tmp_path / "mine"), device="cpu").model_info.notes
    assert note == "the configuration from mine"
    (note,) = kn.load(file, config="nano-koala", device="cpu").model_info.notes
    assert note == "the configuration from nano-koala"
