"""A user's own pipeline, keywords of diffusers, addresses, other families: one that works, or one
true sentence.
"""

import diffusers
import numpy as np
import pytest
import torch
from hub_layout import COMMIT, REPOSITORY
from torch.nn import functional
from torch.utils._python_dispatch import return_and_correct_aliasing

import koala_nb as kn
from koala_nb.core.catalog import find
from koala_nb.models import hub
from koala_nb.models.fingerprint import fingerprint

SMALL = {"seeds": [3], "height": 64, "width": 64, "steps": 2, "guidance": 3.5, "progress": False}


@pytest.fixture
def koala(snapshot):
    return kn.load(snapshot, device="cpu")


def pixels(run):
    return np.asarray(run.images[0]).astype(int)


# --- a pipeline that diffusers loaded -------------------------------------------------------------


@pytest.mark.parametrize("by_id", [True, False])
def test_what_diffusers_loaded_has_its_recipe_and_identity(snapshot, hub_cache, by_id):
    place = REPOSITORY if by_id else snapshot
    cache = {"cache_dir": hub_cache} if by_id else {}
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(
        place, variant="fp16", dtype=torch.float32, local_files_only=True, **cache
    )
    info, scheduler = kn.model_info(pipe), pipe.scheduler
    assert (info.system, info.dtype, info.device) == (None, "float32", "cpu")
    session = kn.wrap(pipe)
    assert pipe.model_info is session.info is kn.wrap(pipe).info and pipe.scheduler is scheduler
    assert (session.info.name, session.info.source) == ("koala-lightning-700m", REPOSITORY)
    assert (session.info.revision, session.recipe) == (COMMIT, find("koala-lightning-700m").recipe)
    assert "timestep spacing leading, the recipe's is trailing" in str(session)
    record = kn.generate(session.pipe, "a", height=64, width=64, progress=False).records.iloc[0]
    assert (record.steps, record.guidance, record.revision) == (10, 3.5, COMMIT)
    assert record.negative_prompt == session.recipe.negative_prompt


def test_parts_of_ones_own_are_passed_on(snapshot, koala):
    torch.manual_seed(9)
    vae = diffusers.AutoencoderKL.from_config(koala.vae.config).eval()
    scheduler = diffusers.DDIMScheduler.from_config(koala.scheduler.config)
    pipe = kn.load(snapshot, device="cpu", vae=vae, scheduler=scheduler, torch_dtype=torch.bfloat16)
    assert pipe.vae is vae and type(pipe.scheduler) is diffusers.DDIMScheduler
    assert pipe.unet.dtype == torch.bfloat16 and pipe.model_info.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device_map": "auto"}, "load has no device_map=: write device= or offload='model'"),
        ({"variant": "fp16"}, "load has no variant=: half precision is found by itself"),
        ({"use_safetensors": True}, "nothing but safetensors is ever loaded"),
        ({"custom_pipeline": "x"}, "no code of a repository is run"),
        ({"revison": "main"}, "Did you mean 'revision'?"),
        ({"torch_dtype": "int8"}, "Unknown dtype 'int8': use float16, bfloat16 or float32"),
        (
            {"torch_dtype": "float16", "dtype": "float32"},
            "dtype is float32 and torch_dtype float16: give one",
        ),
    ],
)
def test_keywords_of_diffusers_say_what_to_write(snapshot, given, message):
    with pytest.raises(ValueError) as error:
        kn.load(snapshot, device="cpu", **given)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "https://huggingface.co/etri-vilab/koala-700m",
            "write a hub id, here 'etri-vilab/koala-7",
        ),
        ("https://huggingface.co/a/b/blob/main/c.safetensors", "here 'a/b', or download it and"),
        ("koala.Q4_0.gguf", "GGUF is not read here; load the U-Net with diffusers'"),
        ("weights/koala.ckpt", "is a pickle, which is never loaded"),
        (None, "Give a model's name, folder or hub id, not None"),
        (["nano-koala"], "Give a model's name, folder or hub id, not ['nano-koala']"),
    ],
)
def test_what_is_no_folder_and_no_hub_id_is_one_sentence(name, message):
    with pytest.raises(ValueError) as error:
        kn.load(name)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": "x"}, "seeds (images per prompt) is 'x': give a whole number from 1 to"),
        ({"seeds": [1, 2]}, "seeds (images per prompt) is [1, 2]: give a whole"),
        ({"seeds": True}, "seeds (images per prompt) is True: give a whole"),
        ({"guidance": float("nan")}, "guidance is nan: give a number from 0 to 1000"),
        ({"guidance": "3"}, "guidance is '3': give a number"),
        ({"steps": 2.5}, "steps is 2.5: give a whole number"),
        ({"seed": None}, "seed is None: give a whole number"),
        ({"batch_size": "all"}, "batch_size is 'all'"),
        ({"negative_prompt": 5}, "negative_prompt is 5: give a text"),
        ({"stepps": 5}, "wrap has no setting stepps=: leave it out"),
    ],
)
def test_odd_settings_of_a_session_are_one_sentence(koala, given, message):
    with pytest.raises(ValueError) as error:
        kn.wrap(koala, **given)
    assert message in str(error.value) and "\n" not in str(error.value)


# --- what was done to it --------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [False, True])
def test_a_compiled_unet_draws_on_a_cpu(koala, blocks):
    """Our kernels stay out of what torch.compile makes: inductor fails on them."""
    expected = kn.generate(koala, "a koala", **SMALL)
    before = fingerprint(koala)["unet"]
    if blocks:
        koala.unet.compile_repeated_blocks(backend=refuses_mkldnn)
    else:
        koala.unet = torch.compile(koala.unet, backend=refuses_mkldnn)
    compiled = kn.generate(koala, "a koala", **SMALL)
    assert abs(pixels(expected) - pixels(compiled)).max() <= 1
    assert fingerprint(koala)["unet"] != before
    assert expected.records.parts[0] != compiled.records.parts[0]


