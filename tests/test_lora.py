"""A LoRA of SDXL on a U-Net that was cut from SDXL's, in KOALA's way."""

import re
import shutil
import sys

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from koala_nb import load, load_lora
from koala_nb.models.unet import meta_inputs

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
MORE = [*ATTENTION, "proj_in", "ff.net.2", "conv1", "time_emb_proj"]


def teacher_of(unet):
    """SDXL's structure at a student's widths: 70 transformer blocks."""
    config = {k: v for k, v in unet.config.items() if k != "_use_default_values"}
    config |= {"layers_per_block": 2, "transformer_layers_per_block": [1, 2, 10]}
    return UNet2DConditionModel.from_config(config | {"mid_block_type": "UNetMidBlock2DCrossAttn"})


def write_lora(pipe, folder, targets, *, text=True, **options):
    """Train nothing: random deltas, of rank 2 and alpha 8; returns the file."""
    torch.manual_seed(5)
    form = {"r": 2, "lora_alpha": 8, "init_lora_weights": False}
    config = LoraConfig(target_modules=targets, **form, **options)
    unet = teacher_of(pipe.unet)
    unet.add_adapter(config, "default")
    layers, metadata = {"unet_lora_layers": get_peft_model_state_dict(unet)}, {}
    metadata["unet_lora_adapter_metadata"] = config.to_dict()
    if text:
        text_config = LoraConfig(target_modules=["q_proj"], **form)
        encoder = type(pipe.text_encoder)(pipe.text_encoder.config)
        encoder.add_adapter(text_config, "default")
        layers["text_encoder_lora_layers"] = get_peft_model_state_dict(encoder)
        metadata["text_encoder_lora_adapter_metadata"] = text_config.to_dict()
    StableDiffusionXLPipeline.save_lora_weights(folder, **layers, **metadata)
    return folder / "pytorch_lora_weights.safetensors"


@pytest.fixture
def koala(snapshot):
    return load(snapshot, device="cpu")


def output(unet):
    torch.manual_seed(7)
    inputs = meta_inputs(unet, 8, 8, 77)
    added = {k: torch.randn(v.shape) for k, v in inputs.pop("added_cond_kwargs").items()}
    values = {k: torch.randn(v.shape) for k, v in inputs.items()}
    with torch.no_grad():
        return unet(**values, added_cond_kwargs=added).sample


def by_hand(unet, file, scale, pair=2):
    """Add B A to each weight: in up stages the student's pair 1 is the teacher's pair 2, `pair`."""
    deltas, added = load_file(file), 0
    for name, module in unet.named_modules():
        origin = re.sub(r"^(up_blocks\.\d\.(?:attentions|resnets))\.1\b", rf"\1.{pair}", name)
        down = deltas.get(f"unet.{origin}.lora_A.weight")
        if down is not None:
            up = deltas[f"unet.{origin}.lora_B.weight"]
            delta = (up.flatten(1) @ down.flatten(1)).reshape(module.weight.shape)
            module.weight.data += scale * delta
            added += 1
    return added


@pytest.mark.parametrize(
    ("targets", "options", "scale"),
    [(ATTENTION, {}, 4), (MORE, {}, 4), (ATTENTION, {"use_rslora": True}, 8 / 2**0.5)],
)
def test_each_delta_goes_where_its_block_went(koala, tmp_path, targets, options, scale):
    file = write_lora(koala, tmp_path, targets, text=False, **options)
    expected = load_copy(koala)
    added = by_hand(expected, file, scale)
    before = output(koala.unet)
    with pytest.warns(UserWarning, match="modules of this LoRA are loaded") as caught:
        table = load_lora(koala, file)
    assert torch.allclose(output(koala.unet), output(expected), atol=1e-4)
    assert (output(koala.unet) - before).abs().max() > 0.1
    assert added == table.loaded_into.notna().sum()
    if targets is ATTENTION:
        assert (added, len(table)) == (168, 560)
        assert str(caught[0].message).startswith("168 of 560 modules of this LoRA are loaded")
        assert "lacks the blocks of the other 392, such as " in str(caught[0].message)
        moved = table[table.module != table.loaded_into].dropna()
        assert len(moved) == 56 and moved.module.str.match(r"up_blocks\.\d\.attentions\.2").all()
        assert moved.loaded_into.str.match(r"up_blocks\.\d\.attentions\.1").all()


def load_copy(pipe):
    unet = UNet2DConditionModel.from_config(pipe.unet.config)
    unet.load_state_dict(pipe.unet.state_dict())
    return unet.eval()


