"""A pipeline that was changed after loading is another one: refused on resuming, and recorded."""

import copy

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from koala_nb import capture_attention, generate, load
from koala_nb.core.files import read_json, read_record, write_json
from koala_nb.models.fingerprint import fingerprint, summary

SMALL = {"seeds": [3], "height": 64, "width": 64, "steps": 3, "guidance": 3.5, "progress": False}


class Scaled(AttnProcessor):
    """A processor that changes images."""

    def __call__(self, *arguments, **more):
        return super().__call__(*arguments, **more) * 1.5


def other_scheduler(kind, **options):
    def change(pipe):
        pipe.scheduler = kind.from_config(pipe.scheduler.config, **options)

    return change


def add_lora(pipe):
    from peft import LoraConfig

    torch.manual_seed(1)
    pipe.unet.add_adapter(
        LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "style"
    )


def rescale_lora(pipe):
    pipe.set_adapters("style", 0.5)


def fuse_lora(pipe):
    pipe.fuse_lora()


def other_vae(pipe):
    torch.manual_seed(2)
    pipe.vae = diffusers.AutoencoderKL.from_config(pipe.vae.config).eval()


def other_text_encoder(pipe):
    torch.manual_seed(3)
    pipe.text_encoder = type(pipe.text_encoder)(pipe.text_encoder.config).eval()


def free_u(pipe):
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)


def perturbed_attention(pipe):
    info = pipe.model_info
    pipe = diffusers.StableDiffusionXLPAGPipeline.from_pipe(
        pipe, pag_applied_layers=["down_blocks.2"]
    )
    pipe.model_info = info
    return pipe


def store_in_eight_bits(pipe):
    stored = torch.float8_e4m3fn
    pipe.unet.enable_layerwise_casting(storage_dtype=stored, compute_dtype=torch.float32)


def write_one_weight(pipe):
    """Through `.data`, which leaves the tensor's version as it was."""
    weight = pipe.unet.up_blocks[0].attentions[1].proj_in.weight
    version = weight._version
    weight.data[1, 1] += 0.5
    assert weight._version == version


def other_processor(pipe):
    pipe.unet.set_attn_processor(Scaled())


def seamless(pipe):
    for module in pipe.unet.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.padding_mode = "circular"


def new_word(pipe):
    pipe.tokenizer.add_tokens(["<koala-toy>"])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))


def hooked(pipe):
    pipe.unet.conv_in.register_forward_hook(brighter)


def brighter(module, inputs, output):
    return output * 1.1


KARRAS = other_scheduler(diffusers.EulerDiscreteScheduler, use_karras_sigmas=True)
DPM = other_scheduler(diffusers.DPMSolverMultistepScheduler)
SDE = other_scheduler(diffusers.DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++")
CHANGES = [  # before, then after loading; what the sentence names; whether the image is another
    (None, add_lora, "parts.unet.options._active_adapter was None, now ['style']", True),
    (add_lora, rescale_lora, "parts.unet.options.scaling.style was 4.0, now 2.0", True),
    (add_lora, fuse_lora, "parts.unet.options.lora_scale was None, now 1.0", False),
    (None, other_vae, "parts.vae.weights.encoder was", True),
    (None, KARRAS, "parts.scheduler.config.use_karras_sigmas was None, now True", True),
    (DPM, SDE, "algorithm_type was 'dpmsolver++', now 'sde-dpmsolver++'", True),
    (None, DPM, "scheduler was 'EulerDiscreteScheduler', now 'DPMSolverMultistep", True),
    (None, free_u, "parts.unet.options.b1 was None, now 1.3", True),
    (None, perturbed_attention, "parts.pipeline.class was 'StableDiffusionXLPipeline'", True),
    (None, store_in_eight_bits, "layerwise_casting", True),
    (None, write_one_weight, "parts.unet.weights.up_blocks was", True),
    (None, other_text_encoder, "parts.text_encoder.weights.embeddings was", True),
    (None, other_processor, "processor was 'AttnProcessor2_0', now 'Scaled'", True),
    (None, seamless, "padding_mode was 'zeros', now 'circular'", True),
    (None, new_word, "parts.text_encoder.", False),
    (None, hooked, "parts.unet.options.hooks was None, now ['brighter']", True),
]


@pytest.mark.parametrize(("before", "change", "message", "another"), CHANGES)
def test_a_changed_pipeline_is_refused_with_the_difference(
    snapshot, tmp_path, before, change, message, another
):
    pipe = load(snapshot, device="cpu")
    if before:
        before(pipe)
    first = generate(pipe, "a koala", out=tmp_path, **SMALL)
    pipe = change(pipe) or pipe
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="run with other settings") as error:
        generate(pipe, "a koala", out=tmp_path, **SMALL)
    assert message in str(error.value)
    second = generate(pipe, "a koala", **SMALL)
    assert second.records.parts[0] != first.records.parts[0]
    if another:
        assert not np.array_equal(np.asarray(first.images[0]), np.asarray(second.images[0]))