def refuses_mkldnn(graph, inputs):
    """A backend that, as inductor, knows no product of ours."""
    assert not any("_linear_pointwise" in str(node.target) for node in graph.graph.nodes)
    return graph.forward


@pytest.mark.long
def test_inductor_draws_on_a_cpu(koala):
    expected = kn.generate(koala, "a koala", **SMALL)
    koala.unet = torch.compile(koala.unet)
    assert abs(pixels(expected) - pixels(kn.generate(koala, "a koala", **SMALL))).max() <= 1


class Int8(torch.Tensor):
    """A quantised weight: whole numbers and a scale for each row, as torchao keeps one."""

    @staticmethod
    def __new__(cls, whole, scale):
        return torch.Tensor._make_wrapper_subclass(cls, whole.shape, dtype=scale.dtype)

    def __init__(self, whole, scale):
        self.whole, self.scale = whole, scale

    def __tensor_flatten__(self):
        return ["whole", "scale"], None

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is functional.linear:
            x, weight, *bias = args
            return functional.linear(x, weight.whole * weight.scale, *bias)
        return super().__torch_function__(function, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function not in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            raise NotImplementedError(f"{function} of a quantised weight")
        same = cls(args[0].whole, args[0].scale)
        return return_and_correct_aliasing(function, args, kwargs or {}, same)


def quantise(unet):
    for module in unet.modules():
        if type(module) is torch.nn.Linear:
            weight = module.weight.detach()
            scale = weight.abs().amax(1, keepdim=True) / 127
            whole = (weight / scale).round().to(torch.int8)
            module.weight = torch.nn.Parameter(Int8(whole, scale), requires_grad=False)


def test_quantised_weights_draw_on_a_cpu(koala, tmp_path):
    expected = kn.generate(koala, "a koala", out=tmp_path, **SMALL)
    quantise(koala.unet)
    drawn = kn.generate(koala, "a koala", **SMALL)
    assert 0 < abs(pixels(expected) - pixels(drawn)).mean() < 10
    assert set(fingerprint(koala)["unet"]["tensors"]) == {"Int8 float32", "float32"}
    with pytest.raises(ValueError, match="parts.unet.tensors.*Int8"):
        kn.generate(koala, "a koala", out=tmp_path, **SMALL)


def test_weights_that_are_quantised_are_not_compared_with_their_file(koala, snapshot):
    files = list((snapshot / "unet").glob("*.safetensors"))
    quantise(koala.unet)
    hub.check_weights(koala.unet, files)
    koala.unet.conv_in.weight.data[0, 0, 0, 0] += 1
    with pytest.raises(ValueError, match="lacks 1 of the weights.*such as conv_in.weight"):
        hub.check_weights(koala.unet, files)


@pytest.mark.parametrize("size", ["auto", "max", 1])
def test_maps_of_sliced_attention_are_the_same(koala, size):
    maps = []
    for _ in range(2):
        with kn.capture_attention(koala) as attention:
            run = kn.generate(koala, "a koala", **SMALL)
        maps.append((attention.maps(), pixels(run)))
        koala.enable_attention_slicing(size)
    assert np.abs(maps[0][0] - maps[1][0]).max() < 1e-5
    assert np.abs(maps[0][1] - maps[1][1]).max() <= 1


def test_a_word_of_textual_inversion_is_a_word(koala):
    width = koala.text_encoder.config.hidden_size
    for encoder, tokenizer in ("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"):
        parts = {"text_encoder": getattr(koala, encoder), "tokenizer": getattr(koala, tokenizer)}
        koala.load_textual_inversion(torch.randn(1, width), token="<toy>", **parts)
        koala.load_textual_inversion(torch.randn(3, width), token="<style>", **parts)
    with kn.capture_attention(koala) as attention:
        kn.generate(koala, "a <toy> in <style> now", **SMALL)
    words = attention.words("a <toy> in <style> now")
    assert words.texts[:5] == ["a", "<toy>", "in", "<style>", "now"]
    assert [len(word.tokens) for word in words.words[:4]] == [1, 1, 2, 3]  # a byte is a token
    assert np.allclose(words.array.sum(0), 1, atol=1e-5)


# --- other kinds of pipelines ---------------------------------------------------------------------


def with_ip_adapter(pipe):
    pipe.unet.encoder_hid_proj = torch.nn.Identity()  # as load_ip_adapter leaves it
    return pipe


def flux(pipe):
    names = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")
    return diffusers.FluxPipeline(scheduler=pipe.scheduler, **dict.fromkeys(names))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_ip_adapter, "has an IP-Adapter, which wants an image with each prompt"),
        (diffusers.StableDiffusionXLImg2ImgPipeline.from_pipe, "it draws from an image"),
        (diffusers.StableDiffusionXLInpaintPipeline.from_pipe, "it draws from an image"),
        (flux, "FluxPipeline is no SDXL-type text-to-image pipeline (it has no unet)"),
        (lambda pipe: kn.wrap(pipe), "is no pipeline of diffusers: give its .pipe."),
        (lambda pipe: "nano-koala", "'nano-koala' is no pipeline of diffusers."),
    ],
)
def test_what_generate_cannot_draw_with_is_one_sentence(koala, make, message):
    with pytest.raises(ValueError) as error:
        kn.generate(make(koala), "a koala", **SMALL)
    assert message in str(error.value) and "\n" not in str(error.value)