def test_text_encoders_are_sdxls_own_and_sdxl_takes_all(koala, tmp_path):
    file = write_lora(koala, tmp_path, ATTENTION)
    before = koala.encode_prompt("a koala", do_classifier_free_guidance=False)[0]
    koala.unet = teacher_of(koala.unet).eval()
    expected = load_copy(koala)
    table = load_lora(koala, file, name="style")
    assert by_hand(expected, file, 4, pair=1) == 560 and table.loaded_into.notna().all()
    assert table.part.value_counts().to_dict() == {"unet": 560, "text_encoder": 2}
    assert torch.allclose(output(koala.unet), output(expected), atol=1e-4)
    after = koala.encode_prompt("a koala", do_classifier_free_guidance=False)[0]
    assert not torch.equal(before, after)
    assert koala.get_list_adapters() == {"unet": ["style"], "text_encoder": ["style"]}


def test_block_numbers_of_other_trainers_are_sdxls(koala, tmp_path):
    """`input_blocks.4` is SDXL's second down block; by KOALA's own count it would be another."""
    unet, state = koala.unet, {}
    places = {
        "input_blocks_4_1": unet.down_blocks[1].attentions[0],
        "input_blocks_5_1": None,
        "output_blocks_1_1": None,
        "output_blocks_2_1": unet.up_blocks[0].attentions[1],
    }
    for number, (place, block) in enumerate(places.items()):
        like = (
            block
            or (unet.down_blocks if "input" in place else unet.up_blocks)[
                1 if "input" in place else 0
            ].attentions[0]
        )
        width = like.transformer_blocks[0].attn1.to_q.in_features
        key = f"lora_unet_{place}_transformer_blocks_0_attn1_to_q"
        state[f"{key}.lora_down.weight"] = torch.full((2, width), number + 1.0)
        state[f"{key}.lora_up.weight"] = torch.ones(width, 2)
        state[f"{key}.alpha"] = torch.tensor(1.0)
    width = koala.text_encoder.config.hidden_size
    key = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    state |= {f"{key}.alpha": torch.tensor(1.0)}
    for side, shape in (("down", (2, width)), ("up", (width, 2))):
        state[f"{key}.lora_{side}.weight"] = torch.ones(shape)
    save_file(state, tmp_path / "kohya.safetensors")
    with pytest.warns(UserWarning, match="3 of 5 modules"):
        load_lora(koala, tmp_path / "kohya.safetensors", name="style")
    for number, block in enumerate(places.values()):
        if block is not None:
            layer = block.transformer_blocks[0].attn1.to_q
            delta = layer.get_delta_weight("style")
            assert torch.allclose(delta, torch.full_like(delta, number + 1.0))
    encoder = next(iter(koala.text_encoder.modules()))
    (layer,) = (m for m in encoder.modules() if hasattr(m, "get_delta_weight"))
    assert torch.equal(layer.get_delta_weight("style"), torch.ones(width, width))


def test_what_is_no_lora_of_sdxl_is_one_sentence(koala, tmp_path):
    file = write_lora(koala, tmp_path, ATTENTION, text=False)
    deltas = load_file(file)
    wide = {k: torch.ones(2, 99) if "lora_A" in k else v for k, v in deltas.items()}
    with pytest.raises(ValueError, match="trained on another kind of model"):
        load_lora(koala, wide)
    foreign = {k.replace("_blocks.", "_parts."): v for k, v in deltas.items() if "_blocks" in k}
    with pytest.raises(ValueError, match="None of the 560 modules of this LoRA, such as down_part"):
        load_lora(koala, foreign)
    with pytest.raises(ValueError, match="which is no part of a plain LoRA of SDXL"):
        load_lora(koala, {"unet.conv_in.lokr_w1": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="is no LoRA that can be read"):
        load_lora(koala, tmp_path / "nowhere.safetensors")
    plain = tmp_path / "plain"
    plain.write_text("root:x:0:0:root:/root:/bin/bash\n")
    with pytest.raises(ValueError, match="is no LoRA that can be read: ") as error:
        load_lora(koala, plain)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    for odd in ({}, {5: 5}, {"unet": 1}, 5, None):
        with pytest.raises(ValueError, match="is no LoRA: give a file, a hub id or tensors"):
            load_lora(koala, odd)
    koala.unet.register_to_config(layers_per_block=2)
    with pytest.raises(ValueError, match="is neither SDXL nor KOALA"):
        load_lora(koala, deltas)
    assert not hasattr(koala.unet, "peft_config")


def test_diffusers_own_warning_is_shown(koala, tmp_path, caplog):
    file = write_lora(koala, tmp_path, ATTENTION, text=False)
    shutil.copy(file, tmp_path / "own.safetensors")
    koala.load_lora_weights(tmp_path / "own.safetensors")
    assert "No LoRA keys associated to CLIPTextModel" in caplog.text


def test_without_peft_one_sentence(koala, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match="peft is not installed: install koala-nb with the extra"):
        load_lora(koala, "style.safetensors")
