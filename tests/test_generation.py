import shutil
import warnings
from importlib.metadata import version
from itertools import count

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from test_kills import contents

from koala_nb import generate, list_steps, load
from koala_nb.core import files as provenance
from koala_nb.generation.generate import decode

SMALL = {"height": 64, "width": 64, "steps": 2, "guidance": 3.5}


def pixels(image):
    return np.asarray(image).astype(int)


def plain_call(pipe, negative, **size):
    """The image that diffusers' own call draws."""
    more = {"generator": torch.Generator("cpu").manual_seed(7), "negative_prompt": negative}
    return pipe("a koala", num_inference_steps=2, guidance_scale=3.5, **more, **size).images[0]


@pytest.mark.parametrize("negative", ["a dog", None])
def test_same_image_as_the_plain_diffusers_call(loaded, negative):
    ours = generate(loaded, "a koala", seeds=[7], negative_prompt=negative, **SMALL).images[0]
    plain = plain_call(loaded, negative, height=64, width=64)
    assert abs(pixels(ours) - pixels(plain)).max() <= 1  # rounding of other kernels
    assert pixels(ours).std() > 5  # not a flat image


@pytest.mark.parametrize("zeros", [True, False])
def test_no_negative_prompt_is_zeros_where_the_pipeline_is_made_so(snapshot, zeros):
    """SDXL's is: without one its unconditional half is zeros, and not an empty text."""
    pipe = load(snapshot, device="cpu")
    pipe.register_to_config(force_zeros_for_empty_prompt=zeros)
    none, empty = (
        pixels(generate(pipe, "a koala", [3], negative_prompt=text, **SMALL).images[0])
        for text in (None, "")
    )
    size = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 3.5}
    plain = pixels(pipe("a koala", generator=torch.Generator().manual_seed(3), **size).images[0])
    assert abs(none - plain).max() <= 1 and (abs(none - empty).max() > 1) == zeros


def test_same_seed_alone_and_in_any_batch(loaded):
    together, *others = (
        [pixels(i) for i in generate(loaded, ["a koala", "two dogs"], range(4), **how).images]
        for how in ({**SMALL, "batch_size": size} for size in (8, 1, 3))
    )
    assert all(abs(a - b).max() <= 1 for other in others for a, b in zip(together, other))
    assert abs(together[0] - together[1]).max() > 20  # seeds do matter
    assert abs(together[0] - together[4]).max() > 1  # and prompts


def test_guidance_up_to_one_skips_the_unconditional_half(loaded, monkeypatch):
    sizes = []
    forward = loaded.unet.forward
    monkeypatch.setattr(
        loaded.unet, "forward", lambda x, *a, **k: (sizes.append(len(x)), forward(x, *a, **k))[1]
    )
    for guidance in (0.0, 1.0, 3.5):
        generate(loaded, "a koala", seeds=range(3), **{**SMALL, "guidance": guidance, "steps": 1})
    assert sizes == [3, 3, 6]


@pytest.mark.parametrize(
    ("seeds", "drawn"),
    [
        ((5, 3), [("a", 5), ("a", 3), ("b", 5), ("b", 3)]),
        ([range(2), range(10, 12)], [("a", 0), ("a", 1), ("b", 10), ("b", 11)]),
    ],
)
def test_prompts_times_seeds_or_a_list_a_prompt_in_order(loaded, seeds, drawn):
    records = generate(loaded, ["a", "b"], seeds, **{**SMALL, "steps": 1}).records
    assert list(zip(records.prompt, records.seed)) == drawn
    assert list(records.prompt_index) == [0, 0, 1, 1]


def test_recipe_fills_in_and_the_record_is_complete(hub_cache):
    pipe = load("koala-lightning-700m", local_files_only=True, device="cpu")
    record = generate(pipe, "a koala", height=64, width=64).records.iloc[0]
    recipe = pipe.model_info.recipe
    assert "prompt_unread" not in record
    assert (record.steps, record.guidance) == (10, 3.5)
    assert record.negative_prompt == recipe.negative_prompt
    assert (record.scheduler, record.timestep_spacing) == ("EulerDiscreteScheduler", "trailing")
    assert (record.system, record.revision) == ("koala-lightning-700m", pipe.model_info.revision)
    assert (record["dtype"], record.device, record.decoded_in) == ("float32", "cpu", "float32")
    assert (record.domain, record.banner) == ("photographic", None)
    assert (record.torch, record.seed, record.height) == (version("torch"), 0, 64)


