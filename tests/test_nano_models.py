import json
from itertools import combinations

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import CLIPTokenizer

import koala_nb as kn
from koala_nb.core.catalog import data_folder

pytest.importorskip("koala_nb.nano.models", reason="koala_nb/nano is absent")
if not (data_folder() / "world" / "planted.json").is_file():
    pytest.skip("data/world is absent", allow_module_level=True)

from koala_nb.distillation.losses import init_from_teacher, teacher_name  # noqa: E402
from koala_nb.nano import models  # noqa: E402
from koala_nb.nano.presets import FULL, SMALL, SYSTEMS  # noqa: E402
from koala_nb.nano.world import World  # noqa: E402

PARAMETERS = {"nano-sdxl": 25_611_140, "nano-koala-large": 11_593_636, "nano-koala": 7_819_812}
STUDENTS = ("nano-koala-large", "nano-koala")
TOKENIZER = models.build_tokenizer(SMALL)
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def random_parts(system="nano-koala"):
    torch.manual_seed(0)
    first, second = models.build_text_encoders(SMALL, TOKENIZER)
    return {
        "unet": models.build_unet(SMALL, system),
        "vae": models.build_vae(SMALL),
        "text_encoder": first,
        "text_encoder_2": second,
        "tokenizer": TOKENIZER,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A nano-koala of random parts, saved. Leave it as it is."""
    target = tmp_path_factory.mktemp("models") / "nano-koala"
    parts = random_parts()
    models.save_pipeline(target, "nano-koala", parts)
    # What is being trained stays in full precision.
    assert all(parts[name].dtype == torch.float32 for name in PARTS)
    return target


# --- the tokenizer ----------------------------------------------------------------------------


@given(st.text(max_size=40))
@example("日本 Ωμέγα ﷽ 🐨")
@example("\x00\t\x1f")
def test_any_text_is_encoded(text):
    ids = TOKENIZER(text).input_ids
    assert ids[0] == TOKENIZER.bos_token_id and ids[-1] == TOKENIZER.eos_token_id
    # The unknown token is the end token: none stands inside.
    assert TOKENIZER.unk_token_id == TOKENIZER.eos_token_id not in ids[1:-1]
    assert all(0 <= i < len(TOKENIZER) for i in ids)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
def test_ascii_text_comes_back_in_lower_case(text):
    """But for the spaces, which CLIP's tokenizers set anew around punctuation and digits."""
    ids = TOKENIZER(text).input_ids
    decoded = TOKENIZER.decode(ids, skip_special_tokens=True)
    assert decoded.replace(" ", "") == text.lower().replace(" ", "")


def test_each_word_of_the_world_is_one_token():
    world = World(SMALL.n_objects)
    names = [*world.objects, *world.occupations, *world.words, *world.planted["held_out"]["words"]]
    words = {word for name in names for word in name.split() if word.isalpha()}
    split = {word for word in words if len(TOKENIZER.tokenize(word)) != 1}
    assert len(words) > 250 and not split


def test_captions_fit_the_text_encoders():
    """At most 30 tokens between the begin and end tokens, none cut off."""
    world = World(SMALL.n_objects)
    captions = [world.scene(seed).caption for seed in range(3000)]
    longest = max(len(ids) for ids in TOKENIZER(captions).input_ids)
    assert 20 < longest <= 30 + 2 <= SMALL.max_length <= FULL.max_length


def test_the_tokenizer_is_the_same_each_time_and_from_its_files(folder):
    again = models.build_tokenizer(SMALL)
    loaded = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
    plain = CLIPTokenizer(
        vocab=json.loads((folder / "tokenizer" / "vocab.json").read_text("utf-8")),
        merges=[
            tuple(line.split(" "))
            for line in (folder / "tokenizer" / "merges.txt").read_text("utf-8").split("\n")[1:-1]
        ],
    )
    for text in ("a koala on a blue background", "Größe: 12 µm, “naïve”"):
        ids = TOKENIZER(text).input_ids
        assert again(text).input_ids == loaded(text).input_ids == plain(text).input_ids == ids
    assert loaded.model_max_length == SMALL.max_length


# --- the text encoders ------------------------------------------------------------------------


def test_the_text_configurations_carry_the_tokenizers_ids():
    for encoder in models.build_text_encoders(SMALL, TOKENIZER):
        config = encoder.config
        assert config.bos_token_id == TOKENIZER.bos_token_id
        assert config.eos_token_id == TOKENIZER.eos_token_id
        assert config.pad_token_id == TOKENIZER.pad_token_id
        assert config.vocab_size == len(TOKENIZER)
        assert config.max_position_embeddings == SMALL.max_length


def test_pooled_embeddings_of_different_prompts_differ(folder):
    pipe = kn.load(folder, device="cpu")
    prompts = ["a koala", "a koala on a blue background", "a woman judge", "a man judge", ""]
    prompts.append("koala")
    with torch.no_grad():
        pooled = [pipe.encode_prompt(prompt, device="cpu")[2] for prompt in prompts]
    for one, other in combinations(pooled, 2):
        assert float((one - other).abs().max()) > 1e-2


# --- the parts --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unets():
    """The three U-Nets of the small configuration. Leave them as they are."""
    torch.manual_seed(0)
    return {system: models.build_unet(SMALL, system) for system in SYSTEMS}


@pytest.mark.parametrize("system", SYSTEMS)
def test_parameters(unets, system):
    assert sum(p.numel() for p in unets[system].parameters()) == PARAMETERS[system]


@pytest.mark.parametrize("system", SYSTEMS)
def test_blocks_are_those_of_the_real_systems(unets, system):
    """The same module names in the same order, so that every hook and map fits both."""
    real = {"nano-sdxl": "sdxl-base", "nano-koala-large": "koala-1b", "nano-koala": "koala-700m"}
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        large = UNet2DConditionModel(**kn.find(real[system]).unet_config)
    assert list(unets[system].state_dict()) == list(large.state_dict())


@pytest.mark.parametrize("system", STUDENTS)
def test_students_inherit_by_the_map_and_not_by_name(unets, system):
    teacher = unets["nano-sdxl"].state_dict()
    student = models.build_unet(SMALL, system)
    wrong = [n for n, t in student.state_dict().items() if teacher[n].shape != t.shape]
    assert len(wrong) == 8
    init_from_teacher(student, unets["nano-sdxl"])
    assert all(torch.equal(t, teacher[teacher_name(n)]) for n, t in student.state_dict().items())


def test_the_autoencoder_has_four_pixels_a_latent_at_any_size():
    vae = models.build_vae(SMALL)
    with torch.no_grad():
        for side in (SMALL.crop, SMALL.image_size, FULL.image_size):
            latents = vae.encode(torch.zeros(1, 3, side, side)).latent_dist.mode()
            assert latents.shape == (1, 4, side // 4, side // 4)
            assert vae.decode(latents).sample.shape == (1, 3, side, side)
    assert (SMALL.latent_size, FULL.latent_size) == (16, 32)


def test_the_scheduler_is_the_released_one():
    config = models.build_scheduler().config
    facts = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    facts |= {"prediction_type": "epsilon", "steps_offset": 1, "timestep_spacing": "leading"}
    assert {name: config[name] for name in facts} == facts


# --- a saved pipeline -------------------------------------------------------------------------


def test_precision_on_disk(folder):
    """U-Net and VAE in half precision, text encoders in full, nothing but safetensors."""
    for part in PARTS:
        (file,) = (folder / part).glob("*.safetensors")
        dtypes = {t.dtype for t in load_file(file).values() if t.is_floating_point()}
        assert dtypes == {torch.float32 if part.startswith("text") else torch.float16}
    assert not [f for f in folder.rglob("*") if f.suffix in (".bin", ".pt", ".pkl", ".ckpt")]


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_diffusers_plain_call_loads_and_draws(folder, dtype):
    given = {} if dtype is None else {"dtype": dtype}
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, **given)
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe("a koala", num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    side = SMALL.image_size
    assert drawn.images[0].size == (side, side)
    size, width = (side, side), SMALL.text_widths[1]
    ids = pipe._get_add_time_ids(size, (0, 0), size, torch.float32, width)
    assert ids.tolist() == [[side, side, 0, 0, side, side]]


def test_the_helper_loads_and_draws_with_the_recipe(folder):
    pipe = kn.load(folder, device="cpu")
    assert pipe.model_info.domain == "emoji-world" and pipe.model_info.name == "nano-koala"
    run = kn.generate(pipe, ["a koala", "an owl"], seeds=[0, 1], steps=2, progress=False)
    record = run.records.iloc[0]
    assert (record["timestep_spacing"], record["guidance"]) == ("trailing", 3.5)
    assert record["banner"].startswith("Embedded teaching model")
    pictures = {image.tobytes() for image in run.images}
    assert len(pictures) == 4 and run.images[0].size == (SMALL.image_size, SMALL.image_size)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_draws(system, tmp_path):
    models.save_pipeline(tmp_path / system, system, random_parts(system))
    pipe = kn.load(tmp_path / system, device="cpu")
    assert sum(p.numel() for p in pipe.unet.parameters()) == PARAMETERS[system]
    run = kn.generate(pipe, "a koala", steps=1, progress=False)
    assert run.records.iloc[0]["system"] == system


def test_no_folder_of_the_training_machine_is_published():
    for path in (data_folder() / "models").glob("*/**/config.json"):
        assert "_name_or_path" not in path.read_text("utf-8"), path