def test_an_unchanged_pipeline_stays_the_same_one(snapshot, tmp_path):
    pipe = load(snapshot, device="cpu")
    before = fingerprint(pipe)
    first = generate(pipe, "a koala", out=tmp_path, **SMALL)
    with capture_attention(pipe, self_grid=2):
        captured = generate(pipe, "a koala", **SMALL)
    assert first.records.parts[0] == captured.records.parts[0] == summary(before)
    assert fingerprint(load(snapshot, device="cpu")) == fingerprint(copy.deepcopy(pipe)) == before
    assert read_json(tmp_path / "settings.json")["parts"] == before
    assert read_record(tmp_path / first.records.file[0])["parts"] == summary(before)
    assert before["unet"]["tensors"] == {"float32": len(list(pipe.unet.parameters()))}


def test_adapters_are_named_in_the_record(snapshot):
    add_lora(pipe := load(snapshot, device="cpu"))
    run = generate(pipe, "a koala", **SMALL)
    assert run.records.parts[0].endswith('adapters {"style": 4.0}')


def test_every_bit_of_every_tensor_counts():
    layer = torch.nn.Linear(700, 1000).eval()  # several rows, not whole ones
    pipe = type("Pipe", (), {"components": {"unet": layer}, "config": {}})()
    layer.config = {}
    values = {fingerprint(pipe)["unet"]["weights"]["weight"]}
    for index in ((0, 0), (999, 699), (500, 1)):
        bits = layer.weight.data.view(torch.int32)
        bits[index] ^= 1
        values.add(fingerprint(pipe)["unet"]["weights"]["weight"])
    layer.weight.data[[1, 2]] = layer.weight.data[[2, 1]]  # the same rows in another order
    values.add(fingerprint(pipe)["unet"]["weights"]["weight"])
    assert len(values) == 5


def test_a_folder_that_does_not_say_what_drew_it_is_read_and_not_resumed(loaded, tmp_path):
    generate(loaded, "a koala", out=tmp_path, **SMALL)
    settings = read_json(tmp_path / "settings.json")
    del settings["parts"]
    write_json(tmp_path / "settings.json", settings)
    with pytest.raises(ValueError, match="do not say what its pipeline consisted of: read it with"):
        generate(loaded, "a koala", out=tmp_path, **SMALL)


@pytest.mark.parametrize("kind", [diffusers.LCMScheduler, diffusers.TCDScheduler])
def test_a_spacing_that_does_not_count_is_not_recorded(snapshot, kind):
    other_scheduler(kind, timestep_spacing="trailing")(pipe := load(snapshot, device="cpu"))
    assert generate(pipe, "a koala", **SMALL).records.timestep_spacing[0] is None
    with pytest.raises(ValueError, match=f"{kind.__name__} takes the same steps with any timestep"):
        generate(pipe, "a koala", timestep_spacing="leading", **SMALL)