def test_the_emoji_world_carries_its_banner(snapshot, tmp_path):
    folder = shutil.copytree(snapshot, tmp_path / "tiny")
    (folder / "koala_nb.json").write_text('{"domain": "emoji-world"}')
    pipe = load(folder, device="cpu")
    run = generate(pipe, "a koala", steps=1)
    assert run.records.banner[0] == provenance.EMBEDDED_BANNER
    assert run.images[0].size == (64, 64)  # the folder's own size
    assert run.records.guidance[0] == 3.5  # the emoji world's recipe


def test_spacing_is_lent_and_given_back(loaded):
    before = loaded.scheduler
    leading = generate(loaded, "a", timestep_spacing="leading", **SMALL)
    trailing = generate(loaded, "a", timestep_spacing="trailing", **SMALL)
    assert loaded.scheduler is before
    assert leading.records.timestep_spacing[0] == "leading"
    assert abs(pixels(leading.images[0]) - pixels(trailing.images[0])).max() > 1


def test_steps_are_those_of_the_reference(loaded):
    leading, trailing = (list_steps(loaded, 10, s) for s in ("leading", "trailing"))
    assert (leading.timestep.iloc[0], leading.timestep.iloc[-1]) == (901, 1)
    assert (trailing.timestep.iloc[0], trailing.timestep.iloc[-1]) == (999, 99)
    assert leading.sigma[0] == pytest.approx(8.39, abs=0.01)
    assert trailing.sigma[0] == pytest.approx(14.61, abs=0.01)


