"""Weights that a file lacks are named: the libraries would put random ones in their place."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from koala_nb import load
from koala_nb.core.catalog import data_folder
from koala_nb.models import hub
from koala_nb.models.hub import WeightsMissing


def change(folder, part, how):
    """Rewrite a part's only safetensors file; return what `how` made of its tensors."""
    (file,) = (folder / part).glob("*.safetensors")
    made = how(load_file(file))
    save_file(made, file, metadata={"format": "pt"})
    return made


def without(name):
    return lambda held: {key: value for key, value in held.items() if not key.endswith(name)}


@pytest.fixture
def folder(snapshot, tmp_path):
    return shutil.copytree(snapshot, tmp_path / "tiny")


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
    change(folder, "text_encoder", lambda held: {f"other.{k}": v for k, v in held.items()})
    with pytest.raises(WeightsMissing, match="of the weights of CLIPTextModel, such as"):
        load(folder, device="cpu")


def test_names_may_differ_where_the_library_knows_them(folder):
    def renamed(held):  # as checkpoints older and newer than transformers 5 have them
        bare = {k.removeprefix("text_model."): v for k, v in held.items()}
        return (
            bare if bare.keys() != held.keys() else {f"text_model.{k}": v for k, v in held.items()}
        )

    before = load(folder, device="cpu").text_encoder.state_dict()
    change(folder, "text_encoder", renamed)
    after = load(folder, device="cpu").text_encoder.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_parts_that_another_folder_lends_are_checked(folder, tmp_path):
    student = shutil.copytree(folder, tmp_path / "student")
    for part in ("vae", "text_encoder", "text_encoder_2"):
        shutil.rmtree(student / part)
    (student / "koala_nb.json").write_text('{"parts_from": "../tiny"}')
    load(student, device="cpu")
    change(folder, "vae", without("decoder.conv_out.weight"))
    with pytest.raises(WeightsMissing, match="vae/.* lacks 1 of the weights of AutoencoderKL"):
        load(student, device="cpu")
    shutil.rmtree(student / "unet")
    with pytest.raises(WeightsMissing, match="lacks the part unet"):
        load(student, device="cpu")


def test_a_scorer_that_lacks_a_weight(tmp_path):
    from transformers import AutoModel, CLIPModel

    folder = shutil.copytree(data_folder() / "models" / "nano-clip", tmp_path / "nano-clip")
    assert not hub.load_whole(CLIPModel, folder).training
    change(tmp_path, "nano-clip", without("visual_projection.weight"))
    for kind in (CLIPModel, AutoModel):
        with pytest.raises(
            ValueError, match="lacks 1 of the weights of CLIPModel, such as visual_"
        ):
            hub.load_whole(kind, folder)


def test_a_weight_of_another_shape(tmp_path):
    from transformers import CLIPModel

    folder = shutil.copytree(data_folder() / "models" / "nano-clip", tmp_path / "nano-clip")
    change(tmp_path, "nano-clip", lambda held: {**held, "text_projection.weight": torch.ones(3, 3)})
    with pytest.raises((ValueError, RuntimeError), match="text_projection.weight"):
        hub.load_whole(CLIPModel, folder)