def test_a_stable_diffusion_pipeline_with_one_encoder(loaded, tmp_path):
    torch.manual_seed(0)  # of some random weights a pixel lies between two values
    shape = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1}
    shape |= {"cross_attention_dim": 32, "attention_head_dim": 2, "norm_num_groups": 4}
    shape |= {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
    shape |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    unet = UNet2DConditionModel(**shape)
    parts = {k: getattr(loaded, k) for k in ("vae", "text_encoder", "tokenizer", "scheduler")}
    StableDiffusionPipeline(
        **parts, unet=unet, safety_checker=None, feature_extractor=None
    ).save_pretrained(tmp_path)
    pipe = load(tmp_path, device="cpu")
    ours = generate(pipe, "a koala", seeds=[7], negative_prompt="a dog", **SMALL).images[0]
    plain = plain_call(pipe, "a dog")
    assert abs(pixels(ours) - pixels(plain)).max() <= 1


@pytest.fixture
def overflowing(snapshot):
    """The tiny KOALA in half precision, its VAE made to exceed 65,504 on the way, as SDXL's can."""
    pipe = load(snapshot, device="cpu", dtype="float16")
    pipe.vae.register_to_config(force_upcast=False)
    with torch.no_grad():
        pipe.vae.decoder.conv_in.weight.mul_(20_000)  # a normalisation follows: harmless in float32
    return pipe


def test_a_broken_image_is_decoded_again_in_float32(overflowing):
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    with torch.no_grad():
        scaled = latent / overflowing.vae.config.scaling_factor
        assert not overflowing.vae.decode(scaled).sample.isfinite().all()  # the fault is real
        [(image, how)] = decode(overflowing, latent)
    assert how == {"decoded_in": "float32", "finite": True}
    assert pixels(image).std() > 5
    assert overflowing.vae.dtype == torch.float16  # its own again


def test_the_record_says_which_images_were_decoded_again(overflowing, snapshot):
    run = generate(overflowing, "a koala", seeds=[0, 1], **{**SMALL, "steps": 1})
    assert list(run.records.decoded_in) == ["float32", "float32"]
    healthy = load(snapshot, device="cpu", dtype="float16")
    healthy.vae.register_to_config(force_upcast=False)
    run = generate(healthy, "a koala", **{**SMALL, "steps": 1})
    assert list(run.records.decoded_in) == ["float16"]


@pytest.mark.parametrize(("dtype", "black"), [("float16", False), ("bfloat16", True)])
def test_an_upcast_vae_and_an_all_black_image_are_decoded_in_float32(snapshot, dtype, black):
    pipe = load(snapshot, device="cpu", dtype=dtype)
    assert pipe.vae.config.force_upcast
    if black:  # indeed: two precisions agree
        torch.nn.init.zeros_(pipe.vae.decoder.conv_out.weight)
        torch.nn.init.constant_(pipe.vae.decoder.conv_out.bias, -3)
    [(image, how)] = decode(pipe, torch.zeros(1, 4, 8, 8, dtype=pipe.vae.dtype))
    assert how == {"decoded_in": "float32", "finite": True}
    assert (pixels(image).max() == 0) == black and pipe.vae.dtype == getattr(torch, dtype)


def test_a_latent_of_nan_is_recorded(loaded):
    with torch.no_grad():
        [(image, how)] = decode(loaded, torch.full((1, 4, 8, 8), float("nan")))
    assert how["finite"] is False
    assert pixels(image).max() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "prompts is empty"),
        ({"prompts": ["a", 3]}, "prompt 1 must be a text, not int 3"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [-1]}, "seed of prompt 0 is -1: give a whole number from 0"),
        ({"seeds": [2**63]}, "seed of prompt 0 is 9223372036854775808: give"),
        ({"seeds": [1.5]}, "is 1.5: give"),
        ({"seeds": [True]}, "is True: give"),
        ({"seeds": [[1], [2]]}, "2 lists for 1 prompts"),
        ({"seeds": [[1], 2]}, "mixes numbers and lists"),
        ({"seeds": [[]]}, "Prompt 0 has no seeds"),
        ({"steps": 0}, "steps is 0: give a whole number from 1 to 1000"),
        ({"steps": 2.0}, "steps is 2.0: give a whole number"),
        ({"guidance": float("inf")}, "guidance is inf: give a number from 0 to 1000"),
        ({"guidance": "3"}, "guidance is '3': give a number"),
        ({"width": 0}, "width is 0: give a whole number from 8"),
        ({"batch_size": 0}, "batch_size is 0: give a whole number"),
        ({"timestep_spacing": "middle"}, "must be one of leading, trailing, linspace"),
        ({"prompts": None}, "prompts must be a text or a list of texts, not None"),
        ({"prompts": b"a koala"}, "prompts must be a text or a list of texts, not b'a koala'"),
        ({"prompts": ("a" for _ in count())}, "One run holds at most 5,000,000 images"),
        ({"prompts": "a" * 10**6 + "\0"}, "holds a NUL character"),
        ({"prompts": "\udcff"}, "not valid Unicode"),
        ({"seeds": count()}, "One run holds at most 5,000,000 images"),
        ({"seeds": [range(2**40)]}, "One run holds at most 5,000,000 images"),
        ({"seeds": "seven"}, "seeds holds 5 lists for 1 prompts"),
        ({"seeds": None}, "seed of prompt 0 is None: give a whole number"),
        ({"seeds": [*range(200_000), 199_999]}, "Seed 199999 stands twice for prompt 0: it gives"),
        ({"out": 7}, "out must be the path of a folder, not 7"),
        ({"out": "a\0b"}, "out must be the path of a folder"),
        ({"negative_prompt": ["a dog"]}, "negative_prompt must be a text"),
        ({"guidance": 10**400}, "guidance is 1000"),
    ],
)
def test_bad_arguments_get_one_clear_sentence(loaded, tmp_path, arguments, message):
    with pytest.raises(ValueError) as error:
        generate(loaded, **{"prompts": "a", "out": tmp_path / "run", **SMALL, **arguments})
    assert message in str(error.value) and len(str(error.value)) < 300
    assert not (tmp_path / "run").exists()


def test_a_long_prompt_gets_one_warning_with_the_lost_words(loaded):
    long = "a" * 60 + " koala behind the tree"
    with pytest.warns(UserWarning, match="tokens: it does not read 'ree' and of 1 more") as caught:
        generate(loaded, [long, long + "s", "short"], **{**SMALL, "steps": 1})
    assert len([w for w in caught if w.category is UserWarning]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        generate(loaded, "short", **{**SMALL, "steps": 1})


def test_tiles_are_recorded_where_they_count(snapshot):
    pipe = load(snapshot, device="cpu")
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 64, 8
    assert not generate(pipe, "a", **{**SMALL, "steps": 1}).records.vae_tiling[0]
    assert generate(pipe, "a", **{**SMALL, "steps": 1, "width": 96}).records.vae_tiling[0]


def test_a_folder_holds_images_with_records(loaded, tmp_path):
    prompts = ["<script>alert(1)</script>", "考拉 🐨", "Ein Bär, ängstlich"]
    run = generate(loaded, prompts, seeds=[4], out=tmp_path / "run", **SMALL)
    slugs = ["00000-script-alert-1-script", "00001-prompt", "00002-ein-bar-angstlich"]
    names = [f"{slug}-4.png" for slug in slugs]
    assert sorted(p.name for p in (tmp_path / "run" / "images").iterdir()) == names
    for prompt, file, image in zip(prompts, run.records.file, run.images):
        record = provenance.read_record(tmp_path / "run" / file)
        assert (record["prompt"], record["seed"], record["file"]) == (prompt, 4, file)
        assert image.size == (64, 64)
    assert provenance.read_lines(tmp_path / "run" / "records.jsonl") == [
        provenance.read_record(tmp_path / "run" / file) for file in run.records.file
    ]
    in_memory = generate(loaded, prompts, seeds=[4], **SMALL)
    assert in_memory.records.equals(run.records)
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(in_memory.images, run.images))
    assert len(run.images[:2]) == 2 and run.images[-1].size == (64, 64)


def test_a_finished_folder_is_read_not_drawn(loaded, tmp_path, monkeypatch):
    first = generate(loaded, "a", seeds=range(3), out=tmp_path, **SMALL)
    before = contents(tmp_path)
    assert first.seconds_per_image > 0 and first.batches.images == 3
    assert first.batches.sizes == (3,) and len(first.batches.times) == 1
    monkeypatch.setattr(type(loaded.unet), "forward", None)  # drawing would fail
    again = generate(loaded, "a", seeds=range(3), out=tmp_path, **SMALL)
    assert again.seconds_per_image is None
    assert again.records.equals(first.records)
    assert contents(tmp_path) == before


def test_what_is_missing_or_damaged_is_drawn_again_and_nothing_else(loaded, tmp_path):
    generate(loaded, "a", seeds=range(6), batch_size=4, out=tmp_path, **SMALL)
    before = contents(tmp_path)
    files = sorted((tmp_path / "images").iterdir())
    kept = files[0].stat().st_mtime_ns
    files[1].unlink()
    files[2].write_bytes(files[2].read_bytes()[:-5])
    (tmp_path / "records.jsonl").unlink()
    (tmp_path / "images" / f".{files[1].name}.0123abcd.tmp").write_bytes(b"half")
    run = generate(loaded, "a", seeds=range(6), batch_size=4, out=tmp_path, **SMALL)
    assert contents(tmp_path) == before
    assert files[0].stat().st_mtime_ns == kept
    assert run.batches.sizes == (4,) and len(run.images) == 6  # the first batch again, whole


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 3}, "steps was 2, now 3"),
        ({"guidance": 5}, "guidance was 3.5, now 5.0"),
        ({"negative_prompt": "x"}, "negative_prompt was None, now 'x'"),
        ({"prompts": ["a", "c"]}, "prompts[1] was 'b', now 'c'"),
        ({"prompts": ["a"]}, "the number of prompts was 2, now 1"),
        ({"seeds": [0, 2]}, "seeds[0] was [0, 1], now [0, 2]"),
        ({"timestep_spacing": "linspace"}, "timestep_spacing was 'leading', now 'linspace'"),
    ],
)
def test_other_settings_refuse_the_folder(loaded, tmp_path, changed, message):
    asked = {"prompts": ["a", "b"], "seeds": [0, 1], **SMALL, "out": tmp_path}
    generate(loaded, **asked)
    before = contents(tmp_path)
    with pytest.raises(ValueError) as error:
        generate(loaded, **{**asked, **changed})
    assert message in str(error.value)
    assert contents(tmp_path) == before
